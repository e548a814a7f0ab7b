"""Curves and heat maps of chapter 00; what is drawn with boxes and arrows is in drawings_00.py."""

import matplotlib.pyplot as plt
import numpy as np

from utils.plots_02 import WRONG, color_of
from utils.whiteboard import COLORS, colormap, use_style


def draw_parabola(paths: dict[str, np.ndarray], kinds: list[str], title: str) -> None:
    """Steps downhill on w^2 / 2, one panel a rate."""
    use_style()
    fig, axes = plt.subplots(1, len(paths), figsize=(9, 3.2), sharey=True, layout="constrained")
    w = np.linspace(-6.5, 6.5, 200)
    for ax, (name, path), kind in zip(axes, paths.items(), kinds):
        ax.plot(w, w**2 / 2, color="#BBBBBB", lw=1.5)
        ax.plot(path, path**2 / 2, "o-", color=color_of(kind), lw=1.3)
        ax.set(title=name, xlabel="w", ylim=(-1, 21), xlim=(-6.5, 6.5))
    axes[0].set_ylabel("loss w² / 2")
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def draw_paths(paths: dict[str, np.ndarray], height, title: str) -> None:
    """Walks through a valley, seen from above, one panel a rule; the lowest point is marked."""
    use_style()
    fig, axes = plt.subplots(2, 2, figsize=(9, 5.4), sharex=True, sharey=True, layout="constrained")
    x, y = np.meshgrid(np.linspace(-1.5, 4.6, 90), np.linspace(-1.3, 1.3, 80))
    levels = np.array([[height(np.array([a, b])) for a, b in zip(r, s)] for r, s in zip(x, y)])
    for ax, (name, path) in zip(axes.flat, paths.items()):
        ax.contour(x, y, levels, levels=[0.25, 1, 3, 8, 18, 35, 60], colors="#CCCCCC", linewidths=0.8)
        lost = not np.abs(path).max() < 10
        shown = path[np.cumsum(np.abs(path[:, 1]) > 1.35) == 0]
        ax.plot(*shown.T, "o-", color=WRONG if lost else COLORS["content"], ms=3, lw=1.2)
        ax.plot(0, 0, "x", color="#222222", ms=9, mew=2)
        end = "leaves the valley" if lost else f"height {height(path[-1]):.4f} at the end"
        ax.set_title(f"{name}: {end}", fontsize=11)
        ax.grid(visible=False)
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def draw_tables(tables: dict[str, np.ndarray], names: str, title: str) -> None:
    """Tables of what follows what, side by side: rows are what came, columns what follows; blanks are shown as dots."""
    use_style()
    shown = [c.replace(" ", "·") for c in names]
    fig, axes = plt.subplots(1, len(tables), figsize=(9.6, 5.3), layout="constrained")
    for ax, (name, table) in zip(np.atleast_1d(axes), tables.items()):
        ax.imshow(table, cmap=colormap("content"), vmin=0, vmax=1)
        ax.set_xticks(range(len(names)), shown, fontsize=10)
        ax.set_yticks(range(len(names)), shown, fontsize=10)
        ax.set(xlabel="then", ylabel="first")
        ax.set_title(name, fontsize=11)
        ax.grid(visible=False)
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_to_floor(
    curves: dict[str, tuple],
    kinds: list[str],
    floor: float,
    floor_name: str,
    title: str,
    x: str,
    y: str,
    *,
    wide: str = "",
    **axes,
) -> None:
    """Named curves (xs, ys), and a dashed line that none can be below; the curve named `wide` is a band."""
    use_style()
    _, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    for (name, (xs, ys)), kind in zip(curves.items(), kinds):
        ax.plot(
            xs,
            ys,
            "o-" if len(xs) < 20 else "-",
            color=color_of(kind),
            label=name,
            lw=8 if name == wide else 2 if len(xs) < 20 else 1.4,
        )
    ax.axhline(floor, color="#222222", lw=1.2, ls="--", label=floor_name)
    ax.set(xlabel=x, ylabel=y, **axes)
    ax.set_title(title)
    ax.legend()
    plt.show()


def plot_readers(names: list[str], nats: list[float], floor: float, title: str) -> None:
    """One bar a reader: what a letter costs them; the dashed line is what nobody can avoid."""
    use_style()
    _, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
    places = np.arange(len(names))[::-1]
    ax.barh(places, nats, color=COLORS["content"], height=0.62)
    ax.set_yticks(places, names)
    for place, value in zip(places, nats):
        ax.annotate(f"{value:.3f}", (value, place), xytext=(5, 0), textcoords="offset points", va="center")
    ax.axvline(floor, color="#222222", lw=1.2, ls="--")
    ax.set(xlabel="surprise, nats a letter")
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.1)
    plt.gcf().suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def draw_rulers(rulers: dict[str, np.ndarray], title: str) -> None:
    """One line a format: a tick at each number that it can hold."""
    use_style()
    fig, axes = plt.subplots(len(rulers), 1, figsize=(9, 0.9 * len(rulers) + 0.9), sharex=True, layout="constrained")
    for ax, (name, values) in zip(axes, rulers.items()):
        ax.vlines(values, 0, 1, color=COLORS["content"], lw=0.9)
        ax.set(yticks=[], ylim=(0, 1))
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.spines["left"].set_visible(False)
        ax.grid(visible=False)
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()
