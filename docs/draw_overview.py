"""Draw docs/overview.png, the picture of the README: python docs/draw_overview.py"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.patches import FancyBboxPatch  # noqa: E402

from utils.whiteboard import COLORS, arrow, board, box, note, tint  # noqa: E402


def frame(ax, x: float, y: float, width: float, height: float, title: str) -> None:
    """A pale panel with its title inside, top left."""
    ax.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.15", facecolor="#FAFAFA", edgecolor="#D5D5D5"
        )
    )
    note(ax, x + 0.2, y + height - 0.28, title, size=10.5, align="left")


def draw_stream(ax) -> None:
    """Left: tokens up through the layers to the next token, and the module that guesses one further."""
    embed = box(ax, 1.7, 1.0, "embedding", width=2.2)
    dense = box(ax, 1.7, 2.2, "3 dense layers", width=2.2)
    layers = box(ax, 1.7, 3.9, "58 MoE layers", "routed", width=2.2, height=1.2)
    head = box(ax, 1.7, 5.7, "norm, head", width=2.2)
    note(ax, 1.7, 0.1, "token i")
    note(ax, 1.7, 6.72, "token i + 1")
    arrow(ax, (1.7, 0.22), embed)
    for a, b in ((embed, dense), (dense, layers), (layers, head)):
        arrow(ax, a, b)
    arrow(ax, head, (1.7, 6.6))
    module = box(ax, 4.6, 3.7, "MTP module\neh_proj, one layer", "draft", width=2.3, height=1.1)
    arrow(ax, (2.8, 5.5), (3.9, 4.3), kind="draft")
    note(ax, 3.65, 5.2, "hidden row", "draft", size=9)
    arrow(ax, (4.6, 2.4), module, kind="draft")
    note(ax, 4.6, 2.15, "embedding of token i + 1", "draft", size=9)
    again = box(ax, 4.9, 5.7, "own norm,\nthe same head", width=1.9)
    arrow(ax, module, again, kind="draft")
    arrow(ax, again, (4.9, 6.6), kind="draft")
    note(ax, 4.9, 6.72, "token i + 2", "draft")


def draw_attention(ax) -> None:
    """Upper right: latent attention and what its cache holds."""
    frame(ax, 6.5, 3.75, 9.3, 3.2, "multi-head latent attention")
    hidden = box(ax, 7.5, 4.9, "hidden\n7168", width=1.2)
    query = box(ax, 10.0, 5.9, "128 queries:\n128 + 64", "content", width=2.0)
    latent = box(ax, 10.0, 4.95, "latent 512", "latent", width=2.0, height=0.62, filled=True)
    key = box(ax, 10.0, 4.2, "rope key 64", "rope", width=2.0, height=0.62, filled=True)
    heads = box(ax, 13.0, 4.95, "keys, values\nof 128 heads", "content", width=1.9)
    out = box(ax, 15.0, 5.9, "out", width=1.0)
    arrow(ax, hidden, query)
    arrow(ax, hidden, latent)
    arrow(ax, hidden, key)
    arrow(ax, latent, heads)
    note(ax, 11.52, 5.12, "W_UK, W_UV", size=7.5)
    arrow(ax, key, heads, kind="rope")
    arrow(ax, query, out)
    arrow(ax, heads, out)
    note(ax, 13.6, 4.12, "the cache holds only the two filled boxes:", size=8.6)
    note(ax, 13.6, 3.9, "576 values a layer, 57 x fewer than MHA", size=8.6)


def draw_experts(ax) -> None:
    """Lower right: routing, a bias that chooses and does not count, routed and shared experts."""
    frame(ax, 6.5, 0.1, 9.3, 3.4, "mixture of experts")
    hidden = box(ax, 7.5, 1.5, "hidden\n7168", width=1.2)
    gate = box(ax, 9.6, 2.35, "sigmoid gate\n+ bias: top 8", "routed", width=1.9, height=0.9)
    shared = box(ax, 12.4, 0.6, "shared expert", "shared", width=2.4, height=0.55)
    out = box(ax, 15.0, 1.5, "sum", width=1.0)
    at_work = {5, 23, 70, 88, 130, 151, 226, 249}  # two in each of four groups of 32
    for i in range(256):
        x, y = 11.35 + 0.075 * (i % 32), 3.13 - 0.19 * (i // 32)
        on = i in at_work
        size = {"width": 0.06, "height": 0.15, "boxstyle": "round,pad=0,rounding_size=0.02"}
        color = COLORS["routed"] if on else tint("routed", 0.25)
        ax.add_patch(FancyBboxPatch((x - 0.03, y - 0.075), **size, facecolor=color, edgecolor="none"))
    note(ax, 12.5, 1.38, "256 routed experts in 8 groups (rows):\n8 at work, in at most 4 groups", size=8.6)
    arrow(ax, hidden, gate)
    arrow(ax, gate, (11.15, 2.3), kind="routed")
    arrow(ax, hidden, shared, kind="shared")
    arrow(ax, shared, out, kind="shared")
    arrow(ax, (13.65, 2.25), out, kind="routed")


def main() -> None:
    """Draw and save."""
    fig, ax = board(16, 7.1, inches=12)
    draw_stream(ax)
    draw_attention(ax)
    draw_experts(ax)
    fig.savefig(ROOT / "docs" / "overview.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
