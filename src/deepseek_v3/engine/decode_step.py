"""A decoding step: the next tokens of every row, by one call of a C++ kernel where it serves, else by the model itself.

    step = DecodeStep(model)
    hidden_ND, logits_MV = step.read(Rows(tokens=[5, 7, 11], counts=[2, 0, 1]), cache)     appends to the cache

Rows are ragged: each has as many new tokens as it has, one, some drafts, a piece of its prompt or none. Equal to the
model over each row alone and its head. The kernel (native_step.py) serves on a CPU, in FP32, BF16 and FP8; there a
token does not feel what else is in the step, to the last bit. A longer piece of a prompt is the model's own work, and
so are all rows where no kernel serves: padded to a rectangle. Call `refresh` after the weights have moved.

Letters: B rows, S new tokens of a row, N of all, M of which logits are wanted, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_v3.engine.native_step import NativeStep
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.model_parts import refuse_broken_biases
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.ops.choice import SERVES_UP_TO

PREFILL_CHUNK = 512  # of a row that the model reads at once: bounds the memory of scores, changes no number


class Rows(NamedTuple):
    """New tokens of the rows of a cache, behind each other, and how many each row has."""

    tokens: list[int]
    counts: list[int]


class DecodeStep:
    """The model's layers and MTP modules, prepared for decoding.

    Attributes:
        native: the kernel's view of the model; `native.ready` says whether it serves here.
    """

    def __init__(self, model: DeepseekV3, *, fp8_drafts: bool = False) -> None:
        """Prepare.

        Args:
            fp8_drafts: the kernel drafts with a copy of the head in FP8, half of BF16 to read; the main model does not.
        """
        self.model = model
        refuse_broken_biases(model)
        self.native = NativeStep(model, fp8_drafts)

    def refresh(self) -> None:
        """Take over where the weights lie now; whoever is reading in another thread ends with those it began with."""
        refuse_broken_biases(self.model)
        self.native.refresh()

    def read(
        self,
        rows: Rows,
        cache: LatentCache,
        *,
        depth: int = -1,
        below_ND: Tensor | None = None,
        logits_of: Sequence[int] | None = None,
        choice_LNA: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read the next tokens of every row and append to the cache.

        Args:
            depth: -1 for the main model; from 0 that MTP module, whose row i reads the hidden state of the depth below
                and token i + depth + 1.
            below_ND: of a module, the hidden states of the depth below.
            logits_of: the tokens, as indices of `rows.tokens`, whose logits are wanted: all by default.
            choice_LNA: of the main model, where to write the experts of every token, layer by layer.
        Returns:
            Normed hidden states [N, D] in the model's dtype, and logits [M, V] in FP32 (of an FP64 model FP64).
        Raises:
            IndexError: a token outside the vocabulary.
            ValueError: tokens that do not fit into the cache, or that are not as many as the counts say.
        """
        tokens, counts = rows
        if not tokens or sum(counts) != len(tokens) or min(counts) < 0:
            raise ValueError(f"{len(tokens)} tokens for rows of {counts}: there must be one at least, and as many")
        if min(tokens) < 0 or max(tokens) >= self.model.config.vocab_size:
            raise IndexError(f"a token of {tokens} is not below vocab_size={self.model.config.vocab_size}")
        cache.check_room(counts)
        wanted = range(len(tokens)) if logits_of is None else logits_of
        if max(counts) <= SERVES_UP_TO and self.native.serves(cache):
            return self.native.run(rows, cache, depth, below_ND, wanted, choice_LNA)
        return self._read_in_pieces(rows, cache, depth, below_ND, list(wanted), choice_LNA)

    @torch.inference_mode()
    def _read_in_pieces(
        self,
        rows: Rows,
        cache: LatentCache,
        depth: int,
        below_ND: Tensor | None,
        wanted: list[int],
        choice_LNA: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Read what is read together, one after the other, and put the results in their places."""
        hidden_ND = self.model.norm.weight.new_empty(len(rows.tokens), self.model.config.hidden_size)
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)  # rounded to BF16 logits would only make ties
        logits_MV = hidden_ND.new_empty(len(wanted), self.model.config.vocab_size, dtype=wide)
        for chosen, indices in split_rows(rows.counts):
            counts = [len(indices)] if len(chosen) == 1 else [rows.counts[row] for row in chosen]
            piece, part = Rows([rows.tokens[i] for i in indices], counts), cache.rows(chosen)
            place = {token: i for i, token in enumerate(indices)}
            places = [i for i, token in enumerate(wanted) if token in place]
            below = None if below_ND is None else below_ND[indices]
            form = self.native.run if max(counts) <= SERVES_UP_TO and self.native.serves(cache) else self._read_padded
            chosen_LNA = None if choice_LNA is None else choice_LNA.new_empty(choice_LNA[:, : len(indices)].shape)
            hidden, logits = form(piece, part, depth, below, [place[wanted[i]] for i in places], chosen_LNA)
            hidden_ND[indices] = hidden
            if choice_LNA is not None and chosen_LNA is not None:
                choice_LNA[:, indices] = chosen_LNA
            logits_MV[places] = logits.to(wide)
            for row, length in zip(chosen, part.lengths):
                cache.lengths[row] = length
        return hidden_ND, logits_MV

    def _read_padded(
        self,
        rows: Rows,
        cache: LatentCache,
        depth: int,
        below_ND: Tensor | None,
        wanted: Sequence[int],
        choice_LNA: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let the model read the rows as a rectangle."""
        model, device = self.model, self.model.device
        counts = torch.tensor(rows.counts, device=device)
        real_BS = torch.arange(max(rows.counts), device=device) < counts[:, None]
        tokens_BS = torch.zeros_like(real_BS, dtype=torch.int64)
        tokens_BS[real_BS] = torch.tensor(rows.tokens, device=device)
        if depth < 0:
            record = None if choice_LNA is None else RoutingRecord()
            hidden_BSD = model.hidden_states(tokens_BS, cache=cache, counts=rows.counts, record=record)
            if choice_LNA is not None and record is not None:
                for i, layer in enumerate(sorted(record.choices)):
                    choice_LNA[i] = record.choices[layer][real_BS.flatten()]
        else:
            assert below_ND is not None, "a module reads the hidden states of the depth below"
            below_BSD = below_ND.new_zeros(*real_BS.shape, below_ND.shape[1])
            below_BSD[real_BS] = below_ND
            rotation, past = model.place_tokens(tokens_BS.shape[1], cache, rows.counts)
            hidden_BSD = model.mtp[depth](below_BSD, model.embed_tokens(tokens_BS), rotation, past=past)
            cache.advance(rows.counts)
        hidden_ND = hidden_BSD[real_BS]
        return hidden_ND, model.lm_head(hidden_ND[list(wanted)])

    def __call__(self, tokens_BS: Tensor, cache: LatentCache) -> tuple[Tensor, Tensor]:
        """Read as many tokens of every row; return [B, S, D] and [B, S, V]."""
        batch, count = tokens_BS.shape
        hidden_ND, logits_NV = self.read(Rows(tokens_BS.flatten().tolist(), [count] * batch), cache)
        return hidden_ND.view(batch, count, -1), logits_NV.view(batch, count, -1)


def split_rows(counts: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Say which rows are read together, and which of the tokens: the short ones all, a long one alone and in chunks."""
    short: tuple[list[int], list[int]] = [], []
    start = 0
    for row, count in enumerate(counts):
        indices, start = range(start, start + count), start + count
        if count > SERVES_UP_TO:
            for i in range(0, count, PREFILL_CHUNK):
                yield [row], list(indices[i : i + PREFILL_CHUNK])
        elif count:
            short[0].append(row)
            short[1].extend(indices)
    if short[0]:
        yield short
