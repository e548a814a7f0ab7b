"""Curves and maps of chapter 05; what is drawn with boxes and arrows is in drawings_05.py."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from utils.plots_02 import WRONG, color_of
from utils.whiteboard import COLORS, use_style


def draw_ruler(values: np.ndarray, subnormal: np.ndarray, title: str) -> None:
    """A tick at each number of a format, on an even ruler and on a logarithmic one."""
    use_style()
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(9.5, 3.8), layout="constrained")
    for ax, start in ((top, 0), (bottom, 1)):
        for mask, kind in ((~subnormal, "content"), (subnormal, "ink")):
            ax.vlines(values[start:][mask[start:]], 0, 1, color=COLORS[kind], linewidth=1)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.grid(visible=False)
    bottom.set_xscale("log", base=2)
    bottom.set_xlabel("the same numbers on a logarithmic ruler; grey: the seven subnormals")
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_doublings(curves: dict[str, tuple], kinds: list[str], title: str, x: str, y: str) -> None:
    """Curves (xs, ys) over powers of two, which are written out below the axis; both axes logarithmic."""
    use_style()
    _, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for (name, (xs, ys)), kind in zip(curves.items(), kinds):
        ax.plot(xs, ys, "o-", color=color_of(kind), label=name)
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    ticks = sorted({int(v) for xs, _ in curves.values() for v in xs})
    ax.set_xticks(ticks, [str(v) for v in ticks])
    ax.minorticks_off()
    ax.set_title(title)
    ax.legend()
    plt.show()


def draw_error_maps(maps: dict[str, np.ndarray], title: str) -> None:
    """One map a granularity: each number's own relative error."""
    use_style()
    brown = LinearSegmentedColormap.from_list("wrong", ["#FFFFFF", WRONG])
    fig, axes = plt.subplots(1, len(maps), figsize=(10, 3.4), sharey=True, layout="constrained")
    for ax, (name, error) in zip(axes, maps.items()):
        shown = ax.imshow(error, vmin=0, vmax=1, cmap=brown, aspect="auto", interpolation="nearest")
        ax.set(xlabel="channel")
        ax.set_title(name, fontsize=11)
        ax.grid(visible=False)
    axes[0].set_ylabel("token")
    fig.colorbar(shown, ax=axes, label="relative error")
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_error_by_size(weight: np.ndarray, backs: dict[str, np.ndarray], kinds: list[str], title: str) -> None:
    """Error of each weight over its size, both logarithmic, with the mean of each size as a line."""
    use_style()
    _, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
    size = np.abs(weight).ravel()
    edges = np.logspace(np.log10(np.quantile(size, 0.01)), np.log10(size.max()), 25)
    some = np.random.default_rng(0).choice(size.size, 3000, replace=False)
    for (name, back), kind in zip(backs.items(), kinds):
        error = np.abs(back - weight).ravel()
        ax.plot(size[some], error[some], ".", color=color_of(kind), markersize=2, alpha=0.35)
        place = np.digitize(size, edges)
        mean = [error[place == i].mean() for i in range(1, len(edges))]
        ax.plot(np.sqrt(edges[1:] * edges[:-1]), mean, color=color_of(kind), label=f"{name}, mean")
    ax.set(xscale="log", yscale="log", xlabel="|weight|", ylabel="|error|", xlim=(edges[0], edges[-1] * 1.1))
    ax.set_ylim(np.quantile(np.abs(next(iter(backs.values())) - weight), 0.02), None)
    ax.set_title(title)
    ax.legend()
    plt.show()


