"""Drawings of chapter 08: what every rank does when, in five colours.

F forward blue, B whole backward green, O backward of inputs teal, W of weights gold, & a pair half blue half green.
What travels between machines (IB) is brown, inside one (NVLink) teal; experts are purple, shared ones gold.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from utils.whiteboard import COLORS, INK, Box, board, note, tint, use_style

IB, NVLINK = "#8D5524", "#00838F"
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
    ax.set(xlim=(0, end), ylim=(-0.6, len(slots) - 0.4), xlabel="time (a forward takes 1)")
    ax.set_yticks(range(len(slots)), [f"rank {p}" for p in reversed(range(len(slots)))])
    ax.grid(visible=False)
    legend = [Rectangle((0, 0), 1, 1, facecolor=tint(c, 0.5)) for c in KINDS.values()]
    names = ["forward", "backward", "backward of inputs", "of weights"]
    ax.legend(
        legend, names, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.24 if len(slots) < 6 else -0.13), fontsize=8
    )
    ax.set_title(title)
    plt.show()


def _journey_arrow(ax: Axes, a: Box, b: Box, color: str, bend: float) -> None:
    """Draw an arrow from the edge of one GPU to that of another, in the colour of the link."""
    inside = a.x == b.x
    tail = (a.x + a.width / 2, a.y) if inside else (a.x + np.sign(b.x - a.x) * a.width / 2, a.y)
    head = (b.x + b.width / 2, b.y) if inside else (b.x - np.sign(b.x - a.x) * b.width / 2, b.y)
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "linewidth": 1.5, "connectionstyle": f"arc3,rad={bend}"}
    ax.add_patch(FancyArrowPatch(tail, head, color=color, **style))


def draw_journey(
    source: int, crossings: list[tuple[int, int]], copies: list[tuple[int, int]], shape, title: str
) -> None:
    """Draw where one token goes: crossings (from, to) between nodes in brown, copies inside a node in teal.

    Args:
        shape: (nodes, GPUs of a node).
    """
    nodes, gpus = shape
    fig, ax = board(3.0 * nodes, 0.95 * gpus + 1.0, title, inches=10)
    places = {}
    for node in range(nodes):
        left = 3.0 * node + 0.35
        ax.add_patch(Rectangle((left, 0.25), 2.2, 0.95 * gpus + 0.1, facecolor="#F5F5F5", edgecolor="#BBBBBB"))
        note(ax, left + 1.1, 0.95 * gpus + 0.62, f"node {node}")
        for g in range(gpus):
            rank, y = node * gpus + g, 0.95 * (gpus - g) - 0.15
            goal = rank in {t for _, t in copies}
            face = tint("content", 0.8) if rank == source else tint("routed", 0.35) if goal else "white"
            ax.add_patch(Rectangle((left + 0.5, y - 0.3), 1.2, 0.6, facecolor=face, edgecolor="#777777"))
            ax.text(left + 1.1, y, f"rank {rank}", ha="center", va="center", fontsize=9, color=INK)
            places[rank] = Box(left + 1.1, y, 1.2, 0.6)
    for a, b in crossings:
        if a // gpus != b // gpus:
            _journey_arrow(ax, places[a], places[b], IB, -0.12)
    for a, b in copies:
        if a != b:
            _journey_arrow(ax, places[a], places[b], NVLINK, -0.5 if b > a else 0.5)
    plt.show()


def draw_traffic(bytes_from_to: np.ndarray, gpus: int, title: str) -> None:
    """Draw what each rank sends to each other as a picture of tints, with lines between the nodes."""
    use_style()
    fig, ax = plt.subplots(figsize=(5.6, 5.2))
    image = ax.imshow(bytes_from_to / 1e6, cmap="Purples")
    for k in range(gpus, len(bytes_from_to), gpus):
        ax.axhline(k - 0.5, color="#BBBBBB", linewidth=0.8)
        ax.axvline(k - 0.5, color="#BBBBBB", linewidth=0.8)
    ax.set(xlabel="to rank", ylabel="from rank")
    ax.grid(visible=False)
    fig.colorbar(image, ax=ax, shrink=0.8, label="megabytes")
    ax.set_title(title)
    plt.show()


def draw_streams(rows: dict[str, list[tuple[str, float, float]]], title: str, x: str) -> None:
    """Draw pieces of work (name, start, end) on streams: (F) blue, (B) green, (W) gold; sending is paler and framed."""
    use_style()
    kinds = {"(F)": "content", "(B)": "latent", "(W)": "shared"}
    fig, ax = plt.subplots(figsize=(11, 0.62 * len(rows) + 1.0))
    for i, pieces in enumerate(rows.values()):
        y = len(rows) - 1 - i
        for name, start, end in pieces:
            kind, sends = kinds[name[-3:]], not name.startswith(("ATTN", "MLP"))
            face, edge = tint(kind, 0.18 if sends else 0.6), COLORS[kind] if sends else "white"
            ax.add_patch(Rectangle((start, y - 0.36), end - start, 0.72, facecolor=face, edgecolor=edge))
            label = name.replace("(", "\n(") if end - start > 0 else ""
            ax.text((start + end) / 2, y, label, ha="center", va="center", fontsize=6, color=INK)
    end = max(piece[2] for pieces in rows.values() for piece in pieces)
    ax.set(xlim=(0, end), ylim=(-0.6, len(rows) - 0.4), xlabel=x)
    ax.set_yticks(range(len(rows)), list(reversed(rows)))
    ax.grid(visible=False)
    ax.set_title(title)
    plt.show()


def draw_packing(panels: dict[str, list[list[tuple[int, float]]]], copied: set[int], title: str) -> None:
    """Draw the load of every GPU as a pile of its experts (number, load); experts with several copies are gold."""
    use_style()
    fig, axes = plt.subplots(1, len(panels), figsize=(11, 3.6), sharey=True)
    for ax, (name, gpus) in zip(np.atleast_1d(axes), panels.items()):
        for g, pile in enumerate(gpus):
            bottom = 0.0
            for expert, load in sorted(pile, key=lambda item: -item[1]):
                face = tint("shared", 0.6) if expert in copied else tint("routed", 0.4)
                ax.bar(g, load, 0.8, bottom=bottom, color=face, edgecolor="white", linewidth=0.6)
                bottom += load
        mean = sum(load for pile in gpus for _, load in pile) / len(gpus)
        ax.axhline(mean, color=COLORS["ink"], linestyle="--", linewidth=1)
        ax.set(xlabel="GPU", title=name)
        ax.grid(visible=False)
    np.atleast_1d(axes)[0].set_ylabel("load; dashed: the mean")
    fig.suptitle(title, x=0.01, ha="left", fontweight="bold")
    fig.tight_layout()
    plt.show()
