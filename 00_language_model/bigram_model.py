"""The bigram model: the smallest language model, a table that says for each token what tends to follow it.

    python bigram_model.py      a worked example to follow with a pencil, training, and the gradient check
    bigram_model.ipynb          the same on the whiteboard

Source: Shannon 1948, section 3 (text drawn from pair counts). The same table is learned here twice: by counting, and by
descent on the surprise, which finds the counts without being told of them.
Letters: N tokens, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
from surprise import softmax_forward, surprise_backward, surprise_forward
from text_tokens import ALPHABET, decode_characters, embed_backward, embed_forward, encode_characters, tell_stories


def count_pairs(token_N: np.ndarray, V: int) -> np.ndarray:
    """Count how often token v follows token u: [V, V], rows are what came first."""
    pair_VV = np.zeros((V, V))
    np.add.at(pair_VV, (token_N[:-1], token_N[1:]), 1)
    return pair_VV


def share_counts(pair_VV: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    """Turn counts into the probability of what follows, row by row.

        p_uv = (count_uv + smoothing) / sum_w (count_uw + smoothing)

    Args:
        smoothing: added to every count, so that what was never seen is unlikely instead of impossible.
    Raises:
        ValueError: nothing ever followed some token and there is no smoothing: 0 / 0.
    """
    raised_VV = pair_VV + smoothing
    total_V1 = raised_VV.sum(axis=1, keepdims=True)
    if (total_V1 == 0).any():
        raise ValueError(f"nothing ever followed token {int(np.argmin(total_V1))}; use smoothing > 0")
    return raised_VV / total_V1


def bigram_forward(logits_VV: np.ndarray, token_N: np.ndarray) -> tuple[float, tuple]:
    """Look up the row of each token and be surprised by the next one.

        L = mean_n -log softmax(table[token_n])[token_n+1]

    Returns:
        the loss in nats, and the cache.
    """
    row_NV, looked_up = embed_forward(token_N[:-1], logits_VV)  # logits and embedding in one: D = V
    loss, surprised = surprise_forward(row_NV, token_N[1:])
    return loss, (looked_up, surprised)


def bigram_backward(cache: tuple) -> np.ndarray:
    """Sum, in each row of the table, the slopes of all places that used it.

    Returns:
        dlogits_VV = (count_u softmax(table_u) - count_uv) / N, zero where the table says what was counted
    """
    looked_up, surprised = cache
    return embed_backward(surprise_backward(surprised), looked_up)


def train_bigram(token_N: np.ndarray, V: int, n_steps: int, rate: float) -> tuple[np.ndarray, list[float]]:
    """Start from a table of zeros, no idea at all, and step downhill on the whole text; return table and losses."""
    logits_VV, losses = np.zeros((V, V)), []
    for _ in range(n_steps):
        loss, cache = bigram_forward(logits_VV, token_N)
        losses.append(loss)
        logits_VV = logits_VV - rate * bigram_backward(cache)
    return logits_VV, losses


def write_tokens(
    next_logits: Callable[[list[int]], np.ndarray],
    start: list[int],
    n_tokens: int,
    rng: np.random.Generator,
    temperature: float = 1.0,
) -> list[int]:
    """Write: ask for the logits of the next token, draw it, append it, and ask again.

    Args:
        next_logits: tokens so far -> logits [V]; any model of this chapter.
        temperature: divides the logits. 1 draws as the model believes, towards 0 the likeliest token always wins.
    """
    tokens = list(start)
    for _ in range(n_tokens):
        prob_V, _ = softmax_forward(next_logits(tokens) / temperature)
        edge_V = np.cumsum(prob_V)
        tokens.append(int(np.searchsorted(edge_V, rng.random() * edge_V[-1], side="right")))
    return tokens


def main() -> None:
    """Count a word by pencil, let descent find the same numbers, then train on stories and write."""
    word = encode_characters("the heat ")
    told = {c: int(t) for c, t in zip("the a", encode_characters("the a"))}
    pairs = count_pairs(word, len(ALPHABET))
    print("'the heat ': after h comes e twice of twice; after e comes ' ' once and a once; after t comes h, then ' '")
    for first, then in (("h", "e"), ("e", " "), ("e", "a"), ("t", "h")):
        row = pairs[told[first]]
        print(f"  P({then!r} after {first!r}) = {row[told[then]]:g}/{row.sum():g}")

    rng = np.random.default_rng(0)
    token, unseen = (encode_characters(tell_stories(rng, n)) for n in (400, 200))
    V = len(ALPHABET)
    counted = share_counts(count_pairs(token, V), smoothing=0.1)
    table, losses = train_bigram(token, V, 200, 20.0)
    print(f"\n{len(token):,} characters of {V} kinds: no idea costs ln {V} = {np.log(V):.3f} nats a character")
    print("descent after 0, 10, 50, 199 steps:", ", ".join(f"{losses[t]:.3f}" for t in (0, 10, 50, 199)))
    print(f"on unseen stories: descent {bigram_forward(table, unseen)[0]:.3f}, counting", end=" ")
    print(f"{bigram_forward(np.log(counted), unseen)[0]:.3f}")
    start = encode_characters("the ").tolist()
    print("it writes:", decode_characters(write_tokens(lambda t: table[t[-1]], start, 60, rng)))

    logits, step = rng.standard_normal((V, V)), 1e-6 * rng.standard_normal((V, V))
    by_hand = bigram_backward(bigram_forward(logits, token)[1])
    up, down = (bigram_forward(logits + s, token)[0] for s in (step, -step))
    print(f"gradient check: central difference / by hand = {(up - down) / 2 / np.sum(by_hand * step):.8f}")


if __name__ == "__main__":
    main()
