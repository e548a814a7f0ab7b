"""Curves and heat maps of chapter 02; what is drawn with boxes and arrows is in drawings_02.py.

wrong   brown   a mistake, drawn beside what is right
"""

import matplotlib.pyplot as plt
import numpy as np

from utils.whiteboard import COLORS, bars, colormap, use_style

WRONG = "#8D5524"


def color_of(kind: str) -> str:
    """Take a kind of the visual language, "wrong", or a colour itself."""
    return COLORS.get(kind, WRONG if kind == "wrong" else kind)


def plot_lines(
    curves: dict[str, tuple], kinds: list[str], title: str, x: str, y: str, *, log: str = "", **axes
) -> None:
    """Draw named curves (xs, ys), points marked when there are few; `log` names the axes that are logarithmic."""
    use_style()
    _, ax = plt.subplots()
    for (name, (xs, ys)), kind in zip(curves.items(), kinds):
        ax.plot(xs, ys, "o-" if 2 < len(xs) < 20 else "-", color=color_of(kind), label=name)
    ax.set(xlabel=x, ylabel=y, **axes)
    for axis in log:
        getattr(ax, f"set_{axis}scale")("log")
    ax.set_title(title)
    ax.legend()
    plt.show()


def draw_diagonals(score: np.ndarray, by_distance: dict[int, np.ndarray], title: str) -> None:
    """A square of scores, and below it the score along one column, for a text that starts at 0 and one at 1000."""
    use_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.2), width_ratios=[1, 1.25])
    left.imshow(score - score.min(), cmap=colormap("rope"))
    ticks = range(0, len(score), 6)
    left.set(xlabel="key position n", ylabel="query position m", xticks=ticks, yticks=ticks)
    left.grid(visible=False)
    first, later = by_distance
    right.plot(by_distance[first], color=COLORS["ink"], lw=6, alpha=0.35, label=f"key at {first}")
    right.plot(by_distance[later], color=COLORS["rope"], lw=2, label=f"key at {later}")
    right.set(xlabel="distance m − n", ylabel="score")
    right.legend()
    fig.suptitle(title, x=0.02, ha="left", weight="bold")
    fig.tight_layout()
    plt.show()


def draw_score_parts(rows: dict[str, list[np.ndarray]], title: str) -> None:
    """One row of panels a text: content, rope and their sum as heat maps of one scale."""
    use_style()
    fig, axes = plt.subplots(len(rows), 3, figsize=(9, 3.1 * len(rows)))
    for line, (name, shown) in zip(axes, rows.items()):
        for ax, values, kind in zip(line, shown, ["content", "rope", "ink"]):
            ax.imshow(values, cmap=colormap(kind), vmin=np.nanmin(shown), vmax=np.nanmax(shown))
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
        line[0].set_ylabel(name)
    for ax, text, kind in zip(axes[0], ["content", "+ rope", "= score"], ["content", "rope", "ink"]):
        ax.set_title(text, color=COLORS[kind], loc="center")
    fig.suptitle(title, x=0.02, ha="left", weight="bold")
    fig.tight_layout()
    plt.show()


