"""A section of every row: what attention and loss do when other processes read the rest of the same rows.

    row      |  section 0  |  section 1  |  section 2  |          queries of a section see the keys up to their own
    latents  |  everybody's, put together: C + R numbers a token, not the keys and values of all heads

Letters: B rows, S tokens of a section, T of the row up to its end, C latent, R rotary width, W = C + R.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.model.cache import Past, Within


class Section(NamedTuple):
    """Where the tokens of this process stand, in place of `Within`.

    Attributes:
        position_BS: of the tokens, [S].
        start, stop: the first of them, and the one behind the last.
        gather: [B, S, W] of every process to [B, T, W] in the order of the row; it has a gradient.
        add: adds up over the processes that read sections of the same rows.
        rows: tokens that are there; fewer than S at the end of a row, where an MTP module has no input for the last.
    """

    position_BS: Tensor
    start: int
    stop: int
    gather: Callable[[Tensor], Tensor]
    add: Callable[[Tensor], Tensor]
    rows: int
    mask_ST: None = None  # the expanded form is causal by itself, from the last S of T

    def first(self, rows: int) -> "Section":
        """Return the same for the first rows."""
        return self._replace(rows=rows)

    def at(self, layer: int) -> "Section":
        """Return itself: every layer sees the same."""
        return self

    def append(self, new_BSW: Tensor) -> Tensor:
        """Return the latents of the whole row up to these."""
        padded_BSW = F.pad(new_BSW, (0, 0, 0, self.stop - self.start - self.rows))
        return self.gather(padded_BSW)[:, : self.start + self.rows]


Seen = Past | Within | Section  # what the layers of one forward pass know besides their tokens


def columns_of(section: Section | None, ahead: int = 0) -> slice:
    """Return the columns of a section, and some of the next one; without a section all."""
    return slice(None) if section is None else slice(section.start, section.stop + ahead)
