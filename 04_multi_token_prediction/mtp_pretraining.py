"""Multi-token prediction as a training objective: which row reads what, which target it has, what it weighs.

Run it:    python mtp_pretraining.py
Notebook:  mtp_pretraining.ipynb
Source:    arXiv:2412.19437, section 2.2, Eq. (24) and (25); parallel heads: arXiv:2404.19737.
Letters:   B batch, S tokens of a window, T = S - 1 rows of the main model, D model width, V vocabulary.

A window of S = T + 1 tokens t_0 .. t_T. Counting from 0, and calling the main model depth 0:

    row i of depth k    reads h_i^{k-1} and E(t_{i+k}),   is trained on t_{i+k+1},   exists for i = 0 .. T - k - 1
    L_k   = -(1/T) sum_i log P_i^k[t_{i+k+1}]             T - k terms over T          Eq. (24)
            (in packed windows T is the number of main rows that count, and rows across documents do not)
    L_MTP = (weight / n_depths) sum_k L_k                                             Eq. (25)

DeepSeek's modules form a chain: depth k is told the tokens up to t_{i+k}, and its hidden row grows out of depth k - 1.
Meta's parallel heads all look at the same h_i and must guess over the gap. Both are here, under one signature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from cross_entropy import IGNORE, cross_entropy_forward, head_loss_backward, head_loss_forward
from mtp_module import MtpWeights, mtp_backward, mtp_forward, norm_rows_backward, norm_rows_forward


class Rows(NamedTuple):
    """The index table of one depth: entry r says what row r stands on, reads, and is trained on."""

    position: np.ndarray  # i, the place of the hidden row
    read: np.ndarray  # i + k, the token whose embedding goes in
    target: np.ndarray  # i + k + 1, the token to predict


@dataclass(frozen=True)
class Depth:
    """One prediction depth: what the module owns, and the block that it runs."""

    weights: MtpWeights
    block_forward: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Any]]
    block_backward: Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]


class AheadGradients(NamedTuple):
    """What the further depths send back: to the main model first, then to themselves, depth by depth."""

    dhidden_BTD: np.ndarray
    dembed_tokens_VD: np.ndarray
    dlm_head_VD: np.ndarray
    dweights: list[MtpWeights]
    dblocks: list[Any]


def index_rows(n_tokens: int, depth: int) -> Rows:
    """List the rows of a depth in a window of `n_tokens` tokens; depth 0 is the main model.

    Raises:
        ValueError: the window is too short for even one row with a target.
    """
    n_rows = n_tokens - 1 - depth
    if depth < 0 or n_rows < 1:
        raise ValueError(f"{n_tokens} tokens leave no row at depth {depth}; a window needs at least {depth + 2}")
    i = np.arange(n_rows)
    return Rows(position=i, read=i + depth, target=i + depth + 1)


def depth_targets(tokens_BS: np.ndarray, depth: int, document_BS: np.ndarray | None = None) -> np.ndarray:
    """Look up the targets of a depth; IGNORE where the row would reach from one document into the next.

    Args:
        document_BS: a number for each token's document in a packed window; None when the window is one document.
    """
    rows = index_rows(tokens_BS.shape[1], depth)
    target = tokens_BS[:, rows.target]
    if document_BS is None:
        return target
    same_document = document_BS[:, rows.position] == document_BS[:, rows.target]
    return np.where(same_document, target, IGNORE)


def count_main_rows(tokens_BS: np.ndarray, document_BS: np.ndarray | None = None) -> int:
    """Count the rows of the main model that have a target: the T that every depth divides by."""
    return max(int((depth_targets(tokens_BS, 0, document_BS) != IGNORE).sum()), 1)


def scatter_rows(dx: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Add up the gradient rows of equal tokens: the gradient [V, D] of the look-up `embed_tokens[tokens]`."""
    dx_ND, token_N = dx.reshape(-1, dx.shape[-1]), tokens.reshape(-1)
    order = np.argsort(token_N, kind="stable")
    token, start = np.unique(token_N[order], return_index=True)
    dembed_VD = np.zeros((vocab_size, dx.shape[-1]), dx.dtype)
    dembed_VD[token] = np.add.reduceat(dx_ND[order], start, axis=0)
    return dembed_VD


