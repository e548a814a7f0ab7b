"""Whiteboard drawings in one visual language: the same colour always means the same thing.

    content  blue      what a token says: content queries, keys and values
    rope     orange    where a token stands: the rotary part
    latent   green     the compressed key-value (or query) latent
    routed   purple    routed experts
    shared   gold      shared experts
    draft    crimson   what multi-token prediction proposes
    ink      grey      everything else: text, arrows, axes

A drawing is a `board`, in units that you choose, with boxes, arrows, matrices and notes on it:

    fig, ax = board(10, 4)
    a = box(ax, 1, 2, "hidden", "ink")
    b = box(ax, 5, 2, "latent", "latent")
    arrow(ax, a, b, "W_DKV")
"""

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

COLORS = {
    "content": "#2F6DB5",
    "rope": "#D9772B",
    "latent": "#2E8B6F",
    "routed": "#8A56AC",
    "shared": "#B8860B",
    "draft": "#C0396B",
    "ink": "#6B7280",
}
INK = "#222222"


class Box(NamedTuple):
    """Centre and size of a drawn box, for arrows to start from and end at."""

    x: float
    y: float
    width: float
    height: float


def use_style() -> None:
    """Take the repository's figure style; call once at the top of a notebook."""
    plt.style.use(Path(__file__).with_name("figures.mplstyle"))


def tint(kind: str, strength: float = 0.18) -> tuple[float, float, float]:
    """Mix a colour of the language with white: 0 is white, 1 the full colour."""
    r, g, b = to_rgb(COLORS.get(kind, kind))
    return 1 - strength * (1 - r), 1 - strength * (1 - g), 1 - strength * (1 - b)


def colormap(kind: str) -> LinearSegmentedColormap:
    """White to the colour of `kind`, for heat maps of non-negative values."""
    return LinearSegmentedColormap.from_list(kind, ["#FFFFFF", COLORS[kind]])


def board(width: float, height: float, title: str = "", inches: float = 9.0) -> tuple[Figure, Axes]:
    """Open an empty board of `width` x `height` units, equal on both axes, `inches` wide, with a title on top."""
    use_style()
    fig, ax = plt.subplots(figsize=(inches, inches * height / width + (0.4 if title else 0)))
    ax.set_xlim(0, width)
    ax.set_ylim(0, height)
    ax.set_aspect("equal")
    ax.axis("off")
    if title:
        ax.set_title(title)
    fig.tight_layout(pad=0.3)
    return fig, ax


def box(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    kind: str = "ink",
    *,
    width: float = 1.8,
    height: float = 0.8,
    size: float = 11,
    filled: bool = False,
) -> Box:
    """Draw a rounded box centred at (x, y)."""
    color = COLORS[kind]
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle=f"round,pad=0,rounding_size={min(width, height) * 0.18}",
            facecolor=color if filled else tint(kind),
            edgecolor=color,
            linewidth=1.6,
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color="white" if filled else INK)
    return Box(x, y, width, height)


def _edge(source: Box, x: float, y: float) -> tuple[float, float]:
    """Where the line from the centre of `source` towards (x, y) leaves the box."""
    dx, dy = x - source.x, y - source.y
    if dx == dy == 0:
        return source.x, source.y
    reach = min(
        source.width / 2 / abs(dx) if dx else np.inf,
        source.height / 2 / abs(dy) if dy else np.inf,
    )
    return source.x + dx * reach, source.y + dy * reach


def arrow(
    ax: Axes,
    start: Box | tuple[float, float],
    end: Box | tuple[float, float],
    text: str = "",
    kind: str = "ink",
    *,
    bend: float = 0.0,
    dashed: bool = False,
    size: float = 10,
) -> None:
    """Draw an arrow between boxes or points, with an optional label at its middle; `bend` curves it."""
    a = start if isinstance(start, Box) else Box(*start, 0, 0)
    b = end if isinstance(end, Box) else Box(*end, 0, 0)
    tail, head = _edge(a, b.x, b.y), _edge(b, a.x, a.y)
    ax.add_patch(
        FancyArrowPatch(
            tail,
            head,
            arrowstyle="-|>",
            mutation_scale=14,
            linewidth=1.6,
            linestyle="--" if dashed else "-",
            color=COLORS[kind],
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=2,
            shrinkB=2,
        )
    )
    if text:
        dx, dy = head[0] - tail[0], head[1] - tail[1]
        x, y = (tail[0] + head[0]) / 2 + bend * dy / 2, (tail[1] + head[1]) / 2 - bend * dx / 2
        label = ax.text(x, y, text, ha="center", va="center", fontsize=size, color=INK)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.2})


def note(ax: Axes, x: float, y: float, text: str, kind: str = "", *, size: float = 10, align: str = "center") -> None:
    """Write text at (x, y), in the colour of `kind` or in ink."""
    ax.text(x, y, text, ha=align, va="center", fontsize=size, color=COLORS[kind] if kind else INK)


def matrix(
    ax: Axes,
    x: float,
    y: float,
    values: np.ndarray,
    kind: str = "content",
    *,
    cell: float = 0.5,
    label: str = "",
    numbers: str = "",
    limit: float | None = None,
) -> Box:
    """Draw `values` [rows, columns] as tinted cells with the upper left corner at (x, y); returns the outline.

    Args:
        numbers: a format such as ".1f" to print each value in its cell; empty for none.
        limit: the magnitude that gets the full colour; the largest finite magnitude by default. NaN and -inf stay white
            with a hatch (masked).
    """
    rows, columns = values.shape
    finite = np.abs(values[np.isfinite(values)])
    top = limit or (finite.max(initial=0) or 1.0)
    for r in range(rows):
        for c in range(columns):
            v = values[r, c]
            masked = not np.isfinite(v)
            face = "white" if masked else tint(kind, min(0.06 + 0.9 * abs(v) / top, 1.0))
            ax.add_patch(
                Rectangle(
                    (x + c * cell, y - (r + 1) * cell),
                    cell,
                    cell,
                    facecolor=face,
                    edgecolor="#BBBBBB" if masked else "white",
                    hatch="////" if masked else None,
                    linewidth=0.8,
                )
            )
            if numbers and not masked:
                dark = abs(v) / top > 0.55
                ax.text(
                    x + (c + 0.5) * cell,
                    y - (r + 0.5) * cell,
                    format(v, numbers),
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if dark else INK,
                )
    if label:
        ax.text(x + columns * cell / 2, y + 0.12, label, ha="center", va="bottom", fontsize=10, color=INK)
    return Box(x + columns * cell / 2, y - rows * cell / 2, columns * cell, rows * cell)


def bars(ax: Axes, labels: list[str], values: list[float], kinds: list[str], unit: str = "") -> None:
    """Draw horizontal bars with the value written at the end of each, first label on top."""
    places = np.arange(len(labels))[::-1]
    ax.barh(places, values, color=[COLORS[k] for k in kinds], height=0.62)
    ax.set_yticks(places, labels)
    ax.grid(axis="y", visible=False)
    for place, value in zip(places, values, strict=True):
        ax.annotate(
            f"{value:,.6g}{unit}", (value, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=10
        )
    ax.margins(x=0.18)
