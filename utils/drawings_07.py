"""Drawings of chapter 07, in the language of `utils.whiteboard` and two colours more.

    better   teal      an answer that is better than its group, and what makes it likelier
    worse    brown     an answer that is worse than its group

The policy is blue (content), experts are purple (routed), what stays as it was is grey (ink).
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from utils.whiteboard import COLORS, INK, bars, board, box, note, tint, use_style

BETTER, WORSE = "#00838F", "#8D5524"


def shade(value: float, limit: float = 1.0) -> tuple[float, float, float]:
    """Mix white with the colour of a sign: teal above 0, brown below, white at 0."""
    return tint(BETTER if value > 0 else WORSE, min(0.75 * abs(value) / limit, 1.0))


def draw_cell(ax: Axes, x: float, y: float, text: str, face, *, width: float = 0.9, height: float = 0.8) -> None:
    """Draw one letter or number in its cell."""
    ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=face, edgecolor="#BBBBBB", linewidth=0.8))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=11, color=INK)


def draw_rows_read_and_predict(letters: str, counted: list[bool], title: str) -> None:
    """Draw a sequence twice: what every row reads, and below what it is trained on; only counted targets are blue."""
    fig, ax = board(2.6 + len(letters), 2.9, title)
    for i, letter in enumerate(letters[:-1]):
        draw_cell(ax, 2.4 + i, 1.7, letter, "white")
        on = counted[i + 1]
        draw_cell(ax, 2.4 + i, 0.4, letters[i + 1] if on else "–", tint("content", 0.45) if on else "white")
        ax.annotate("", (2.85 + i, 1.25), (2.85 + i, 1.65), arrowprops={"arrowstyle": "-|>", "color": COLORS["ink"]})
    note(ax, 1.1, 2.1, "reads")
    note(ax, 1.1, 0.8, "is trained on", "content")
    plt.show()


def draw_packed_rows(token_BT, answer_BT, document_BT, alphabet: str, title: str) -> None:
    """Draw packed rows: tints tell dialogues apart, full colour is what is learned, white is padding."""
    B, T = token_BT.shape
    fig, ax = board(T + 1, B + 0.6, title, inches=11)
    for b in range(B):
        for t in range(T):
            kind = "content" if document_BT[b, t] % 2 == 0 else "ink"
            face = "white" if document_BT[b, t] < 0 else tint(kind, 0.6 if answer_BT[b, t] else 0.15)
            letter = "" if document_BT[b, t] < 0 else alphabet[token_BT[b, t]]
            draw_cell(ax, 0.5 + t, B - b - 0.5, letter, face, width=1.0)
    plt.show()


def draw_group(question: str, texts: list[str], reward, advantage, before, after, title: str) -> None:
    """Draw a group: its answers as rows, the advantage as colour, and each answer's probability before and after."""
    fig, ax = board(15, 0.75 * len(texts) + 1.3, title, inches=10)
    top = 0.75 * len(texts) + 0.6
    for x, head in ((1.9, f"answers to {question}"), (5.0, "reward"), (7.4, "advantage"), (11.5, "probability")):
        note(ax, x, top, head)
    for i, text in enumerate(texts):
        y = top - 0.75 * (i + 1)
        for k, letter in enumerate(text):
            draw_cell(ax, 0.9 + 0.5 * k, y - 0.3, letter, shade(advantage[i], 4), width=0.5, height=0.6)
        note(ax, 5.0, y, f"{reward[i]:.0f}")
        note(ax, 7.4, y, f"{advantage[i]:+.2f}")
        change = "more" if after[i] > before[i] else "less"
        note(ax, 11.5, y, f"{before[i]:.4f}  →  {after[i]:.4f}   {change}")
    plt.show()


def plot_curves(curves: dict[str, tuple], colors: list[str], title: str, x: str, y: str, **axes) -> None:
    """Draw named curves (x, y); a colour is a kind of the visual language or a colour itself."""
    use_style()
    fig, ax = plt.subplots()
    for (name, (xs, ys)), color in zip(curves.items(), colors):
        ax.plot(xs, ys, color=COLORS.get(color, color), label=name)
    ax.set(xlabel=x, ylabel=y, **axes)
    ax.set_title(title)
    ax.legend()
    plt.show()


