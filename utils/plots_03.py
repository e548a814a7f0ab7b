"""Curves, bars and heat maps of chapter 03; what is drawn with boxes and arrows is in drawings_03.py.

Purple is what experts and their router do, lighter purple less of it, grey what it is compared with, brown a mistake.
"""

import matplotlib.pyplot as plt
import numpy as np

from utils.plots_02 import WRONG, color_of
from utils.whiteboard import COLORS, INK, colormap, tint, use_style

SHADES = [tint("routed", s) for s in (0.35, 0.6, 1.0)]  # three amounts of one thing


def _headline(fig, text: str) -> None:
    """One finding above several plots, set like a title."""
    fig.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold")


def plot_loads(loads: dict[str, np.ndarray], title: str, *, relative: bool = False) -> None:
    """One panel a routing: the tokens of each expert, the mean dashed, MaxVio in its title."""
    use_style()
    fig, axes = plt.subplots(1, len(loads), figsize=(9.5, 3.1), sharey=True, layout="constrained")
    for ax, (name, load) in zip(axes, loads.items()):
        shown = np.asarray(load) / (np.mean(load) if relative else 1)
        ax.bar(range(len(shown)), shown, color=COLORS["routed"])
        ax.axhline(shown.mean(), color=INK, linewidth=1, linestyle="--")
        ax.set_title(f"{name}\nMaxVio {np.max(load) / np.mean(load) - 1:.2f}", fontsize=11)
        ax.set_xlabel("expert")
    axes[0].set_ylabel("load / mean load" if relative else "tokens")
    _headline(fig, title)
    plt.show()


def plot_heard(heard: dict[str, np.ndarray], chosen: np.ndarray, title: str) -> None:
    """The gradient of every expert's logit, one panel a gate; those that were not chosen are grey."""
    use_style()
    fig, axes = plt.subplots(1, len(heard), figsize=(9.3, 3.5), sharey=True, layout="constrained")
    for ax, (name, values) in zip(axes, heard.items()):
        colors = [COLORS["routed"] if e in chosen else COLORS["ink"] for e in range(len(values))]
        ax.bar(range(len(values)), values, color=colors)
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.set(xlabel="expert (purple: chosen)", title=name)
        ax.title.set_fontsize(11)
    axes[0].set_ylabel("gradient of the logit")
    _headline(fig, title)
    plt.show()


def plot_learning(curves: dict[str, np.ndarray], kinds: list[str], chance: float, title: str, label: str) -> None:
    """Shares in percent over the steps, smoothed over 10 of them; what guessing gives is dashed."""
    use_style()
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    for (name, values), kind in zip(curves.items(), kinds):
        smooth = np.convolve(values, np.ones(10) / 10, mode="valid")
        ax.plot(100 * smooth, color=color_of(kind), label=name)
    ax.axhline(100 * chance, color=INK, linewidth=1, linestyle="--", label=f"guessing: {chance:.0%}")
    ax.set(xlabel="step", ylabel=label, ylim=(0, 104))
    ax.legend(loc="center right")
    ax.set_title(title)
    plt.show()


def plot_dropped(factors: np.ndarray, curves: dict[str, np.ndarray], mark: float, title: str) -> None:
    """Share of choices that find no place, over the room that is given; one line a skew, darker is more skewed."""
    use_style()
    fig, ax = plt.subplots(figsize=(8.5, 3.9), layout="constrained")
    for (name, curve), color in zip(curves.items(), SHADES):
        ax.plot(factors, 100 * np.asarray(curve), color=color, label=name)
    ax.axvline(mark, color=COLORS["ink"], linewidth=1, linestyle="--")
    ax.set(xlabel="capacity factor c (memory and time grow with it)", ylabel="choices turned away, %")
    ax.legend()
    ax.set_title(title)
    plt.show()


def plot_levels(values: dict[str, dict[str, float]], title: str) -> None:
    """One panel a routing, one bar a loss; 1 is balance, purple bars are above it: they object."""
    use_style()
    fig, axes = plt.subplots(1, len(values), figsize=(10, 2.9), sharey=True, sharex=True, layout="constrained")
    for ax, (name, levels) in zip(axes, values.items()):
        objects = [v > 1.0001 for v in levels.values()]
        ax.barh(list(levels), list(levels.values()), color=[COLORS["routed" if o else "ink"] for o in objects])
        ax.axvline(1, color=INK, linewidth=1, linestyle="--")
        ax.set_title(name, fontsize=11)
        ax.set_xlabel("loss / α")
    axes[0].invert_yaxis()
    _headline(fig, title)
    plt.show()


