"""A small language model with an MTP module that learns, in NumPy, from the text that every Python carries.

Run it:    python small_language_model.py
Notebook:  small_language_model.ipynb
Source:    arXiv:2412.19437, section 2.2 and Fig. 3, around this chapter's compact block.
Letters:   B batch, S tokens of a window, T = S - 1 rows, D model width, V vocabulary.

Characters are the tokens (95 printable ones and the line break), the text is `pydoc_data.topics`: the language
reference that `help()` shows. A topic is a document; one in ten, by the hash of its name, is held out. The text differs
between Python versions, so every number here does too; `digest` names the text that a run has seen.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np
from causal_block import CompactBlock, KeyValueCache, compact_block_backward, compact_block_forward
from cross_entropy import head_loss_backward, head_loss_forward
from mtp_module import MtpWeights, mtp_forward, norm_rows_backward, norm_rows_forward
from mtp_pretraining import Depth, depth_targets, mtp_loss_backward, mtp_loss_forward, scatter_rows

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
VOCAB_SIZE = len(ALPHABET)  # 96


def encode_text(text: str) -> np.ndarray:
    """Turn text into token numbers; characters outside the alphabet are left out."""
    return np.array([0 if c == "\n" else ord(c) - 31 for c in text if c == "\n" or " " <= c <= "~"], dtype=np.int64)


def decode_text(tokens: np.ndarray) -> str:
    """Turn token numbers back into text."""
    return "".join(ALPHABET[t] for t in tokens)


class PackedText(NamedTuple):
    """Documents laid end to end: the tokens, and the number of the document that each belongs to."""

    tokens: np.ndarray
    document: np.ndarray
    digest: str


def read_topics(*, held_out: bool = False) -> PackedText:
    """Pack the topics of one side of the split, in the order of their names."""
    names = [n for n in sorted(topics) if (zlib.crc32(n.encode()) % 10 == 0) == held_out]
    texts = [encode_text(topics[n].strip() + "\n") for n in names]
    tokens = np.concatenate(texts)
    document = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
    return PackedText(tokens, document, hashlib.sha256(tokens.astype(np.uint8).tobytes()).hexdigest()[:12])


def draw_windows(
    rng: np.random.Generator, text: PackedText, n_windows: int, n_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut windows at random places, across documents as they come: (tokens_BS, document_BS)."""
    place = rng.integers(0, len(text.tokens) - n_tokens + 1, n_windows)[:, None] + np.arange(n_tokens)
    return text.tokens[place], text.document[place]


def draw_prompts(rng: np.random.Generator, text: PackedText, n_prompts: int, n_tokens: int = 24) -> list[list[int]]:
    """Cut prompts out of running prose: places without line breaks, double spaces or tables."""
    prompts: list[list[int]] = []
    while len(prompts) < n_prompts:
        place = int(rng.integers(0, len(text.tokens) - n_tokens))
        piece = text.tokens[place : place + n_tokens]
        prose = decode_text(piece)
        if prose.replace(" ", "").isalpha() and "  " not in prose:
            prompts.append(piece.tolist())
    return prompts


@dataclass(frozen=True)
class SmallModel:
    """The main model, and its MTP modules with a block each; embedding and head exist once."""

    embed_tokens: np.ndarray  # [V, D]
    layers: tuple[CompactBlock, ...]
    norm: np.ndarray  # [D]
    lm_head: np.ndarray  # [V, D]
    mtp: tuple[MtpWeights, ...]
    mtp_blocks: tuple[CompactBlock, ...]
    n_heads: int

    @classmethod
    def init(
        cls,
        rng: np.random.Generator,
        *,
        vocab_size: int = VOCAB_SIZE,
        hidden_size: int = 64,
        n_heads: int = 4,
        n_layers: int = 2,
        n_depths: int = 1,
        dtype: type = np.float32,
    ) -> "SmallModel":
        """Draw a model; the MLP is four times as wide as the model."""
        V, D = vocab_size, hidden_size
        block = lambda: CompactBlock.init(rng, D, 4 * D, dtype)  # noqa: E731
        embed = rng.standard_normal((V, D)).astype(dtype) * dtype(0.5)
        head = (rng.standard_normal((V, D)) / np.sqrt(D)).astype(dtype) * dtype(0.3)
        layers = tuple(block() for _ in range(n_layers))
        modules = tuple(MtpWeights.init(rng, D, dtype) for _ in range(n_depths))
        return cls(embed, layers, np.ones(D, dtype), head, modules, tuple(block() for _ in modules), n_heads)


