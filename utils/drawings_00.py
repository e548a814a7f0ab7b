"""Drawings of chapter 00, in the language of `utils.whiteboard`; curves are in plots_02.py and plots_00.py.

Blue is what a token says, grey everything else, brown a mistake. Tints of blue are amounts.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch, Rectangle

from utils.whiteboard import arrow, board, box, matrix, note, tint


def _show(text: str) -> str:
    """Make a blank visible."""
    return text.replace(" ", "·")


def draw_merging(stages: dict[str, list[str]], title: str) -> None:
    """One line a stage: the same text cut into pieces, each as wide as its letters; longer pieces are darker."""
    n_letters = max(sum(map(len, pieces)) for pieces in stages.values())
    fig, ax = board(n_letters + 8.6, 1.9 * len(stages) + 0.3, title)
    for line, (name, pieces) in enumerate(stages.items()):
        x, y = 5.2, 1.9 * (len(stages) - line) - 0.95
        note(ax, 4.9, y, name, align="right", size=11)
        for piece in pieces:
            style = f"round,pad=0,rounding_size={0.2}"
            face = tint("content", 0.12 + 0.22 * (len(piece) - 1))
            ax.add_patch(
                FancyBboxPatch((x + 0.07, y - 0.5), len(piece) - 0.14, 1.0, boxstyle=style, fc=face, ec="white")
            )
            for i, letter in enumerate(piece):
                ax.text(x + i + 0.5, y, _show(letter), ha="center", va="center", fontsize=11)
            x += len(piece)
        note(ax, x + 0.4, y, f"{len(pieces)} tokens", align="left", size=11)
    plt.show()


def draw_lookup(words: list[str], tokens: list[int], table: np.ndarray) -> None:
    """Left the tokens of a text, in the middle the table, right the rows that they fetch."""
    fig, ax = board(22, 6.4, "Equal tokens fetch equal rows; on the way back their gradients meet there")
    top, cell = 5.4, 0.8
    grid = matrix(ax, 8.2, top, table, cell=cell, numbers=".1f", label="embed_tokens  [V, D]")
    for v in range(len(table)):
        note(ax, 8.0, top - cell * (v + 0.5), f"token {v}", align="right", size=10)
    for n, (word, token) in enumerate(zip(words, tokens)):
        y = 5.1 - 1.25 * n
        place = box(ax, 1.7, y, f"{_show(word)} = {token}", "ink", width=2.6, height=0.8)
        arrow(ax, place, (6.2, top - cell * (token + 0.5)), kind="content" if tokens.count(token) > 1 else "ink")
        matrix(ax, 16.6, y + 0.4, table[token][None], cell=cell, numbers=".1f")
        right = grid.x + grid.width / 2
        arrow(ax, (right + 0.1, top - cell * (token + 0.5)), (16.4, y), kind="ink")
    note(ax, 18.2, 6.0, "x  [N, D]", size=11)
    plt.show()


def draw_softmax(names: list[str], logits: np.ndarray, title: str) -> None:
    """Three rows of bars: the logits, what exp makes of them, and the shares of the sum."""
    raised = np.exp(logits)
    stages = {"logits z": logits, "raised exp z": raised, "shares p": raised / raised.sum()}
    fig, axes = plt.subplots(1, 3, figsize=(9, 2.9), layout="constrained")
    for ax, (name, values) in zip(axes, stages.items()):
        ax.bar(names, values, color=tint("content", 0.9 if name.startswith("shares") else 0.45), width=0.6)
        for i, v in enumerate(values):
            ax.annotate(f"{v:.2f}", (i, v), xytext=(0, 3 if v >= 0 else -13), textcoords="offset points", ha="center")
        ax.axhline(0, color="#3A3A3A", lw=0.8)
        ax.set(title=name, yticks=[])
        ax.grid(visible=False)
        ax.margins(y=0.25)
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def draw_pushes(names: list[str], prob: np.ndarray, target: int) -> None:
    """The shares as bars, and beside each how its logit is pushed, on the same scale."""
    title = "The truth is pushed up by what it lacks, the others down by what they had"
    fig, ax = board(4.6 * len(names) + 0.6, 5.0, title)
    ax.plot([0.4, 4.6 * len(names)], [1.0, 1.0], color="#BBBBBB", lw=1)
    for v, name in enumerate(names):
        x, push, top = 2.3 + 4.6 * v, float(v == target) - prob[v], 1.0 + 3.2 * prob[v]
        ax.add_patch(Rectangle((x - 1.2, 1.0), 1.1, top - 1.0, facecolor=tint("content", 0.8)))
        note(ax, x - 0.65, top + 0.25, f"{prob[v]:.2f}", size=11)
        arrow(ax, (x + 0.6, top), (x + 0.6, top + 3.2 * push), kind="content" if push > 0 else "ink")
        note(ax, x + 1.2, top + 1.6 * push, f"{push:+.2f}", size=11)
        note(ax, x - 0.1, 0.5, name + (" (came)" if v == target else ""), size=12)
    plt.show()


def draw_window(text: str, T: int, then: str) -> None:
    """The model on one board: T characters, their rows, one layer that sees them all, the scores of what comes next."""
    fig, ax = board(22, 8.4, f"The last {T} tokens fetch their rows; one layer reads them side by side")
    shown, start = text[-T:], 3.0
    note(ax, 2.6, 7.4, _show(text[:-T]) + " ", "ink", align="right", size=12)
    layer = box(ax, start + 1.1 * T / 2 - 0.55, 3.3, "tanh (W_up x)   [F]", "content", width=1.1 * T, height=1.0)
    for i, letter in enumerate(shown):
        x = start + 1.1 * i
        place = box(ax, x, 7.4, _show(letter), "ink", width=0.9, height=0.9)
        matrix(ax, x - 0.25, 6.1, np.array([[0.9], [0.2], [0.6]]), cell=0.5)
        arrow(ax, place, (x, 6.15))
        arrow(ax, (x, 4.55), (x, 3.85))
    head = box(ax, layer.x, 1.2, "lm_head", "content", width=3.0, height=0.9)
    arrow(ax, layer, head)
    scores = box(ax, 17.6, 1.2, "a score for every token  [V]", "content", width=7.2, height=0.9)
    arrow(ax, head, scores, "softmax")
    note(ax, 17.6, 2.3, f"what comes next? here it is  {_show(then)}", size=12)
    note(ax, start + 1.1 * T, 5.3, "embedding, D numbers a token", align="left", size=11)
    note(ax, start + 1.1 * T, 7.4, "the window", align="left", size=11)
    plt.show()


def draw_surprises(lines: dict[str, tuple[str, np.ndarray]], title: str, most: float = 3.0) -> None:
    """A text letter by letter, one line a reader; the darker a letter, the more it surprised."""
    width = max(len(text) for text, _ in lines.values())
    fig, ax = board(width + 9.2, 2.0 * len(lines) + 2.3, title)
    for i, (name, (text, nats)) in enumerate(lines.items()):
        y = 2.0 * (len(lines) - i) + 1.2
        note(ax, 7.2, y - 0.5, name, align="right", size=10)
        matrix(ax, 7.5, y, np.minimum(nats, most)[None], "content", cell=1.0, limit=most)
        for n, letter in enumerate(text):
            color = "white" if nats[n] > 0.55 * most else "#222222"
            ax.text(8.0 + n, y - 0.5, _show(letter), ha="center", va="center", fontsize=10, color=color)
        note(ax, 7.5 + width + 0.2, y - 0.5, f"Σ {nats.sum():.1f}", align="left", size=10)
    for i, v in enumerate((0.0, 1.0, 2.0, 3.0)):
        matrix(ax, 7.5 + 5 * i, 1.2, np.array([[v]]), "content", cell=0.9, limit=most)
        note(ax, 8.6 + 5 * i, 0.75, f"{v:g} nats", align="left", size=10)
    plt.show()


def draw_bits(formats: dict[str, tuple[int, int]]) -> None:
    """One line a format: a cell for each bit; the sign is white, the exponent light, the mantissa dark."""
    fig, ax = board(41, 2.1 * len(formats) + 2.4, "Exponent bits buy range, mantissa bits buy digits")
    shades = {"sign": 0.0, "exponent": 0.25, "mantissa": 0.85}
    for i, (name, (exponent, mantissa)) in enumerate(formats.items()):
        y = 2.1 * (len(formats) - i) + 1.1
        note(ax, 4.6, y - 0.5, name, align="right", size=12)
        for b, part in enumerate(["sign"] + ["exponent"] * exponent + ["mantissa"] * mantissa):
            face = tint("content", shades[part])
            ax.add_patch(Rectangle((5 + b, y - 1), 1, 1, facecolor=face, edgecolor="#6B7280", lw=0.7))
        text = f"{exponent} and {mantissa}"
        note(ax, 5.6 + 1 + exponent + mantissa, y - 0.5, text, align="left", size=11)
    for x, (part, shade) in zip((5, 12, 21), shades.items()):
        ax.add_patch(Rectangle((x, 0.2), 1, 1, facecolor=tint("content", shade), edgecolor="#6B7280", lw=0.7))
        note(ax, x + 1.4, 0.7, part, align="left", size=11)
    plt.show()
