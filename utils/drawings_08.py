"""Drawings of chapter 08: what every rank does when, in five colours.

F forward blue, B whole backward green, O backward of inputs teal, W of weights gold, & a pair half blue half green.
"""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from utils.whiteboard import COLORS, INK, tint, use_style

KINDS = {"F": COLORS["content"], "B": COLORS["latent"], "O": "#00838F", "W": COLORS["shared"]}


def draw_task(ax: Axes, row: float, start: float, end: float, task) -> None:
    """Draw one task, a pair as two halves above each other."""
    parts = task.parts or (task,)
    height = 0.9 / len(parts)
    for i, part in enumerate(parts):
        y = row - 0.45 + i * height
        strength = 0.35 if part.stream == 0 else 0.7
        face = tint(KINDS[part.kind], strength)
        ax.add_patch(Rectangle((start, y), end - start, height, facecolor=face, edgecolor="white", linewidth=0.8))
        ax.text((start + end) / 2, y + height / 2, str(part.micro), ha="center", va="center", fontsize=7, color=INK)


def draw_schedule(slots, title: str) -> None:
    """Draw a simulated schedule: ranks as rows, time to the right, micro-batches as numbers, waiting in white."""
    use_style()
    end = max(rank[-1].end for rank in slots)
    fig, ax = plt.subplots(figsize=(10, 0.42 * len(slots) + 1.3))
    for p, rank in enumerate(slots):
        for slot in rank:
            draw_task(ax, len(slots) - 1 - p, slot.start, slot.end, slot.task)
    ax.set(xlim=(0, end), ylim=(-0.6, len(slots) - 0.4), xlabel="time")
    ax.set_yticks(range(len(slots)), [f"rank {p}" for p in reversed(range(len(slots)))])
    ax.grid(visible=False)
    legend = [Rectangle((0, 0), 1, 1, facecolor=tint(c, 0.5)) for c in KINDS.values()]
    names = ["forward", "backward", "backward of inputs", "of weights"]
    ax.legend(legend, names, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.32), fontsize=8)
    ax.set_title(title)
    plt.show()