def mtp_loss_forward(
    depths: Sequence[Depth],
    embed_tokens_VD: np.ndarray,
    lm_head_VD: np.ndarray,
    hidden_BTD: np.ndarray,
    tokens_BS: np.ndarray,
    document_BS: np.ndarray | None = None,
    weight: float = 0.3,
) -> tuple[float, list[float], tuple]:
    """Run DeepSeek's causal chain of modules over a window and weigh its losses.

    Args:
        hidden_BTD: the main model's rows after its final norm, for t_0 .. t_{T-1}.
        tokens_BS: all S = T + 1 tokens of the window.
        weight: lambda of Eq. (25); V3 takes 0.3, and 0.1 for the last 4.8T tokens.
    Returns:
        the weighted loss, the plain loss of each depth, and the cache.
    Source: arXiv:2412.19437, Eq. (24), Eq. (25).
    """
    T, n_main_rows = check_window(hidden_BTD, tokens_BS), count_main_rows(tokens_BS, document_BS)
    losses, caches, hidden = [], [], hidden_BTD
    for k, depth in enumerate(depths, 1):
        rows = index_rows(T + 1, k)
        embedding = embed_tokens_VD[tokens_BS[:, rows.read]]
        position_BS = np.broadcast_to(rows.position, embedding.shape[:2])
        hidden, cache = mtp_forward(depth.weights, hidden[:, :-1], embedding, position_BS, depth.block_forward)
        target = depth_targets(tokens_BS, k, document_BS)
        loss, loss_cache = head_loss_forward(hidden, lm_head_VD, target, n_main_rows)  # V3 Eq. (24)
        losses.append(loss)
        caches.append((cache, loss_cache))
    scale = weight / max(len(depths), 1)
    return scale * sum(losses), losses, (depths, embed_tokens_VD, lm_head_VD, tokens_BS, scale, caches)  # V3 Eq. (25)


def mtp_loss_backward(dloss: float, cache: tuple) -> AheadGradients:
    """Differentiate the chain, deepest module first: each passes its hidden gradient down to the one before."""
    depths, embed_tokens_VD, lm_head_VD, tokens_BS, scale, caches = cache
    B, S = tokens_BS.shape
    V, D = embed_tokens_VD.shape
    dembed, dlm_head, dweights, dblocks = np.zeros_like(embed_tokens_VD), np.zeros_like(lm_head_VD), [], []
    dhidden = np.zeros((B, S - 1 - len(depths), D), embed_tokens_VD.dtype)
    for k, depth, (module_cache, loss_cache) in reversed(list(zip(range(1, S), depths, caches))):
        dout, dhead = head_loss_backward(dloss * scale, loss_cache)
        dhidden, dembedding, dweight, dblock = mtp_backward(dout + dhidden, module_cache, depth.block_backward)
        dhidden = np.pad(dhidden, ((0, 0), (0, 1), (0, 0)))  # the row that this depth had dropped
        dembed += scatter_rows(dembedding, tokens_BS[:, index_rows(S, k).read], V)
        dlm_head += dhead
        dweights.insert(0, dweight)
        dblocks.insert(0, dblock)
    return AheadGradients(dhidden, dembed, dlm_head, dweights, dblocks)


def parallel_loss_forward(
    depths: Sequence[Depth],
    embed_tokens_VD: np.ndarray,
    lm_head_VD: np.ndarray,
    hidden_BTD: np.ndarray,
    tokens_BS: np.ndarray,
    document_BS: np.ndarray | None = None,
    weight: float = 0.3,
) -> tuple[float, list[float], tuple]:
    """Run Meta's parallel heads: every depth has its own block on the same rows, and reads no further token.

        P^k_{i+k+1} = softmax(lm_head norm_k(block_k(h_0 .. h_i)))

    Of a depth's weights only `shared_head_norm` is used. The heads are independent of each other given h_i.
    Source: arXiv:2404.19737, section 2.
    """
    T, n_main_rows = check_window(hidden_BTD, tokens_BS), count_main_rows(tokens_BS, document_BS)
    losses, caches = [], []
    for k, depth in enumerate(depths, 1):
        rows = index_rows(T + 1, k)
        position_BS = np.broadcast_to(rows.position, (len(tokens_BS), len(rows.position)))
        block_out, block_cache = depth.block_forward(hidden_BTD[:, rows.position], position_BS)
        out, norm_cache = norm_rows_forward(block_out, depth.weights.shared_head_norm)
        target = depth_targets(tokens_BS, k, document_BS)
        loss, loss_cache = head_loss_forward(out, lm_head_VD, target, n_main_rows)
        losses.append(loss)
        caches.append((block_cache, norm_cache, loss_cache))
    scale = weight / max(len(depths), 1)
    return scale * sum(losses), losses, (depths, embed_tokens_VD, lm_head_VD, hidden_BTD.shape, scale, caches)