def plot_price(names: list[str], losses: list[float], vios: list[float], title: str) -> None:
    """Two panels of bars over the strength of the balance loss: what the task pays, and how uneven loads are."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(9.3, 3.4), layout="constrained")
    for ax, values, label in zip(axes, (losses, vios), ("task loss", "MaxVio")):
        bars = ax.bar(names, values, color=COLORS["routed"], width=0.6)
        ax.bar_label(bars, [f"{v:.2f}" if v >= 0.1 else f"{v:.4f}" for v in values], padding=2)
        ax.set(xlabel="strength α of the balance loss", ylabel=label)
        ax.margins(y=0.15)
    _headline(fig, title)
    plt.show()


def plot_settling(biases: np.ndarray, violations: dict[str, np.ndarray], title: str) -> None:
    """Left: the bias of every expert over the steps. Right: MaxVio, one line a speed, darker is faster."""
    use_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for e in range(biases.shape[1]):
        left.plot(biases[:, e], color=tint("routed", 0.35 + 0.09 * e), linewidth=1.8)
        left.text(len(biases) + 1, biases[-1, e], f"{e}", va="center", fontsize=9)
    left.set(xlabel="step", ylabel="bias of each expert (speed 0.01)")
    for (name, values), color in zip(violations.items(), SHADES):
        right.plot(values, color=color, label=name, linewidth=1.6)
    right.set(xlabel="step", ylabel="MaxVio", ylim=0)
    right.legend()
    _headline(fig, title)
    plt.show()


def plot_methods(losses: dict[str, np.ndarray], vios: dict[str, np.ndarray], title: str) -> None:
    """One line a way of balancing: every seed a small dot, the mean a large one; task loss left, MaxVio right."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    places = np.arange(len(losses))[::-1]
    for ax, values, label in zip(axes, (losses, vios), ("task loss, share of the variance", "MaxVio")):
        for place, (name, seeds) in zip(places, values.items()):
            color = COLORS["routed" if name.startswith("loss-free") else "ink"]
            ax.plot(seeds, np.full(len(seeds), place), "o", color=color, markersize=5, alpha=0.4)
            ax.plot(np.mean(seeds), place, "D", color=color, markersize=9, markeredgecolor="white")
            ax.annotate(f"{np.mean(seeds):.4f}", (np.mean(seeds), place), xytext=(0, 9), textcoords="offset points")
        ax.set(xlabel=label, ylim=(-0.5, len(losses) - 0.3))
        ax.margins(x=0.12)
    axes[0].set_yticks(places, list(losses))
    _headline(fig, title)
    plt.show()


def plot_strips(strips: dict[str, np.ndarray], n_steps: int, title: str) -> None:
    """One panel a run: time to the right, one line for each expert, dark means busy; strips hold shares [E, times]."""
    use_style()
    fig, axes = plt.subplots(2, 3, figsize=(10, 4.9), sharex=True, sharey=True, layout="constrained")
    for ax, (name, strip) in zip(axes.flat, strips.items()):
        span = (0, n_steps, len(strip), 0)
        seen = ax.imshow(strip, aspect="auto", cmap=colormap("routed"), vmin=0, vmax=0.3, extent=span)
        ax.set_title(name, fontsize=11)
        ax.grid(visible=False)
    for ax in axes[1]:
        ax.set_xlabel("step")
    for ax in axes[:, 0]:
        ax.set_ylabel("expert")
    fig.colorbar(seen, ax=axes, shrink=0.7, label="share of the visits")
    _headline(fig, title)
    plt.show()


def plot_served(tables: dict[str, np.ndarray], rows: str, title: str) -> None:
    """Who serves what: a row for each kind of token, a column for each expert, dark means often."""
    use_style()
    fig, axes = plt.subplots(1, len(tables), figsize=(10, 4.1), layout="constrained")
    for ax, (name, table) in zip(np.atleast_1d(axes), tables.items()):
        seen = ax.imshow(table, cmap=colormap("routed"), vmin=0, vmax=1)
        ax.set(xlabel="expert (sorted)", ylabel=rows, title=name)
        ax.title.set_fontsize(11)
        ax.grid(visible=False)
    fig.colorbar(seen, ax=axes, shrink=0.8, label="share of its tokens")
    _headline(fig, title)
    plt.show()


