"""Drawings of chapter 03, in the language of `utils.whiteboard`; curves and bars are in plots_03.py.

Purple is what routed experts and their scores say, gold the shared expert, grey everything else, brown a mistake.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from utils.whiteboard import COLORS, INK, arrow, board, box, matrix, note, tint


def draw_reception(index_NA: np.ndarray, gate_NA: np.ndarray, load_E: np.ndarray, title: str) -> None:
    """Tokens on the left, experts on the right, a line for each visit, as thick as the gate."""
    n_tokens, n_experts = len(index_NA), len(load_E)
    fig, ax = board(12, 6.4, title)
    tokens = [box(ax, 1.2, 5.7 - n, f"token {n}", "content", width=1.7, height=0.62) for n in range(n_tokens)]
    experts = [box(ax, 8.4, 5.45 - 1.12 * e, f"expert {e}", "routed", width=1.9, height=0.7) for e in range(n_experts)]
    for n in range(n_tokens):
        for e, gate in zip(index_NA[n], gate_NA[n]):
            ends = [tokens[n].x + 0.9, experts[e].x - 1.0], [tokens[n].y, experts[e].y]
            ax.plot(*ends, color=COLORS["routed"], linewidth=9 * gate**1.5, alpha=0.7, solid_capstyle="round")
    for e, load in enumerate(load_E):
        note(ax, 10.6, experts[e].y, f"{load} token" + "s" * int(load != 1), "routed", size=11)
    plt.show()


def draw_places(index_NA: np.ndarray, place_NA: np.ndarray, places: int, title: str) -> None:
    """A row for each expert: its places, who sits in them, and who was turned away."""
    n_experts = int(index_NA.max()) + 1
    fig, ax = board(4.6 + 1.15 * places + 3.4, 1.25 * n_experts + 1.1, title)
    for e in range(n_experts):
        y = 1.25 * (n_experts - e) + 0.25
        box(ax, 1.3, y, f"expert {e}", "routed", width=1.9, height=0.8)
        mine = [(n, place_NA[n, a]) for a in range(index_NA.shape[1]) for n in np.flatnonzero(index_NA[:, a] == e)]
        guests, late = {p: n for n, p in mine if p >= 0}, [f"token {n}" for n, p in mine if p < 0]
        for p in range(places):
            kind = "content" if p in guests else "ink"
            box(ax, 3.3 + 1.15 * p, y, f"t{guests[p]}" if p in guests else "", kind, width=0.95, height=0.8)
        if late:
            note(ax, 3.2 + 1.15 * places, y, "turned away: " + ", ".join(late), size=11, align="left")
    note(ax, 0.35, 0.45, "first choices are seated before second choices, in the order of the tokens", align="left")
    plt.show()


def draw_balance(score_SE: np.ndarray, share_SE: np.ndarray, f_E: np.ndarray, title: str) -> None:
    """From scores to the loss: counts above, which have no slope; mean shares below, which have one."""
    fig, ax = board(16.6, 7.2, title)
    cell, mean_E = 0.9, share_SE.mean(axis=0)
    first = matrix(ax, 0.6, 4.6, score_SE, "routed", cell=cell, numbers=".1f", label="scores s")
    shares = matrix(ax, 5.9, 2.8, share_SE, "routed", cell=cell, numbers=".2f", label="shares: rows sum to 1")
    mean = matrix(ax, 11.6, 2.35, mean_E[None], "routed", cell=cell, numbers=".3f", label="P: mean share")
    count = matrix(ax, 11.6, 5.85, f_E[None], "ink", cell=cell, numbers=".0f", label="f: how often chosen, 1 = fair")
    arrow(ax, first, shares)
    arrow(ax, shares, mean)
    arrow(ax, first, count, "the 2 largest of each row", dashed=True)
    note(ax, 13.4, 3.9, "× and add up", size=11)
    note(ax, 13.4, 4.45, "dashed: no slope comes back", "ink", size=10)
    terms = " + ".join(f"{f:.0f}·{p:.3f}" for f, p in zip(f_E, mean_E) if f)
    note(ax, 13.4, 0.75, f"L / α = {terms} = {f_E @ mean_E:.1f}", size=11)
    plt.show()


def draw_two_paths() -> None:
    """A score takes two ways: with the bias it chooses, alone it weighs; the loss sees only the second."""
    fig, ax = board(14, 6.2, "The bias chooses; the score counts; the loss sees only the score")
    score = box(ax, 1.5, 2.6, "score s", "routed")
    total = box(ax, 4.9, 3.5, "s + b", "ink", width=1.5)
    pick = box(ax, 8.4, 3.5, "choose the best A", "ink", width=2.9)
    weigh = box(ax, 8.4, 1.7, "g = s / sum of chosen s", "routed", width=3.9)
    loss = box(ax, 12.4, 1.7, "loss", "ink", width=1.5)
    bias = box(ax, 4.9, 5.4, "bias b", "ink", width=1.5)
    count = box(ax, 12.4, 3.5, "count load", "ink", width=1.9)
    for a, b in ((score, total), (score, weigh), (total, pick), (pick, weigh), (weigh, loss), (pick, count)):
        arrow(ax, a, b)
    arrow(ax, bias, total, kind="ink")
    ax.plot([12.4, 12.4], [3.95, 5.4], color=COLORS["ink"], linewidth=1.6, linestyle="--")
    arrow(ax, (12.4, 5.4), bias, "after the step:  b + speed x sign(mean - load)", kind="ink", dashed=True)
    ax.plot([12.4, 12.4], [1.25, 0.5], color=COLORS["ink"], linewidth=1.6, linestyle="--")
    ax.plot([12.4, 1.5], [0.5, 0.5], color=COLORS["ink"], linewidth=1.6, linestyle="--")
    arrow(ax, (1.5, 0.5), score, dashed=True)
    note(ax, 7.0, 0.5, "  gradient  ")
    ax.texts[-1].set_bbox({"facecolor": "white", "edgecolor": "none"})
    plt.show()


def draw_cuts(layers: dict, width: int, title: str) -> None:
    """One line a layer: every rectangle an expert, as high as it is wide inside; filled is what one token uses.

    Args:
        layers: a name -> a `Segmentation`.
    """
    fig, ax = board(16, 2.3 * len(layers) + 0.3, title)
    hidden = max(shape.hidden for shape in layers.values())
    for row, (name, shape) in enumerate(layers.items()):
        y, total, per_column = 2.3 * (len(layers) - row) - 1.0, shape.n_routed + shape.n_shared, hidden // shape.hidden
        on = set(range(shape.n_shared)) | set(shape.n_shared + np.arange(shape.n_activated) * 7 % shape.n_routed)
        high = 1.2 / per_column
        for e in range(total):
            kind = "shared" if e < shape.n_shared else "routed"
            left, bottom = 0.3 + 0.62 * (e // per_column), y + 0.6 - high * (e % per_column + 1)
            color = COLORS[kind] if e in on else tint("routed", 0.15)
            ax.add_patch(Rectangle((left, bottom), 0.56, high * 0.9, facecolor=color, edgecolor=COLORS[kind]))
        note(ax, 10.7, y + 0.25, name, size=12, align="left")
        cost = f"{shape.active_parameters(width):,} weights for a token"
        note(ax, 10.7, y - 0.25, f"{cost}\n{shape.combinations:,} teams", "ink", size=10, align="left")
    plt.show()


def draw_golden_gate(score_E, bias_E, value_G, chosen_A, gate_A, n_kept: int, title: str) -> None:
    """One token from its scores to its gates, a line a step; the groups are outlined, those that stay in ink."""
    n_group, size = len(value_G), len(score_E) // len(value_G)
    stays = set(np.argsort(-np.asarray(value_G), kind="stable")[:n_kept].tolist())
    fig, ax = board(25, 13.2, title)
    cell, left = 1.6, 9.4
    x_of = [left + cell * e + 0.75 * (e // size) for e in range(len(score_E))]
    masked = np.array([s + b if e // size in stays else -np.inf for e, (s, b) in enumerate(zip(score_E, bias_E))])
    gates = np.full(len(score_E), np.nan)
    gates[chosen_A] = gate_A
    lines = [
        (11.6, "1  scores s: what the token wants", score_E, "routed", ".2f"),
        (9.4, "2  bias b: who is too busy", bias_E, "ink", ".2f"),
        (7.2, "3  s + b; a group is worth its two best", score_E + bias_E, "ink", ".2f"),
        (4.2, f"4  {n_kept} groups stay; the best {len(gate_A)} in them", masked, "ink", ".2f"),
        (2.0, "5  gates: 2.5 × s / sum, without b", gates, "routed", ".4f"),
    ]
    for y, text, values, kind, form in lines:
        note(ax, 0.3, y - cell / 2, text, size=11, align="left")
        for e, v in enumerate(values):
            if np.isnan(v):
                continue
            matrix(ax, x_of[e], y, np.array([[v]]), kind, cell=cell, numbers=form, limit=1.9)
    for e, x in enumerate(x_of):
        note(ax, x + cell / 2, 12.1, f"e{e}", "ink", size=11)
    for g in range(n_group):
        here = {"fill": False, "edgecolor": INK if g in stays else "#BBBBBB", "linewidth": 2 if g in stays else 1.2}
        for y in (7.2, 4.2):
            ax.add_patch(Rectangle((x_of[g * size] - 0.12, y - cell - 0.12), size * cell + 0.24, cell + 0.24, **here))
        middle = x_of[g * size] + size * cell / 2
        note(ax, middle, 5.1, f"{value_G[g]:.2f}", "" if g in stays else "ink", size=11)
    for e in chosen_A:
        style = {"fill": False, "edgecolor": COLORS["routed"], "linewidth": 3, "zorder": 3}
        ax.add_patch(Rectangle((x_of[e], 4.2 - cell), cell, cell, **style))
    plt.show()
