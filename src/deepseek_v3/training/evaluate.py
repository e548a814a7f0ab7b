"""How good is it: bits per byte on held-out text, how often the MTP module guesses right, and what others reach.

    bits per byte = sum of -log2 P over all tokens / bytes of the text          the lower, the better

Texts are read in windows that overlap by half, so that every scored token has at least half a window of context. The
end of a text costs bits too and has no byte: the figure is a little on the high side. MTP acceptance is the share of
positions where the module's best guess two tokens ahead is what the main model says itself one step later.
"""

import gzip
import lzma
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.training.loss import IGNORED

WINDOWS_AT_ONCE = 16


@dataclass(frozen=True)
class Measurement:
    """Of held-out texts.

    Attributes:
        perplexity: e to the nats of a token, on average; each text's end is a token too.
        acceptance_by_depth: of each MTP module, the share of positions where its best guess is the main model's own.
    """

    bits_per_byte: float
    perplexity: float
    acceptance_by_depth: tuple[float, ...]
    n_bytes: int
    n_tokens: int

    @property
    def mtp_acceptance(self) -> float | None:
        """Of the first module; None without one."""
        return self.acceptance_by_depth[0] if self.acceptance_by_depth else None


def cut_evenly(texts: Sequence[str], n_bytes: int) -> list[str]:
    """Return the beginnings of the texts, about equally long, `n_bytes` in all; short ones leave room."""
    share = left = n_bytes
    for rank, text in enumerate(sorted(texts, key=len)):
        share = left // (len(texts) - rank)
        if len(text) > share:
            break
        left -= len(text)
    return [cut for text in texts if (cut := text[: max(share, 1)]).strip()]


def measure_model(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    seq_len: int,
    *,
    context: Callable[[], AbstractContextManager] = nullcontext,
    should_stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Measurement | None:
    """Measure a model without changing it; None if it was told to stop.

    Args:
        seq_len: tokens a window.
        context: entered around each forward pass, for autocast.
        advance: told the windows done since the last call, and how many there are.
    """
    windows = [window for text in texts for window in _windows(tokenizer, text, seq_len)]
    windows.sort(key=lambda window: len(window[0]))
    has_mtp = len(getattr(model, "mtp", [])) > 0
    nats, n_tokens, agreed = 0.0, 0, Agreement()
    device, training = next(model.parameters(), torch.empty(0)).device, model.training
    model.eval()
    try:
        for start in range(0, len(windows), WINDOWS_AT_ONCE):
            if should_stop():
                return None
            stacked = _stack(windows[start : start + WINDOWS_AT_ONCE], tokenizer.pad_id)
            tokens_BS, labels_BS = (tensor.to(device) for tensor in stacked)
            with torch.no_grad(), context():
                logits_BSV, mtp_logits = model(tokens_BS, mtp=True) if has_mtp else (model(tokens_BS), [])
            nats += float(
                F.cross_entropy(
                    logits_BSV.flatten(0, 1).float(), labels_BS.flatten(), ignore_index=IGNORED, reduction="sum"
                )
            )
            n_tokens += int((labels_BS != IGNORED).sum())
            agreed.add(logits_BSV, mtp_logits, labels_BS)
            advance(len(tokens_BS), len(windows))
    finally:
        model.train(training)
    n_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    perplexity = math.exp(nats / n_tokens) if n_tokens else math.nan
    return Measurement(nats / math.log(2) / n_bytes, perplexity, agreed.shares(), n_bytes, n_tokens)


def compressed_bits_per_byte(texts: Sequence[str]) -> dict[str, float]:
    """Return what gzip and xz need for the same bytes in one piece, at their strongest, nothing learned before."""
    data = "".join(texts).encode("utf-8", "replace")
    packed = {"gzip": gzip.compress(data, 9, mtime=0), "xz": lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)}
    return {name: 8 * len(result) / len(data) for name, result in packed.items()}


def _windows(tokenizer: Tokenizer, text: str, seq_len: int) -> list[tuple[list[int], list[int]]]:
    """Cut bos, text, eos into (tokens, labels); each token is a label once."""
    ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    stride = max(1, seq_len // 2)
    windows, scored = [], 1  # the first token is given, not predicted
    for start in range(0, len(ids), stride):
        tokens = ids[start : start + seq_len]
        targets = ids[start + 1 : start + 1 + len(tokens)]
        labels = [target if start + 1 + i >= scored else IGNORED for i, target in enumerate(targets)]
        scored = max(scored, start + 1 + len(targets))
        windows.append((tokens[: len(labels)], labels))
        if scored >= len(ids):
            break
    return windows


def _stack(windows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(tokens) for tokens, _ in windows)
    tokens_BS = torch.full((len(windows), longest), pad)
    labels_BS = torch.full((len(windows), longest), IGNORED)
    for row, (tokens, labels) in enumerate(windows):
        tokens_BS[row, : len(tokens)] = torch.tensor(tokens)
        labels_BS[row, : len(labels)] = torch.tensor(labels)
    return tokens_BS, labels_BS


class Agreement:
    """Counts, for each MTP module, where its best guess is what the main model says itself when it gets there."""

    def __init__(self) -> None:
        self.same: dict[int, int] = {}
        self.compared: dict[int, int] = {}

    def add(self, logits_BSV: Tensor, drafts: Sequence[Tensor], labels_BS: Tensor) -> None:
        """Count a batch: row i of module k against row i + 1 + k of the main model, where that one is scored."""
        for depth, draft_BSV in enumerate(drafts):
            ahead = depth + 1
            counted = labels_BS[:, ahead:] != IGNORED
            own = logits_BSV[:, ahead:].argmax(-1)
            same = draft_BSV[:, : own.shape[1]].argmax(-1) == own
            self.same[depth] = self.same.get(depth, 0) + int((same & counted).sum())
            self.compared[depth] = self.compared.get(depth, 0) + int(counted.sum())

    def shares(self) -> tuple[float, ...]:
        """The share of each depth that was compared at all."""
        return tuple(self.same[depth] / count for depth, count in sorted(self.compared.items()) if count)
