"""Drawings of chapter 05: blue is what an FP8 code says, grey what is wider and the scales, brown a mistake."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from utils.plots_02 import WRONG
from utils.whiteboard import COLORS, INK, arrow, board, box, matrix, note, tint


def _bits(ax, x: float, y: float, text: str, faces: list, *, cell: float = 0.9) -> None:
    """Cells with a bit in each, as wide as `cell`."""
    for i, (bit, (face, ink)) in enumerate(zip(text, faces)):
        ax.add_patch(
            Rectangle((x + i * cell, y - cell / 2), cell, cell, facecolor=face, edgecolor="white", linewidth=2)
        )
        ax.text(x + (i + 0.5) * cell, y, bit, ha="center", va="center", color=ink, fontsize=13)


def draw_code(bits: str, title: str) -> None:
    """The eight bits of an E4M3 code, and what each field says."""
    fig, ax = board(12, 3.0, title)
    light, dark = (tint("content", 0.35), INK), (COLORS["content"], "white")
    _bits(ax, 2.0, 1.7, bits, [("#E5E7EB", INK), *[light] * 4, *[dark] * 3])
    note(ax, 2.45, 0.75, "sign", "ink")
    note(ax, 4.7, 0.75, f"exponent field {int(bits[1:5], 2)}: $2^{{{int(bits[1:5], 2)} - 7}}$", "content")
    note(ax, 8.3, 0.75, f"mantissa field {int(bits[5:], 2)}: $1 + {int(bits[5:], 2)}/8$", "content")
    plt.show()


def draw_tiles() -> None:
    """Who shares a scale: a row of four numbers of X, a block of four by four of W."""
    fig, ax = board(15, 5.4, "Every tile has a scale of its own")
    rng = np.random.default_rng(3)
    x, w = np.abs(rng.standard_normal((4, 8))), np.abs(rng.standard_normal((8, 8)))
    matrix(ax, 0.3, 3.9, x, "content", label="X: tokens x channels")
    matrix(ax, 4.8, 3.9, x.reshape(4, 2, 4).max(axis=2), "ink", label="scales: 1 x 4")
    matrix(ax, 7.6, 4.4, w, "content", label="W: out x in")
    matrix(ax, 12.2, 3.9, w.reshape(2, 4, 2, 4).max(axis=(1, 3)), "ink", label="scales: 4 x 4")
    note(ax, 3.0, 1.2, "an outlier costs\nits own 4 numbers")
    note(ax, 12.7, 2.2, "one scale for\n16 numbers")
    ax.plot([2.3, 2.3], [1.9, 3.9], color=INK, lw=1.5)
    for y in (1.9, 2.4, 2.9, 3.4, 3.9):
        ax.plot([0.3, 4.3], [y, y], color=INK, lw=1)
    ax.plot([9.6, 9.6], [0.4, 4.4], color=INK, lw=1.5)
    ax.plot([7.6, 11.6], [2.4, 2.4], color=INK, lw=1.5)
    plt.show()


def draw_alignment() -> None:
    """Four binary terms below each other; what lies right of the unit is cut."""
    terms = [
        ("sum so far", "1011010"),
        ("product 1", "  10110"),
        ("product 2", "    1101"),
        ("product 3", "      11011"),
    ]
    fig, ax = board(13, 4.8, "The larger the sum, the less of a product stays")
    for row, (name, bits) in enumerate(terms):
        y = 4.0 - 0.85 * row
        note(ax, 2.2, y, name, align="right")
        faces = [(COLORS["content"], "white") if i < 6 else (tint(WRONG, 0.25), WRONG) for i in range(len(bits))]
        for i, bit in enumerate(bits):
            if bit != " ":
                _bits(ax, 2.7 + 0.7 * i, y, bit, [faces[i]], cell=0.7)
    ax.plot([6.9, 6.9], [0.9, 4.5], color=WRONG, linewidth=2.5)
    ax.text(6.9, 0.5, "the unit: what is right of it is cut, not rounded", ha="center", color=WRONG, fontsize=10)
    plt.show()


def draw_widths(rows: dict[str, tuple[int, int]], words: dict[str, str]) -> None:
    """One line a format: a cell for each bit; sign grey, exponent light, mantissa dark."""
    fig, ax = board(14, 0.95 * len(rows) + 1.2, "Seven bits to share")
    for r, (name, (exponent, mantissa)) in enumerate(rows.items()):
        y = 0.95 * (len(rows) - r) - 0.3
        note(ax, 1.6, y, name, size=12, align="right")
        faces = [
            ("#D1D5DB", INK),
            *[(tint("content", 0.35), INK)] * exponent,
            *[(COLORS["content"], "white")] * mantissa,
        ]
        _bits(ax, 2.0, y, "s" + "e" * exponent + "m" * mantissa, faces, cell=0.75)
        note(ax, 8.5, y, words[name], align="left", size=10)
    note(ax, 2.4, 0.95 * len(rows) + 0.5, "sign", "ink")
    note(ax, 4.3, 0.95 * len(rows) + 0.5, "exponent: reach", "content")
    note(ax, 7.0, 0.95 * len(rows) + 0.5, "mantissa: marks", "content")
    plt.show()


def draw_two_scales() -> None:
    """Above: the scale from the book of past maxima. Below: the scale from the tensor at hand."""
    fig, ax = board(15, 5.2, "One looks into its book, the other out of the window")
    past = [box(ax, 1.6 + 1.9 * i, 4.0, f"max {i - 3}", "ink", width=1.6) for i in range(3)]
    now = box(ax, 3.5, 1.2, "tensor now", "content", width=2.4)
    delayed = box(ax, 8.2, 4.0, "delayed scale", "ink", width=2.6)
    online = box(ax, 8.2, 1.2, "online scales", "ink", width=2.6)
    codes = box(ax, 12.8, 2.6, "divide, round:\ncodes", "content", width=2.8, height=1.2, filled=True)
    arrow(ax, past[-1], delayed)
    arrow(ax, now, online, "max of each tile")
    arrow(ax, delayed, codes, "either")
    arrow(ax, online, codes, "or")
    note(ax, 3.5, 4.8, "steps before")
    note(ax, 3.5, 0.4, "read twice: for its maxima, then to divide", "content")
    plt.show()


def draw_turning() -> None:
    """Codes in rows of four become codes in columns of four."""
    fig, ax = board(14, 4.8, "Rounded twice, unless both scales are powers of two")
    x = np.abs(np.random.default_rng(5).standard_normal((4, 4)))
    matrix(ax, 0.8, 3.8, x, "content", cell=0.6, label="codes in 1 x 4")
    matrix(ax, 3.5, 3.8, x.max(axis=1, keepdims=True), "ink", cell=0.6, label="scales")
    matrix(ax, 9.4, 3.8, x, "content", cell=0.6, label="codes in 4 x 1")
    matrix(ax, 9.4, 1.1, x.max(axis=0, keepdims=True), "ink", cell=0.6)
    for i in range(5):
        ax.plot([0.8, 3.2], [3.8 - 0.6 * i] * 2, color=INK, lw=1.5)
        ax.plot([9.4 + 0.6 * i] * 2, [1.4, 3.8], color=INK, lw=1.5)
    arrow(ax, (4.5, 2.6), (9.1, 2.6))
    note(ax, 6.8, 3.2, "read back, scale anew,\nround again")
    note(ax, 12.6, 0.8, "scales")
    plt.show()


def draw_flow() -> None:
    """The three products of a linear layer, and in which format each tensor is."""
    fig, ax = board(16.5, 9.6, "Three products in FP8; what is added up for long is FP32", inches=10)
    places = {  # name: x, y, text, colour
        "x": (1.9, 8.3, "X\nBF16", "ink"),
        "x_row": (5.5, 8.3, "X\nE4M3, 1 x 128", "content"),
        "fprop": (9.5, 8.3, "X W$^T$\nsummed in FP32", "ink"),
        "y": (14.2, 8.3, "Y\nBF16", "ink"),
        "master": (5.5, 6.5, "master W\nFP32", "ink"),
        "w": (9.5, 6.5, "W\nE4M3, 128 x 128", "content"),
        "adam": (5.5, 3.0, "AdamW\nmoments BF16", "ink"),
        "dy": (14.2, 3.0, "dY\nBF16", "ink"),
        "dy_row": (14.2, 4.8, "dY\nE4M3, 1 x 128", "content"),
        "dgrad": (9.5, 4.8, "dY W\nsummed in FP32", "ink"),
        "dx": (1.9, 4.8, "dX\nBF16", "ink"),
        "dy_tall": (14.2, 1.2, "dY\nE4M3, 128 x 1", "content"),
        "x_tall": (5.5, 1.2, "X turned\nE4M3, 128 x 1", "content"),
        "wgrad": (9.5, 1.2, "dY$^T$ X\nsummed in FP32", "ink"),
        "dw": (9.5, 3.0, "dW\nFP32, all batches", "ink"),
    }
    flow = "x x_row, x_row fprop, fprop y, master w, w fprop, w dgrad, dgrad dx, dy_row dgrad, dy dy_row, dy dy_tall"
    flow += ", dy_tall wgrad, x_tall wgrad, wgrad dw, dw adam"
    boxes = {
        name: box(ax, *place, width=2.8, height=1.1, size=10, filled=name in ("master", "dw"))
        for name, place in places.items()
    }
    for start, end in (pair.split() for pair in flow.split(", ")):
        arrow(ax, boxes[start], boxes[end])
    arrow(ax, (6.5, 3.6), (6.5, 5.9), "", bend=0.25)  # AdamW moves the master weights
    arrow(ax, (4.05, 7.8), (4.05, 1.6), "", "content", bend=0.12, dashed=True)
    note(ax, 2.2, 6.5, "codes wait for the\nbackward pass", "content")
    note(ax, 8.2, 9.3, "forward: left to right; backward: right to left", size=11)
    plt.show()
