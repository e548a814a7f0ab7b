"""Figures of chapter 06, in the language of `utils.whiteboard`.

Blue is attention and what the main model says, purple routed experts, gold shared ones, crimson what the MTP module
proposes, grey everything else, brown a mistake.
"""

import struct
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from utils.plots_02 import WRONG, color_of
from utils.whiteboard import COLORS, INK, arrow, board, box, note, tint, use_style

KINDS = ("ink", "content", "ink", "shared", "routed", "draft")  # of the parts of a model, in their order


def draw_file(raw: bytes, title: str) -> None:
    """Every byte of a small safetensors file: the length, the header as letters, the numbers as they are stored."""
    (length,) = struct.unpack("<Q", raw[:8])
    per_row, cell = 24, 1.0
    n_rows = -(-len(raw) // per_row)
    fig, ax = board(per_row * cell + 0.6, n_rows * 1.25 + 2.2, title, inches=10)
    for i, byte in enumerate(raw):
        x, y = 0.3 + cell * (i % per_row), 1.25 * (n_rows - i // per_row) + 1.0
        kind = "rope" if i < 8 else "ink" if i < 8 + length else "content"
        ax.add_patch(Rectangle((x, y - 1), cell * 0.94, 1, facecolor=tint(kind, 0.25), edgecolor=COLORS[kind]))
        shown = chr(byte) if kind == "ink" else f"{byte:02x}"
        ax.text(x + cell * 0.47, y - 0.5, shown, ha="center", va="center", fontsize=9, color=INK, family="monospace")
    for x, kind, text in (
        (0.3, "rope", "8 bytes: length"),
        (7.3, "ink", f"{length} bytes: header"),
        (15.3, "content", "the numbers"),
    ):
        note(ax, x, 0.6, text, kind, size=11, align="left")
    plt.show()


def plot_rounded(losses: dict[str, float], title: str) -> None:
    """What each format adds to the loss of one model; the first entry is the reference."""
    use_style()
    fig, ax = plt.subplots(figsize=(8.5, 2.6), layout="constrained")
    names, values = list(losses)[1:], np.array(list(losses.values()))
    added = values[1:] - values[0]
    bars = ax.barh(names, added, color=[COLORS["content"]] * (len(names) - 1) + [WRONG])
    ax.bar_label(bars, [f"{v:+.4f}" for v in added], padding=4)
    ax.axvline(0, color=INK, linewidth=1)
    ax.invert_yaxis()
    ax.margins(x=0.2)
    ax.set_xlabel(f"added to the held-out loss of {values[0]:.4f}, nats a character")
    ax.set_title(title)
    plt.show()


def plot_parts(counts: dict[str, dict[str, int]], title: str) -> None:
    """One panel a model: the share of each part in its parameters."""
    use_style()
    fig, axes = plt.subplots(1, len(counts), figsize=(10.5, 3.2), sharey=True, layout="constrained")
    for ax, (name, sizes) in zip(axes, counts.items()):
        total = sum(sizes.values())
        shares = [100 * size / total for size in sizes.values()]
        bars = ax.barh(list(sizes), shares, color=[COLORS[kind] for kind in KINDS])
        ax.bar_label(bars, [f"{s:.1f}" for s in shares], padding=3, fontsize=9.5)
        ax.set(xlabel="% of the parameters", xlim=(0, 118))
        ax.set_title(f"{name}\n{total:,}", fontsize=11)
    axes[0].invert_yaxis()
    fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    plt.show()


def plot_curves(
    curves: dict[str, np.ndarray], kinds: list[str], floor: tuple[str, float] | None, title: str, y: str
) -> None:
    """Named curves over the steps, and a dashed line to compare them with."""
    use_style()
    fig, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
    for (name, values), kind in zip(curves.items(), kinds):
        ax.plot(values, color=color_of(kind), label=name, linewidth=1.7)
    if floor:
        ax.axhline(floor[1], color=INK, linestyle="--", linewidth=1, label=floor[0])
    ax.set(xlabel="step", ylabel=y)
    ax.legend()
    ax.set_title(title)
    plt.show()


def draw_drafts(prompt: str, steps: list[tuple[str, str, str]], title: str, width: int = 46) -> None:
    """What was written, letter by letter: accepted drafts in crimson, what the main model chose in blue.

    Args:
        steps: for each pass (accepted drafts, the main model's own token, rejected drafts); a rejected one is shown
            struck out below its place.
    """
    letters = [(c, "ink", "") for c in prompt]
    for accepted, own, rejected in steps:
        letters += [(c, "draft", "") for c in accepted]
        letters += [(own, "content", rejected[:1])]
    n_rows = -(-len(letters) // width)
    fig, ax = board(width + 1, 2.1 * n_rows + 2.4, title, inches=10.5)
    for i, (letter, kind, wrong) in enumerate(letters):
        x, y = 0.5 + i % width, 2.1 * (n_rows - i // width) + 1.3
        ax.add_patch(Rectangle((x, y - 1), 0.95, 1, facecolor=tint(kind, 0.22), edgecolor="white"))
        style = {"ha": "center", "va": "center", "fontsize": 10, "family": "monospace"}
        ax.text(x + 0.47, y - 0.5, letter.replace("\n", "¶").replace(" ", "·"), color=INK, **style)
        if wrong:
            ax.text(x + 0.47, y - 1.45, wrong.replace("\n", "¶").replace(" ", "·"), color=COLORS["draft"], **style)
            ax.plot([x + 0.1, x + 0.85], [y - 1.45, y - 1.45], color=COLORS["draft"], linewidth=1.2)
    for x, kind, text in (
        (0.5, "ink", "prompt"),
        (8, "draft", "draft that passed"),
        (20, "content", "main model's own"),
    ):
        note(ax, x, 0.5, text, kind, size=11, align="left")
    note(ax, 32, 0.5, "struck out below: rejected", "draft", size=11, align="left")
    plt.show()


def _draw_branch(ax, x: float, node, kind: str) -> None:
    """One branch: it reads the stream before its sum, and adds to it."""
    norm = box(ax, x - 1.15, 5.35, "norm", width=0.95, height=0.55, size=9)
    routed = kind == "routed"
    part = box(ax, x - 0.15 * routed, 6.75, "experts" if routed else "MLA", kind, width=1.3)
    arrow(ax, (x - 1.15, 4.32), norm)
    arrow(ax, norm, part)
    arrow(ax, part, node, kind=kind)
    name = ("shared expert", "shared") if routed else ("latent cache", "latent")
    extra = box(ax, x + 0.1 * routed, 8.15, *name, width=2.1, height=0.6, size=9)
    if not routed:
        arrow(ax, part, extra, kind="latent")
        return
    arrow(ax, norm, (x - 0.75, 7.85), kind="shared", bend=-0.12)
    arrow(ax, (x + 0.7, 7.85), (x + 0.22, 4.62), kind="shared", bend=-0.2)


def draw_whole() -> None:
    """Two layers and the MTP module on one stream."""
    fig, ax = board(20.5, 8.8, "Two layers drawn, 61 in V3: every branch adds to one stream", inches=10.5)
    line = [box(ax, 1.1, 4.3, "tokens $t_i$", width=1.7), box(ax, 3.3, 4.3, "embed", width=1.5)]
    for x, kind in ((6.3, "content"), (9.1, "routed"), (11.9, "content"), (14.7, "routed")):
        line.append(box(ax, x, 4.3, "+", width=0.6, height=0.6))
        _draw_branch(ax, x, line[-1], kind)
    line += [box(ax, 16.9, 4.3, "norm", width=1.3), box(ax, 19.2, 4.3, "head", width=1.5)]
    for start, end in pairwise(line):
        arrow(ax, start, end)
    pair = box(ax, 13.6, 1.6, "pair with embed($t_{i+1}$)", "draft", width=3.9)
    block = box(ax, 17.4, 1.6, "one more layer", "draft", width=2.6)
    for start, end in ((line[-2], pair), (pair, block), (block, line[-1])):
        arrow(ax, start, end, kind="draft")
    for x, y, text in (
        (19.2, 5.2, "$t_{i+1}$"),
        (19.3, 2.75, "$t_{i+2}$"),
        (7.7, 3.3, "layer 1"),
        (13.3, 3.3, "layer 2"),
    ):
        note(ax, x, y, text, size=11)
    plt.show()


def plot_lengths(table: dict[str, list[float]], moments: tuple[str, str], title: str) -> None:
    """Length of the gradient of every part, from the embedding to the head, at two moments of a training."""
    use_style()
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    places = np.arange(len(table))[::-1]
    for k, (moment, strength) in enumerate(zip(moments, (0.35, 0.9))):
        values = [lengths[k] for lengths in table.values()]
        kinds = ["routed" if "network" in row else "content" if "attention" in row else "ink" for row in table]
        ax.barh(
            places + 0.2 - 0.4 * k, values, height=0.38, color=[tint(kind, strength) for kind in kinds], label=moment
        )
    ax.set_yticks(places, list(table))
    ax.set_xlabel(f"length of the gradient (light: {moments[0]}, full colour: {moments[1]})")
    ax.set_title(title)
    plt.show()