def parallel_loss_backward(dloss: float, cache: tuple) -> AheadGradients:
    """Differentiate the heads; they meet only in the shared rows and the shared output head."""
    depths, embed_tokens_VD, lm_head_VD, shape, scale, caches = cache
    dhidden, dlm_head, dweights, dblocks = np.zeros(shape, lm_head_VD.dtype), np.zeros_like(lm_head_VD), [], []
    for depth, (block_cache, norm_cache, loss_cache) in zip(depths, caches):
        dout, dhead = head_loss_backward(dloss * scale, loss_cache)
        dblock_out, dnorm = norm_rows_backward(dout, norm_cache)
        dx, dblock = depth.block_backward(dblock_out, block_cache)
        dhidden[:, : dx.shape[1]] += dx
        dlm_head += dhead
        w = depth.weights
        unused = np.zeros_like(w.enorm), np.zeros_like(w.hnorm), np.zeros_like(w.eh_proj)
        dweights.append(MtpWeights(*unused, dnorm))
        dblocks.append(dblock)
    return AheadGradients(dhidden, np.zeros_like(embed_tokens_VD), dlm_head, dweights, dblocks)


def check_window(hidden_BTD: np.ndarray, tokens_BS: np.ndarray) -> int:
    """Return T, or say how the rows and the tokens of a window fail to fit."""
    (B, T), (tokens_B, S) = hidden_BTD.shape[:2], tokens_BS.shape
    if (tokens_B, S) != (B, T + 1):
        raise ValueError(
            f"hidden rows {B} x {T} need {B} x {T + 1} tokens (the last is only a target), got {tokens_BS.shape}"
        )
    return T


def main() -> None:
    """Print the index table of a six-token window, its loss terms, and a gradient against central differences."""
    print("six tokens t0..t5 in two documents: t0 t1 t2 t3 | t4 t5")
    tokens_BS, document_BS = np.array([[4, 1, 3, 0, 2, 1]]), np.array([[0, 0, 0, 0, 1, 1]])
    for k in range(3):
        targets = depth_targets(tokens_BS, k, document_BS)[0]
        print(f"depth {k}: {'row reads -> target' if k == 0 else ''}")
        for i, read, target, token in zip(*index_rows(6, k), targets):
            source = f"t{read}" if k == 0 else f"h{i}, E(t{read})"
            print(
                f"   at {i}: {source:>10} -> t{target}{'   not counted: crosses documents' if token == IGNORE else ''}"
            )

    rng = np.random.default_rng(0)
    embed, head, hidden = (rng.standard_normal(shape) for shape in ((5, 4), (5, 4), (1, 5, 4)))

    def running_mean(x, position):  # a causal block without weights
        return x.cumsum(axis=1) / (position[..., None] + 1), position

    def running_mean_backward(dy, position):
        return (dy / (position[..., None] + 1))[:, ::-1].cumsum(axis=1)[:, ::-1], None

    depths = [Depth(MtpWeights.init(rng, 4), running_mean, running_mean_backward) for _ in range(2)]
    for name, forward, backward in (
        ("causal chain", mtp_loss_forward, mtp_loss_backward),
        ("parallel heads", parallel_loss_forward, parallel_loss_backward),
    ):
        loss, losses, cache = forward(depths, embed, head, hidden, tokens_BS, document_BS)
        print(f"{name}: L1 {losses[0]:.4f}, L2 {losses[1]:.4f}, 0.3/2 (L1 + L2) = {loss:.4f}")
        gradients, worst, h = backward(1.0, cache), 0.0, 6e-6
        for array, gradient in ((hidden, gradients[0]), (embed, gradients[1]), (head, gradients[2])):
            for index in np.ndindex(array.shape):
                kept, sides = array[index], []
                for step in (h, -h):
                    array[index] = kept + step
                    sides.append(forward(depths, embed, head, hidden, tokens_BS, document_BS)[0])
                array[index] = kept
                worst = max(worst, abs((sides[0] - sides[1]) / (2 * h) - gradient[index]))
        print(f"   dhidden, dembed, dlm_head: largest difference from central differences {worst:.1e}")
    uniform = cross_entropy_forward(np.zeros((5, 5)), tokens_BS[0, 1:])[0]
    print(f"for comparison, a model that knows nothing pays log 5 = {uniform:.4f} a token")


if __name__ == "__main__":
    main()
