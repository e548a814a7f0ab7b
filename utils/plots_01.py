"""Curves and heat maps of chapter 01; what is drawn with boxes and arrows is in drawings_01.py."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from utils.plots_02 import WRONG, color_of
from utils.whiteboard import COLORS, colormap, use_style


def plot_scale(widths: np.ndarray, scaled: np.ndarray, unscaled: np.ndarray, title: str) -> None:
    """Left: keys looked at over the width. Right: the slope that gets through the softmax. With and without scale."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    for column, (ax, label) in enumerate(zip(axes, ("keys looked at, of 16", "slope that gets through"))):
        ax.plot(widths, scaled[:, column], "o-", color=COLORS["content"], label=r"scores $/\sqrt{K}$")
        ax.plot(widths, unscaled[:, column], "o--", color=WRONG, label="not scaled")
        ax.set_xscale("log", base=2)
        ax.set(xlabel="width of query and key, K", ylabel=label, ylim=0)
        ax.axvline(128, color="#BBBBBB", linewidth=1)
    axes[0].legend(loc="lower left")
    fig.suptitle(title, fontweight="bold", x=0.01, ha="left")
    plt.show()


def plot_leak(honest: np.ndarray, leaky: np.ndarray, guess: float, share: np.ndarray, title: str) -> None:
    """Left: losses with and without mask on a text that cannot be foretold. Right: what the leaky one looks at."""
    use_style()
    fig, (ax, shows) = plt.subplots(1, 2, figsize=(9.5, 3.9), width_ratios=(3, 2), layout="constrained")
    ax.plot(honest, color=COLORS["content"], label="causal")
    ax.plot(leaky, color=WRONG, label="without mask")
    ax.axhline(guess, color="#222222", linestyle="--", linewidth=1.2, label="guessing, ln 5")
    ax.set(xlabel="step", ylabel="loss on fresh random texts", ylim=(0, 2))
    ax.legend(loc="center right")
    brown = LinearSegmentedColormap.from_list("wrong", ["#FFFFFF", WRONG])
    seen = shows.imshow(share, cmap=brown, vmin=0, vmax=1)
    shows.set(xlabel="row that is asked", ylabel="row that asks")
    shows.set_title("without mask: shares", fontsize=11)
    shows.grid(visible=False)
    fig.colorbar(seen, ax=shows, shrink=0.8)
    fig.suptitle(title, fontweight="bold", x=0.01, ha="left")
    plt.show()


def _arrows(ax: Axes, start: np.ndarray, end: np.ndarray, color: str) -> None:
    """Arrows from each row of `start` to the same row of `end`."""
    for a, b in zip(start, end):
        ax.annotate("", b, a, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.4, "shrinkA": 0})


def draw_norm_stages(points: np.ndarray, weight: np.ndarray) -> None:
    """Rows of any length, divided by their root mean square, times the weight: three panels."""
    use_style()
    on_circle = points / np.sqrt(np.mean(points**2, axis=1, keepdims=True))
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)])
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.9), layout="constrained")
    stages, titles = [0 * points, points, on_circle, weight * on_circle], ("rows of any length", "÷ rms", "× weight")
    for ax, before, after, title in zip(axes, stages, stages[1:], titles):
        _arrows(ax, before, after, COLORS["ink"] if before is stages[0] else COLORS["content"])
        ax.plot(*after.T, "o", color=COLORS["content"], markersize=4)
        ax.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), aspect="equal", title=title)
    axes[1].plot(*circle, color=COLORS["ink"], linewidth=1)
    axes[2].plot(*(circle * weight[:, None]), color=COLORS["ink"], linewidth=1)
    fig.suptitle(
        "Every row lands on one circle: length is forgotten, direction is kept", x=0.01, ha="left", weight="bold"
    )
    plt.show()


