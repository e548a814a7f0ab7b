"""Curves and bars of chapter 04; what is drawn with boxes and arrows is in drawings_04.py."""

import matplotlib.pyplot as plt
import numpy as np

from utils.plots_02 import color_of
from utils.whiteboard import COLORS, bars, matrix, note, use_style


def plot_bars(values: dict[str, float], kinds: list[str], title: str, x: str, unit: str = "", **axes) -> None:
    """One bar a name, the value at its end, rounded to four digits."""
    use_style()
    _, ax = plt.subplots(figsize=(9, 0.55 * len(values) + 1.2), layout="constrained")
    bars(ax, list(values), [float(f"{v:.4g}") for v in values.values()], ["ink"] * len(values), unit)
    for patch, kind in zip(ax.patches, kinds):
        patch.set_color(color_of(kind))
    ax.set(xlabel=x, **axes)
    plt.gcf().suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_influence(seen: np.ndarray, title: str) -> None:
    """How much output row s moves when input row t is changed; NaN is hatched: exactly zero."""
    use_style()
    fig, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
    ax.axis("off")
    ax.set(xlim=(0, 9), ylim=(0, 5), aspect="equal")
    matrix(ax, 2.6, 4.3, seen, "content", cell=0.78, label="changed input row 0 … 4", numbers=".2f", limit=3)
    for s in range(len(seen)):
        note(ax, 1.6, 4.3 - 0.78 * (s + 0.5), f"output row {s}")
    note(ax, 7.9, 2.4, "hatched:\nexactly zero", "ink")
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_shares(shares: dict[str, list[tuple[np.ndarray, str]]], title: str) -> None:
    """One panel a distribution over few tokens; each is a stack of (heights, colour)."""
    use_style()
    fig, axes = plt.subplots(1, len(shares), figsize=(9.5, 3.2), sharey=True, layout="constrained")
    for ax, (name, stack) in zip(axes, shares.items()):
        below = np.zeros(len(stack[0][0]))
        for heights, kind in stack:
            ax.bar(range(len(heights)), heights, bottom=below, color=color_of(kind))
            below = below + heights
        ax.set(xlabel="token", xticks=range(len(below)))
        ax.set_title(name, fontsize=11)
    axes[0].set_ylabel("probability")
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    plt.show()


def plot_seeds(
    groups: dict[str, dict[str, np.ndarray]], kinds: list[str], floors: dict[str, float], title: str, y: str
) -> None:
    """Groups of columns: a dot a seed, a line at their mean, a dashed line at the floor of each column.

    Args:
        groups: for each group, what each of its columns paid, seed by seed.
        floors: by the name of a column, as "group: column".
    """
    use_style()
    _, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
    places, labels, x = [], [], 0.0
    for (group, columns), kind in zip(groups.items(), kinds):
        for name, paid in columns.items():
            ax.plot([x] * len(paid), paid, "o", color=color_of(kind), alpha=0.75)
            ax.plot([x - 0.25, x + 0.25], [np.mean(paid)] * 2, color=color_of(kind))
            ax.annotate(f"{np.mean(paid):.3f}", (x + 0.3, np.mean(paid)), va="center", color=color_of(kind))
            if (floor := floors.get(f"{group}: {name}")) is not None:
                ax.plot([x - 0.4, x + 0.4], [floor] * 2, "--", color="#222222", linewidth=1.2)
            places, labels, x = [*places, x], [*labels, f"{group}\n{name}"], x + 1
        x += 0.4
    ax.set_xticks(places, labels)
    ax.set(ylabel=y, xlim=(-0.6, x - 0.4))
    ax.set_title(title)
    plt.show()


def plot_words(words: list[str], rows: dict[str, tuple[np.ndarray, str]], title: str) -> None:
    """What each word of a sentence cost whom: a group of bars a word; NaN where a reader has no guess."""
    use_style()
    _, ax = plt.subplots(figsize=(9.5, 3.8), layout="constrained")
    width = 0.8 / len(rows)
    for r, (name, (nats, kind)) in enumerate(rows.items()):
        x = np.arange(len(words)) + (r - (len(rows) - 1) / 2) * width
        ax.bar(x, np.nan_to_num(nats), width * 0.92, color=color_of(kind), label=name)
    ax.set_xticks(range(len(words)), words)
    ax.set(ylabel="surprise, nats")
    ax.set_title(title)
    ax.legend()
    plt.show()


def plot_speedups(
    a: np.ndarray, curves: dict[str, np.ndarray], kinds: list[str], span: tuple[float, float], title: str
) -> None:
    """Speed-up over the share of accepted drafts, one curve a price of a draft; the reported span is tinted."""
    use_style()
    _, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    for (name, values), kind in zip(curves.items(), kinds):
        ax.plot(a, values, color=color_of(kind), label=name)
    ax.axhline(1, color="#222222", linewidth=1)
    ax.axvspan(*span, color=COLORS["content"], alpha=0.15)
    ax.text(np.mean(span), ax.get_ylim()[0] + 0.05, "V3", ha="center", color=COLORS["content"])
    ax.set(xlabel="share of drafts accepted", ylabel="tokens per unit of time, plain = 1")
    ax.set_title(title)
    ax.legend(loc="upper left")
    plt.show()
