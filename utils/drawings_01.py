"""Drawings of chapter 01, in the language of `utils.whiteboard`; curves are in plots_01.py.

Blue is what tokens say and fetch, grey everything else, brown a mistake beside what is right.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from utils.plots_02 import color_of
from utils.whiteboard import COLORS, INK, Box, arrow, board, box, matrix, note


def draw_one_query(
    query: np.ndarray, key: np.ndarray, score: np.ndarray, prob: np.ndarray, value: np.ndarray, out: np.ndarray
) -> None:
    """One query, two keys, two values: every number on the way from the question to the answer."""
    parts = [  # label, numbers, upper left corner, format
        ("query", query, 0.4, 3.3, ".0f"),
        ("the two keys", key.T, 5.2, 4.5, ".1f"),
        ("scores", score, 9.4, 3.3, ".1f"),
        ("shares", prob, 13.6, 3.3, ".2f"),
        ("values", value, 16.6, 3.7, ".0f"),
        ("result", out, 19.4, 3.3, ".0f"),
    ]
    fig, ax = board(21.4, 5.4, "One query meets two keys and takes the mean of two values")
    drawn = [matrix(ax, x, y, array, cell=0.8, numbers=form, label=label) for label, array, x, y, form in parts]
    for start, end in ((1, 2), (2, 3), (4, 5)):
        arrow(ax, drawn[start], drawn[end])
    for x in (4.4, 15.9):
        note(ax, x, 2.9, "×", size=15)
    note(ax, 8.2, 2.3, r"$/\sqrt{4}$", size=12)
    note(ax, 12.25, 2.4, "softmax", size=10)
    for x, text in [(2.0, "what I look for"), (6.0, "what each offers"), (10.2, "how well it fits"), (14.4, "1 : 3")]:
        note(ax, x, 0.6, text, "ink")
    note(ax, 18.8, 0.6, "¼ (4, 0) + ¾ (0, 8) = (1, 6)", "content", size=11)
    plt.show()


def draw_who(lines: dict[str, tuple[list[str], np.ndarray, int]], title: str) -> None:
    """Sentences, one a line; arcs run from the word that asks to the words that it looks at, as strong as the share.

    Args:
        lines: a name -> (words, shares over the words, which word asks).
    """
    n_words = max(len(words) for words, _, _ in lines.values())
    fig, ax = board(2.3 * n_words + 4.6, 3.3 * len(lines) + 0.2, title)
    for i, (name, (words, share, asks)) in enumerate(lines.items()):
        y = 3.3 * (len(lines) - i) - 2.6
        note(ax, 4.0, y, name, align="right", size=11)
        places = [
            box(ax, 5.5 + 2.3 * n, y, w, "content" if n == asks else "ink", width=2.0) for n, w in enumerate(words)
        ]
        for n, (word, s) in enumerate(zip(places, share)):
            if n == asks or s < 0.02:
                continue
            start, end = (places[asks].x, y + 0.45), (word.x, y + 0.45)
            style = {"arrowstyle": "-|>", "mutation_scale": 14, "color": COLORS["content"]}
            bend = f"arc3,rad={0.32 if n < asks else -0.32}"
            ax.add_patch(
                FancyArrowPatch(start, end, connectionstyle=bend, lw=0.8 + 4 * s, alpha=0.25 + 0.75 * s, **style)
            )
            note(ax, word.x, y - 0.72, f"{s:.0%}", "content", size=10)
    plt.show()


def draw_growing_shares(words: list[str], grown: list[np.ndarray]) -> None:
    """Who looks at whom after each token has arrived; the new row is framed, the others have not changed."""
    fig, ax = board(27, 6.9, "A new token adds one row; the rows above it never change")
    x = 0.9
    for n, prob in enumerate(grown, 1):
        seen = np.where(np.tri(n) > 0, prob, np.nan)
        matrix(ax, x, 5.9, seen, cell=0.95, numbers=".1f" if n > 3 else ".2f", limit=1.0)
        note(ax, x + n * 0.95 / 2, 6.4, f"{n} token" + "s" * (n > 1), "ink", size=9)
        bottom = 5.9 - n * 0.95
        ax.add_patch(Rectangle((x, bottom), n * 0.95, 0.95, fill=False, edgecolor=INK, linewidth=2, zorder=3))
        note(ax, x + n * 0.95 / 2, bottom - 0.4, f"+ {words[n - 1]}", "content", size=10)
        x += n * 0.95 + 0.95
    plt.show()


def draw_offsets(masks: dict[str, np.ndarray]) -> None:
    """Masks of texts with older keys, side by side; hatched means hidden."""
    fig, ax = board(20, 5.4, "With older keys the diagonal ends in the last corner")
    for x, (name, mask) in zip((0.8, 7.0, 13.6), masks.items()):
        S, T = mask.shape
        grid = matrix(ax, x, 4.3, np.where(mask, 0.5, np.nan), cell=0.8, limit=1.0, label=f"S = {S}, T = {T}")
        for s in range(S):
            note(ax, x - 0.15, 4.3 - 0.8 * (s + 0.5), f"q{T - S + s}", align="right", size=9)
        note(ax, grid.x, 0.5, name, "ink", size=11)
    plt.show()


def _numbered(ax: Axes, x: float, y: float, numbers: np.ndarray, shades: np.ndarray, text: str, kind: str) -> Box:
    """Cells tinted by the head that they should belong to, with the counted numbers in them."""
    outline = matrix(ax, x, y, shades, color_of(kind), cell=0.8, limit=1.0)
    note(ax, outline.x, y + 0.4, text, size=10)
    for (r, c), n in np.ndenumerate(numbers):
        dark = shades[r, c] > 0.55
        ax.text(
            x + (c + 0.5) * 0.8, y - (r + 0.5) * 0.8, str(n), ha="center", va="center", color="white" if dark else INK
        )
    return outline


def draw_split(counted: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> None:
    """Two tokens of width 6 cut into two heads; dark numbers should be head 0's. Right beside wrong."""
    shades = np.array([[0.75] * 3 + [0.25] * 3] * 2)
    fig, ax = board(22, 6.5, "Cut, then exchange: a head holds a piece of every token")
    start = _numbered(ax, 0.8, 4.1, counted, shades, "[S, H K]: rows are tokens", "content")
    for h in range(2):
        y = 5.8 - 2.9 * h
        end = _numbered(ax, 9.2, y, right[h], shades[:, 3 * h : 3 * h + 3], f"head {h}: [S, K]", "content")
        arrow(ax, (start.x + start.width / 2, start.y), (end.x - end.width / 2, end.y))
        _numbered(ax, 16.4, y, wrong[h], shades.ravel()[wrong[h]], f"“head {h}”", "wrong")
    note(ax, 10.4, 0.6, "right: reshape(S, H, K),\nthen exchange S and H", "content", size=10)
    ax.text(
        17.6,
        0.6,
        "wrong: reshape(H, S, K)\nhead 0 is all of token 0",
        ha="center",
        va="center",
        color=color_of("wrong"),
    )
    plt.show()