def plot_costs(new, operations: dict, texts, moved: dict, crossing: float, title: str) -> None:
    """Left: operations over the number of new tokens; right: bytes moved over the length of the text."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.2))
    for name, kind in zip(operations, ["latent", "content", "ink"]):
        axes[0].loglog(new, operations[name], color=COLORS[kind])
        axes[1].loglog(texts, moved[name], color=COLORS[kind], label=name)
    axes[0].axvline(crossing, color="#222222", lw=1.2, ls=":")
    axes[0].text(crossing * 1.15, operations["absorbed"][0], f"{crossing:.0f}")
    axes[0].set(xlabel="new tokens, 8,192 keys", ylabel="operations, one layer")
    axes[1].set(xlabel="keys T, one new token", ylabel="bytes moved")
    axes[1].legend()
    fig.suptitle(title, x=0.02, ha="left", weight="bold")
    fig.tight_layout()
    plt.show()


def draw_seen_angles(frequencies: np.ndarray, pairs: tuple[int, ...], length: int) -> None:
    """One disc a pair: the angles that it has shown in `length` tokens are orange, the rest is hatched."""
    use_style()
    fig, axes = plt.subplots(1, len(pairs), figsize=(9, 3.7), subplot_kw={"projection": "polar"})
    for ax, pair in zip(axes, pairs):
        turns = length * frequencies[pair] / (2 * np.pi)
        seen = 2 * np.pi * min(turns, 1.0)
        ax.bar(seen / 2, 1, width=seen, color=COLORS["rope"], alpha=0.75)
        if turns < 1:
            rest = 2 * np.pi - seen
            ax.bar(seen + rest / 2, 1, width=rest, facecolor="white", edgecolor="#BBBBBB", hatch="////")
            ax.text(seen + rest / 2, 0.5, "never seen", ha="center", va="center", backgroundcolor="white", fontsize=10)
        ax.text(seen / 2, 0.62, "seen", ha="center", va="center", fontsize=10)
        ax.set(xticks=[], yticks=[], ylim=(0, 1))
        ax.set_title(f"pair {pair}: {turns:,.2f} turns", loc="center", fontsize=11)
    fig.suptitle(f"In {length:,} tokens fast pairs have pointed everywhere, slow ones have not", weight="bold")
    fig.tight_layout()
    plt.show()


def plot_ramp(ramp: np.ndarray, curves: dict[str, np.ndarray], length: int, title: str) -> None:
    """Above: share of stretching of each pair. Below: tokens per full turn under each rule."""
    use_style()
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=[1, 1.3])
    top.plot(ramp, "o-", color=COLORS["rope"])
    top.set(ylabel="share of stretching", yticks=[0, 0.5, 1])
    top.set_title(title)
    for (name, frequencies), kind, look in zip(curves.items(), ["ink", "wrong", "rope"], ["-", "--", "o-"]):
        bottom.semilogy(2 * np.pi / frequencies, look, color=color_of(kind), label=name)
    bottom.axhline(length, color="#BBBBBB", lw=1)
    bottom.text(0, length * 1.2, f"{length:,} tokens", color="#888888")
    bottom.set(xlabel="pair", ylabel="tokens per full turn")
    bottom.legend(loc="lower right")
    fig.tight_layout()
    plt.show()


def plot_memory(kinds: dict[str, tuple[int, str]], n_layers: int, title: str) -> None:
    """Gigabytes of one sequence over its length, BF16, for (values per layer, colour) by name."""
    use_style()
    tokens = np.linspace(0, 131072, 50)[1:]
    fig, ax = plt.subplots(figsize=(9, 4.6))
    for name, (values, kind) in kinds.items():
        gigabytes = values * n_layers * 2 * tokens / 1e9
        ax.semilogy(tokens / 1024, gigabytes, color=COLORS[kind])
        ax.text(130, gigabytes[-1], f"{name}: {gigabytes[-1]:,.1f} GB", va="center")
    ax.axhline(80, color="#BBBBBB", lw=1, ls="--")
    ax.text(70, 90, "one 80 GB GPU", color="#888888")
    ax.set(
        xlabel="context of one sequence, thousand tokens", ylabel="cache, GB", xlim=(0, 182), xticks=range(0, 129, 32)
    )
    ax.set_title(title)
    plt.show()


def plot_sizes(names: list[str], sizes: list[float], kinds: list[str], title: str) -> None:
    """Bytes per token of some models as bars."""
    use_style()
    fig, ax = plt.subplots(figsize=(8, 2.4))
    bars(ax, names, sizes, kinds, " bytes")
    ax.set(xlabel="bytes per token, BF16", xticks=[])
    ax.set_title(title)
    plt.show()