def plot_bars(labels: list[str], values: list[float], kinds: list[str], title: str, x: str, unit: str = "") -> None:
    """Draw horizontal bars with their values and a title that is the finding; a kind may be a colour itself."""
    use_style()
    fig, ax = plt.subplots(figsize=(8, 0.5 * len(labels) + 1.4))
    bars(ax, labels, values, ["ink"] * len(labels), unit)
    for patch, kind in zip(ax.patches, kinds):
        patch.set_color(COLORS.get(kind, kind))
    ax.set_xlabel(x)
    ax.set_title(title)
    plt.show()


def plot_seed_dots(found: dict[str, np.ndarray], title: str, x: str) -> None:
    """Draw a line of dots for each name, a dot a seed, and a bar at their mean."""
    use_style()
    fig, ax = plt.subplots(figsize=(8, 0.45 * len(found) + 1.4))
    places = np.arange(len(found))[::-1]
    for place, values in zip(places, found.values()):
        ax.plot(values, np.full(len(values), place), "o", color=COLORS["content"], alpha=0.55, markersize=8)
        ax.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=2.5)
    ax.set_yticks(places, list(found))
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=x, ylim=(-0.6, len(found) - 0.4))
    ax.set_title(title)
    plt.show()


def plot_answers_over_time(answers: list[str], share_TA, steps: list[int], right: str, title: str) -> None:
    """Draw how the probability of each answer to one question moves; the right one is teal, the others brown."""
    use_style()
    fig, ax = plt.subplots(figsize=(8, 3.8))
    bottom = np.zeros(len(steps))
    for a, text in enumerate(answers):
        color = BETTER if text == right else tint(WORSE, 0.75 - 0.6 * a / len(answers))
        ax.fill_between(steps, bottom, bottom + share_TA[:, a], color=color, edgecolor="white", linewidth=0.5)
        middle = bottom[0] + share_TA[0, a] / 2
        if share_TA[0, a] > 0.05:
            ax.text(steps[0] + 0.5, middle, text, fontsize=9, va="center", color=INK)
        bottom = bottom + share_TA[:, a]
    ax.text(steps[-1] * 0.97, 0.5 * share_TA[-1, answers.index(right)], right, ha="right", va="center", color="white")
    ax.set(xlabel="step", ylabel="probability", xlim=(steps[0], steps[-1]), ylim=(0, 1))
    ax.set_title(title)
    plt.show()


def draw_chain(names: list[str], kinds: list[str], labels: list[str], title: str) -> None:
    """Draw boxes from left to right with labelled arrows between them."""
    from utils.whiteboard import arrow

    fig, ax = board(3.4 * len(names), 2.2, title, inches=11)
    placed = [box(ax, 1.7 + 3.4 * i, 1.0, n, k, width=1.9, height=1.0) for i, (n, k) in enumerate(zip(names, kinds))]
    for a, b, label in zip(placed, placed[1:], labels):
        arrow(ax, a, b)
        note(ax, (a.x + b.x) / 2, 1.8, label, size=9)
    plt.show()


def plot_two_fits(place, teacher, fits: dict[str, np.ndarray], kinds: list[str], title: str) -> None:
    """Draw a teacher's distribution as bars and the students that were fitted to it as lines."""
    use_style()
    fig, ax = plt.subplots()
    ax.bar(place, teacher, color=tint("ink", 0.5), label="teacher")
    for (name, prob), kind in zip(fits.items(), kinds):
        ax.plot(place, prob, color=COLORS.get(kind, kind), label=name)
    ax.set(xlabel="token", ylabel="probability")
    ax.set_title(title)
    ax.legend()
    plt.show()


def plot_scatter(
    x, y, marked, labels: tuple[str, str], title: str, axes: tuple[str, str], color: str = "routed"
) -> None:
    """Draw points about a line of equality; the marked ones in a colour, the others in grey."""
    use_style()
    fig, ax = plt.subplots(figsize=(7.2, 4.8))
    low, high = min(x.min(), y.min()), 0.0
    ax.plot([low, high], [low, high], color="#BBBBBB", linewidth=1)
    size = 3 if len(x) > 500 else 7
    ax.plot(x[~marked], y[~marked], ".", color=COLORS["ink"], markersize=size, label=labels[0])
    ax.plot(x[marked], y[marked], "o", color=COLORS.get(color, color), markersize=5, label=labels[1])
    ax.set(xlabel=axes[0], ylabel=axes[1])
    ax.set_title(title)
    ax.legend()
    plt.show()