def draw_projection(x: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> None:
    """A row, its place on the circle with the gradient there, and the gradient that arrives at the row."""
    use_style()
    y = x / np.sqrt(np.mean(x**2))
    angle = np.linspace(0, 2 * np.pi, 200)
    fig, ax = plt.subplots(figsize=(8, 5.0), layout="constrained")
    ax.plot(np.sqrt(2) * np.cos(angle), np.sqrt(2) * np.sin(angle), color=COLORS["ink"], linewidth=1)
    zero = 0 * x
    for start, end, color, label, place in (
        (zero, x, COLORS["ink"], "x", x + [0.08, -0.12]),
        (y, y + dy, COLORS["ink"], "dy", y + dy + [-0.1, 0.14]),
        (x, x + 2 * dx, COLORS["content"], "dx, drawn twice as long", x + 2 * dx + [0.1, 0.12]),
    ):
        _arrows(ax, start[None], end[None], color)
        ax.text(*place, label, color=color, fontsize=12)
    ax.set(xlim=(-1.6, 4.8), ylim=(-1.6, 2.6), aspect="equal")
    fig.suptitle(
        "What arrives stands at a right angle to x: no gradient points along it", x=0.01, ha="left", weight="bold"
    )
    plt.show()


def plot_gain(sizes: np.ndarray, came_out: list[float], gain: list[float], title: str) -> None:
    """Size of the output and factor on a gradient over the size of a row, log-log."""
    use_style()
    fig, ax = plt.subplots(figsize=(9, 4.1), layout="constrained")
    ax.loglog(sizes, came_out, color=COLORS["content"], label="size of the output")
    ax.loglog(sizes, gain, color=COLORS["ink"], label="factor on a gradient going back")
    ax.axvline(1e-3, color="#BBBBBB", linewidth=1)
    ax.text(1.2e-3, 3e-3, r"$\sqrt{\varepsilon} = 0.001$", color=COLORS["ink"])
    ax.set(xlabel="root mean square of the row that comes in", ylim=(5e-4, 6e3))
    ax.legend(loc="upper right")
    ax.set_title(title)
    plt.show()


def plot_silu(a: np.ndarray, silu: np.ndarray, slope: np.ndarray) -> None:
    """Silu beside relu, and their slopes."""
    use_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.7), layout="constrained")
    for ax, ours, theirs in ((left, silu, np.maximum(a, 0)), (right, slope, (a > 0).astype(float))):
        ax.plot(a, ours, color=COLORS["content"], label="silu")
        ax.plot(a, theirs, color=COLORS["ink"], linestyle="--", linewidth=1.2, label="relu, for comparison")
        ax.set(xlabel="a")
    left.set_title(f"silu dips to {silu.min():.2f} at {a[silu.argmin()]:.2f}", fontsize=12)
    right.set_title(f"its slope lies between {slope.min():.2f} and {slope.max():.2f}", fontsize=12)
    left.legend()
    plt.show()


def plot_product(fresh: np.ndarray, gated: np.ndarray, units: list[int], missed: list[float], title: str) -> None:
    """Left: what two gated units compute over the plane. Right: what plain units miss, over their number."""
    use_style()
    signed = LinearSegmentedColormap.from_list("signed", [COLORS["ink"], "white", COLORS["content"]])
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.1), layout="constrained")
    shown = left.scatter(*fresh.T, c=gated, s=6, cmap=signed, vmin=-4, vmax=4)
    fig.colorbar(shown, ax=left, label="output")
    left.set(xlabel="coordinate 0", ylabel="coordinate 1", aspect="equal")
    left.set_title("two gated units", fontsize=12)
    left.grid(visible=False)
    right.loglog(units, missed, "o-", color=COLORS["ink"])
    right.axhline(0.01, color="#BBBBBB", lw=1)
    right.set(xlabel="ReLU units without a gate", ylabel="part of the variance missed")
    right.set_title("plain units", fontsize=12)
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_wirings(wirings: dict[str, tuple[np.ndarray, np.ndarray]], kinds: list[str], title: str) -> None:
    """Size of the stream and of the gradient at every block, one curve a wiring."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.1), layout="constrained")
    for (name, sides), kind, line in zip(wirings.items(), kinds, ("-", "--", ":")):
        for ax, values in zip(axes, sides):
            ax.plot(values, linestyle=line, color=color_of(kind), label=name)
    axes[0].set(xlabel="block", ylabel="size of the stream", ylim=0)
    axes[1].set(xlabel="block (the gradient travels from right to left)", ylabel="size of the gradient", yscale="log")
    axes[1].legend()
    fig.suptitle(title, x=0.01, ha="left", fontweight="bold")
    plt.show()


def draw_heads(words: list[str], shares: dict[str, np.ndarray], title: str) -> None:
    """Who looks at whom, one panel a head; the future is left white."""
    use_style()
    fig, axes = plt.subplots(1, len(shares), figsize=(9.5, 4.4), layout="constrained")
    for ax, (name, share) in zip(np.atleast_1d(axes), shares.items()):
        seen = ax.imshow(np.where(np.tri(len(words)) > 0, share, np.nan), cmap=colormap("content"), vmin=0, vmax=1)
        ax.set_xticks(range(len(words)), words, rotation=90)
        ax.set_yticks(range(len(words)), words)
        ax.set(xlabel="is asked", ylabel="asks")
        ax.set_title(name, fontsize=12)
        ax.grid(visible=False)
    fig.colorbar(seen, ax=axes, shrink=0.8, label="share")
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()