def name_arrays(tree: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Walk dataclasses and tuples down to their arrays: ("layers.0.o_proj", array), ..."""
    if isinstance(tree, np.ndarray):
        yield prefix, tree
    elif is_dataclass(tree):
        for field in fields(tree):
            yield from name_arrays(getattr(tree, field.name), f"{prefix}.{field.name}".lstrip("."))
    elif isinstance(tree, (tuple, list)):
        for i, part in enumerate(tree):
            yield from name_arrays(part, f"{prefix}.{i}")


def cast_arrays(tree: Any, dtype: type) -> Any:
    """Copy a model in another dtype; float64 for decoding, so that rounding cannot decide between two tokens."""
    if isinstance(tree, np.ndarray):
        return tree.astype(dtype)
    if isinstance(tree, tuple):
        return tuple(cast_arrays(part, dtype) for part in tree)
    if is_dataclass(tree):
        return replace(tree, **{f.name: cast_arrays(getattr(tree, f.name), dtype) for f in fields(tree)})
    return tree


def main_forward(model: SmallModel, tokens_BT: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Run the main model: its rows after the final norm, ready for the head and for MTP depth 1."""
    x = model.embed_tokens[tokens_BT]
    position_BT, caches = np.broadcast_to(np.arange(x.shape[1]), tokens_BT.shape), []
    for layer in model.layers:
        x, cache = compact_block_forward(layer, x, position_BT, model.n_heads)
        caches.append(cache)
    hidden_BTD, norm_cache = norm_rows_forward(x, model.norm)
    return hidden_BTD, (tokens_BT, caches, norm_cache)


def main_backward(dhidden_BTD: np.ndarray, cache: tuple) -> tuple[np.ndarray, list[CompactBlock], np.ndarray]:
    """Differentiate the main model: (d of the embedding rows, of the layers, of the final norm)."""
    _, caches, norm_cache = cache
    dx, dnorm = norm_rows_backward(dhidden_BTD, norm_cache)
    dlayers = []
    for block_cache in reversed(caches):
        dx, dlayer = compact_block_backward(dx, block_cache)
        dlayers.insert(0, dlayer)
    return dx, dlayers, dnorm


def loss_and_gradients(
    model: SmallModel,
    tokens_BS: np.ndarray,
    document_BS: np.ndarray | None = None,
    *,
    weight: float = 0.3,
    ahead: tuple[Callable, Callable] = (mtp_loss_forward, mtp_loss_backward),
) -> tuple[list[float], SmallModel]:
    """Differentiate main loss + weighted losses of the further depths.

    Args:
        ahead: the forward and backward of the further depths, DeepSeek's chain or Meta's parallel heads.
    Returns:
        the plain losses, main model first, and the gradients in the shape of the model.
    """
    hidden, main_cache = main_forward(model, tokens_BS[:, :-1])
    target = depth_targets(tokens_BS, 0, document_BS)
    main_loss, head_cache = head_loss_forward(hidden, model.lm_head, target)
    run_block = partial(compact_block_forward, n_heads=model.n_heads)
    depths = [Depth(w, partial(run_block, b), compact_block_backward) for w, b in zip(model.mtp, model.mtp_blocks)]
    shared = model.embed_tokens, model.lm_head
    _, losses, ahead_cache = ahead[0](depths, *shared, hidden, tokens_BS, document_BS, weight)
    d = ahead[1](1.0, ahead_cache)
    dhidden, dlm_head = head_loss_backward(1.0, head_cache)
    dx, dlayers, dnorm = main_backward(dhidden + d.dhidden_BTD, main_cache)
    dembed = scatter_rows(dx, tokens_BS[:, :-1], len(model.embed_tokens)) + d.dembed_tokens_VD
    gradients = SmallModel(
        dembed, tuple(dlayers), dnorm, dlm_head + d.dlm_head_VD, tuple(d.dweights), tuple(d.dblocks), model.n_heads
    )
    return [main_loss, *losses], gradients


class AdamW:
    """Adam with decoupled weight decay on matrices; changes the arrays in place."""

    def __init__(self, arrays: dict[str, np.ndarray], decay: float = 0.1):
        self.arrays, self.decay, self.n_steps = arrays, decay, 0
        self.mean = {n: np.zeros_like(a) for n, a in arrays.items()}
        self.square = {n: np.zeros_like(a) for n, a in arrays.items()}

    def step(self, gradients: dict[str, np.ndarray], rate: float, clip: float = 1.0) -> None:
        """Take one step with the gradients scaled down to a joint length of at most `clip`."""
        self.n_steps += 1
        length = np.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
        shrink = min(1.0, clip / (length + 1e-12))
        for name, array in self.arrays.items():
            g = gradients[name] * array.dtype.type(shrink)
            self.mean[name] += (g - self.mean[name]) * array.dtype.type(0.1)
            self.square[name] += (g * g - self.square[name]) * array.dtype.type(0.05)
            mean, square = self.mean[name] / (1 - 0.9**self.n_steps), self.square[name] / (1 - 0.95**self.n_steps)
            decay = self.decay * array if array.ndim > 1 else 0.0
            array -= array.dtype.type(rate) * (mean / (np.sqrt(square) + array.dtype.type(1e-8)) + decay)


def train_model(
    model: SmallModel,
    text: PackedText,
    n_steps: int,
    *,
    seed: int = 0,
    n_windows: int = 8,
    n_tokens: int = 130,
    rate: float = 1e-2,
    weight: float = 0.3,
    ahead: tuple[Callable, Callable] = (mtp_loss_forward, mtp_loss_backward),
) -> np.ndarray:
    """Train in place, with a short warm-up and a cosine down to a tenth; return the losses [n_steps, 1 + depths]."""
    rng, optimizer, history = np.random.default_rng(seed), AdamW(dict(name_arrays(model))), []
    for step in range(n_steps):
        windows = draw_windows(rng, text, n_windows, n_tokens)
        losses, gradients = loss_and_gradients(model, *windows, weight=weight, ahead=ahead)
        cosine = 0.55 + 0.45 * np.cos(np.pi * step / n_steps)
        optimizer.step(dict(name_arrays(gradients)), rate * min(1.0, (step + 1) / 20) * cosine)
        history.append(losses)
    return np.array(history)


class DecodingSession:
    """One sequence being written: the model with its caches, as `speculative_decoding` wants it."""

    def __init__(self, model: SmallModel):
        self.model = model
        self.target_caches = [KeyValueCache() for _ in model.layers]
        self.draft_cache = KeyValueCache()

    def read(self, tokens_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Feed tokens to the main model, after those in its cache: (logits_SV, hidden_SD)."""
        x = self.model.embed_tokens[np.asarray(tokens_S)][None]
        position = self.target_caches[0].length + np.arange(x.shape[1])[None]
        for layer, cache in zip(self.model.layers, self.target_caches):
            x, _ = compact_block_forward(layer, x, position, self.model.n_heads, cache)
        hidden = norm_rows_forward(x, self.model.norm)[0][0]
        return hidden @ self.model.lm_head.T, hidden

    def draft(self, hidden_SD: np.ndarray, tokens_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Feed (hidden row i, token i + 1) pairs to the MTP module, after those in its cache: (logits_SV, out_SD)."""
        embedding = self.model.embed_tokens[np.asarray(tokens_S)][None]
        position = self.draft_cache.length + np.arange(len(hidden_SD))[None]
        run_block = partial(
            compact_block_forward, self.model.mtp_blocks[0], n_heads=self.model.n_heads, kv=self.draft_cache
        )
        out = mtp_forward(self.model.mtp[0], hidden_SD[None], embedding, position, run_block)[0][0]
        return out @ self.model.lm_head.T, out

    def roll_back(self, n_target: int, n_draft: int) -> None:
        """Forget every row after the first `n_target` of the main caches and `n_draft` of the module's."""
        for cache in self.target_caches:
            cache.truncate(n_target)
        self.draft_cache.truncate(n_draft)


def main() -> None:
    """Train for some seconds and print what main model and module have learned, on text that neither has seen."""
    text, unseen = read_topics(), read_topics(held_out=True)
    model = SmallModel.init(np.random.default_rng(0))
    n_parameters = sum(a.size for _, a in name_arrays(model))
    print(f"{len(text.tokens):,} characters of pydoc_data.topics (digest {text.digest}), {n_parameters:,} parameters")
    history = train_model(model, text, 150)
    for step in (0, 20, 60, 149):
        print(f"step {step:>3}: main loss {history[step, 0]:.3f}, one token further {history[step, 1]:.3f}")
    windows = draw_windows(np.random.default_rng(1), unseen, 32, 130)
    losses, gradients = loss_and_gradients(model, *windows)
    print(f"held-out topics: main {losses[0]:.3f}, module {losses[1]:.3f} (knowing nothing: log 96 = {np.log(96):.3f})")
    silent = [name for name, g in name_arrays(gradients) if not np.abs(g).max() > 0]
    print(f"parameters without a gradient: {silent or 'none'}")


if __name__ == "__main__":
    main()