def plot_spans(tensors: dict[str, np.ndarray], spans: dict[str, np.ndarray], kinds: list[str], title: str) -> None:
    """Histograms of log2 of magnitudes; bars above them: the normal numbers of each format."""
    use_style()
    fig, axes = plt.subplots(len(tensors), 1, figsize=(9.5, 6.2), sharex=True, layout="constrained")
    for ax, (name, tensor) in zip(axes, tensors.items()):
        ax.hist(np.log2(np.abs(tensor[tensor != 0])), bins=np.arange(-40, 8, 0.5), density=True, color="#BFC4CC")
        top = ax.get_ylim()[1]
        ax.set_ylim(0, 1.5 * top)
        for height, (fmt, span), kind in zip((1.36, 1.14), spans.items(), kinds):
            ax.plot(span, [height * top] * 2, color=color_of(kind), linewidth=5, solid_capstyle="butt")
            ax.text(span[0] - 0.4, height * top, fmt, ha="right", va="center", color=color_of(kind), fontsize=9)
        ax.set_yticks([])
        ax.set_title(name, fontsize=11)
    axes[-1].set(xlabel="log₂ |x|; bars: the normal numbers of each format, no scale", xlim=(-40, 17))
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_pairs(table: dict[str, dict], formats: list[str], kinds: list[str], title: str) -> None:
    """One panel a granularity; for each tensor a bar a format: its relative error."""
    use_style()
    names = list(next(iter(table.values())))
    places = np.arange(len(names))[::-1]
    fig, axes = plt.subplots(1, len(table), figsize=(10.5, 4), sharey=True, layout="constrained")
    for ax, (granularity, rows) in zip(axes, table.items()):
        for shift, fmt, kind in zip((0.2, -0.2), formats, kinds):
            ax.barh(places + shift, [row[fmt] for row in rows.values()], 0.38, color=color_of(kind), label=fmt)
        ax.set(xscale="log", xlim=(0.01, 1.5), xlabel="relative error")
        ax.set_title(granularity, fontsize=11)
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(places, names, fontsize=9)
    axes[1].legend(loc="lower right")
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_turning(rows: dict[str, tuple[float, float, float]], title: str) -> None:
    """For each format and kind of scale: the error before and after turning, and how many values changed."""
    use_style()
    _, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
    places = np.arange(len(rows))[::-1]
    for shift, column, kind, label in ((0.2, 1, "content", "rounded once"), (-0.2, 2, "wrong", "after turning")):
        ax.barh(places + shift, [row[column] for row in rows.values()], 0.38, color=color_of(kind), label=label)
    for place, row in zip(places, rows.values()):
        ax.text(max(row[1:]) * 1.05, place, f"{row[0]:.1%} of the values changed", va="center", fontsize=10)
    ax.set_yticks(places, list(rows))
    ax.set(xscale="log", xlabel="mean |error| / |x|", xlim=(1e-3, 0.3))
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    ax.legend(loc="lower right")
    plt.show()


def plot_two_trainings(curves: dict[int, tuple], title: str) -> None:
    """Left: losses of seed 0 in FP32 and FP8. Right: their relative difference, one line a seed."""
    use_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    left.plot(curves[0][0], color=COLORS["ink"], label="FP32")
    left.plot(curves[0][1], color=COLORS["content"], linestyle="--", label="FP8")
    left.legend()
    left.set(xlabel="step", ylabel="training loss, nats")
    left.set_title("seed 0", fontsize=11)
    for exact, low, _ in curves.values():
        right.plot((low / exact - 1) * 100, linewidth=1, color=COLORS["content"], alpha=0.7)
    right.axhspan(-0.25, 0.25, color=COLORS["ink"], alpha=0.2, linewidth=0)
    right.set(xlabel="step", ylabel="FP8 loss / FP32 loss − 1, %")
    right.set_title("three seeds", fontsize=11)
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_small_gradients(size: np.ndarray, errors: dict[str, np.ndarray], kinds: list[str], title: str) -> None:
    """A dot a token: the error of its slope over the size of what came in."""
    use_style()
    _, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    for (name, error), kind in zip(errors.items(), kinds):
        ax.scatter(size, error, s=14, color=color_of(kind), label=f"dY in {name}")
    ax.set(xscale="log", yscale="log", xlabel="largest |dY| of the token", ylabel="relative error of its dX")
    ax.set_title(title)
    ax.legend()
    plt.show()