def plot_stuck(exact: np.ndarray, rounded: np.ndarray, title: str) -> None:
    """The bias of an expert that nobody visits, in FP32 and in BF16, with the distance of BF16's neighbours."""
    use_style()
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    ax.plot(exact, color=COLORS["routed"], label="FP32: 0.001 a step")
    ax.plot(rounded, color=WRONG, label="BF16")
    ax.axhline(0.25, color="#BBBBBB", linewidth=1)
    ax.axhline(0.5, color="#BBBBBB", linewidth=1)
    texts = {0.36: "neighbours 0.002 apart:\na step of 0.001 is rounded up", 0.6: "0.004 apart: rounded away"}
    for y, text in texts.items():
        ax.text(700, y, text, fontsize=9, color=COLORS["ink"], va="center")
    ax.set(xlabel="step", ylabel="bias of an idle expert")
    ax.legend(loc="upper left")
    ax.set_title(title)
    plt.show()


def plot_cut_runs(runs: dict[str, dict[str, np.ndarray]], title: str) -> None:
    """One panel a task: the loss of every layer, each seed a dot, the mean a bar."""
    use_style()
    fig, axes = plt.subplots(1, len(runs), figsize=(9, 3.7), layout="constrained")
    for ax, (name, layers) in zip(np.atleast_1d(axes), runs.items()):
        means = [np.mean(v) for v in layers.values()]
        kinds = ["shared" if "shared" in layer else "routed" for layer in layers]
        bars = ax.bar(list(layers), means, color=[tint(k, 0.55) for k in kinds], width=0.6)
        ax.bar_label(bars, [f"{m:.3f}" for m in means], label_type="center")
        for i, seeds in enumerate(layers.values()):
            ax.plot(np.full(len(seeds), i), seeds, "o", color=INK, markersize=4)
        ax.set_title(name, fontsize=11)
        ax.margins(y=0.15)
        ax.set_ylim(bottom=0)
    np.atleast_1d(axes)[0].set_ylabel("loss, share of the variance")
    _headline(fig, title)
    plt.show()


def plot_groups(share: np.ndarray, mark: int, title: str) -> None:
    """Teams that are left, over the number of groups that a token may visit."""
    use_style()
    fig, ax = plt.subplots(figsize=(8, 3.3), layout="constrained")
    groups = np.arange(1, len(share) + 1)
    ax.bar(groups, 100 * share, color=[COLORS["routed"] if g == mark else tint("routed", 0.45) for g in groups])
    ax.set(xlabel=f"groups that a token may visit, of {len(share)}", ylabel="teams left, %")
    ax.set_title(title)
    plt.show()


def plot_sorting(visits: np.ndarray, order: np.ndarray, title: str) -> None:
    """Every visit a dot, in the order of the tokens and in the order of the experts."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True, layout="constrained")
    for ax, expert, name in zip(axes, (visits, visits[order]), ("as the tokens come", "sorted by expert")):
        ax.scatter(range(len(expert)), expert, s=9, color=COLORS["routed"])
        ax.set(xlabel="row", title=f"{name}: {(np.diff(expert) != 0).sum() + 1} runs")
        ax.title.set_fontsize(11)
    axes[0].set_ylabel("expert")
    _headline(fig, title)
    plt.show()


def plot_mistakes(errors: dict[str, float], title: str) -> None:
    """How far each mistake takes the output, in percent of its norm."""
    use_style()
    fig, ax = plt.subplots(figsize=(9, 3.3), layout="constrained")
    bars = ax.barh(list(errors), 100 * np.array(list(errors.values())), color=WRONG)
    ax.bar_label(bars, [f"{e:.0%}" for e in errors.values()], padding=3)
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.set_xlabel("change of the routed output, % of its norm")
    ax.set_title(title)
    plt.show()


def plot_word_experts(words: list[str], table: np.ndarray, title: str) -> None:
    """Which experts each word visits: a line for each word, a column for each expert; kinds stand together."""
    use_style()
    fig, ax = plt.subplots(figsize=(8, 6.2), layout="constrained")
    seen = ax.imshow(table, cmap=colormap("routed"), vmin=0, vmax=1, aspect="auto")
    ax.set_yticks(range(len(words)), words)
    ax.set_xticks(range(table.shape[1]))
    ax.set_xlabel("expert")
    ax.grid(visible=False)
    fig.colorbar(seen, ax=ax, shrink=0.8, label="share of the word's tokens that visit")
    ax.set_title(title)
    plt.show()