def draw_swiglu() -> None:
    """The gated MLP as a board: one row, two branches, one product."""
    fig, ax = board(20, 5.4, "One row, two branches, one product")
    x = box(ax, 1.6, 2.6, "x\n[D]", "content", height=1.2)
    gate = box(ax, 6.0, 4.2, "gate_proj\n[F, D]", width=2.8, height=1.2)
    up = box(ax, 6.0, 1.0, "up_proj\n[F, D]", width=2.8, height=1.2)
    silu = box(ax, 10.0, 4.2, "silu", "content", width=2.4, height=1.0)
    times = box(ax, 12.8, 2.6, "×", "content", width=1.0, height=1.0, size=15, filled=True)
    down = box(ax, 15.6, 2.6, "down_proj\n[D, F]", width=2.8, height=1.2)
    y = box(ax, 18.8, 2.6, "y\n[D]", "content", height=1.2, width=1.6)
    for start, end in ((x, gate), (x, up), (gate, silu), (silu, times), (up, times), (times, down), (down, y)):
        arrow(ax, start, end)
    note(ax, 13.4, 4.4, "how far the tap is open", "ink", size=11)
    note(ax, 12.6, 0.8, "what would flow through it", "ink", size=11)
    plt.show()


def draw_block() -> None:
    """The stream, and two readers beside it that only ever add."""
    fig, ax = board(24, 6.6, "Two readers beside one stream")
    ax.plot([0.6, 22.6], [1.6, 1.6], color=COLORS["content"], linewidth=5, solid_capstyle="round", zorder=0)
    for x, norm, reader in ((2.2, "input_\nlayernorm", "attention"), (12.8, "post_attention_\nlayernorm", "SwiGLU")):
        plus = box(ax, x + 8.2, 1.6, "+", "content", width=0.9, height=0.9, size=15, filled=True)
        first = box(ax, x + 1.6, 4.6, norm, width=3.4, height=1.3, size=9.5)
        second = box(ax, x + 6.2, 4.6, reader, "content", width=3.0, height=1.3)
        arrow(ax, (x - 0.6, 1.6), (x + 0.6, 3.9))
        arrow(ax, first, second)
        arrow(ax, second, plus)
    for x, text in ((1.4, "x"), (11.6, "x + attention(norm(x))"), (22.0, "out")):
        note(ax, x, 0.7, text, "content", size=11.5)
    plt.show()


def draw_lanes(words: list[str], shares: list[np.ndarray], title: str) -> None:
    """Each token in its lane; lines from whom it listens to, as strong as the share."""
    n = len(words)
    fig, ax = board(6.2 + 4.6 * len(shares), 1.0 * n + 1.6, title)
    lanes = n + 0.2 - np.arange(n)
    for word, lane in zip(words, lanes):
        note(ax, 1.9, lane, word, size=11, align="right")
        ax.plot([2.1, 5.4 + 4.6 * len(shares)], [lane, lane], color=COLORS["ink"], linewidth=1.0, zorder=0)
    for i, share in enumerate(shares):
        x = 2.6 + 4.6 * i
        note(ax, x + 1.9, n + 1.1, f"block {i}", "ink", size=11)
        for s, t in np.ndindex(share.shape):
            if s != t and share[s, t] > 0.02:
                ax.plot([x, x + 1.8], [lanes[t], lanes[s]], color=COLORS["content"], lw=0.8 + 3 * share[s, t])
        for lane in lanes:
            box(ax, x + 3.0, lane, "think", "ink", width=1.4, height=0.62, size=8.5)
    note(ax, 3.5, 0.4, "listen", "content", size=11)
    plt.show()
