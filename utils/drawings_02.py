"""Drawings of chapter 02, in the language of `utils.whiteboard` and one colour more.

    wrong   brown   a mistake, drawn beside what is right

Blue is content, orange is position, green is the latent, grey is everything else.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Arc, Circle, Rectangle

from utils.plots_02 import color_of
from utils.whiteboard import arrow, board, box, matrix, note


def draw_growing_attention(n_tokens: int = 4) -> None:
    """One panel a step: the rows of old queries are finished, the new row reads every card of the drawer."""
    fig, ax = board(5 * n_tokens, 7.4, "Each step adds one row of scores, and that row reads every card")
    for step in range(1, n_tokens + 1):
        x = 0.6 + 5 * (step - 1)
        rows = np.where(np.tri(n_tokens) > 0, 0.12, -np.inf)
        rows[step - 1, :step], rows[step:] = 1.0, -np.inf
        matrix(ax, x, 6.2, rows, "ink", cell=0.8, limit=1.3)
        new = np.arange(n_tokens) == step - 1
        kept = np.where(np.arange(n_tokens) < step, np.where(new, 1.0, 0.4), -np.inf)
        matrix(ax, x, 1.7, kept[None], "content", cell=0.8, limit=1.3)
        for t in range(step):
            arrow(ax, (x + 0.8 * t + 0.4, 1.72), (x + 0.8 * t + 0.4, 6.2 - 0.8 * step), kind="content")
        note(ax, x + 1.6, 6.6, f"token {step - 1} is new", size=11)
        note(ax, x + 1.6, 0.5, f"{step} card{'s' * (step > 1)}, 1 written now", "content", size=11)
    plt.show()


def draw_masks(masks: dict[str, np.ndarray], kinds: list[str], title: str) -> None:
    """Draw boolean masks [S, T] side by side: the last S of T tokens ask, hatched means hidden."""
    S, T = next(iter(masks.values())).shape
    fig, ax = board(8.4 * len(masks), S + 2.2, title)
    for i, ((name, visible), kind) in enumerate(zip(masks.items(), kinds)):
        x0 = 1 + 8.4 * i
        matrix(ax, x0, S + 1, np.where(visible, 1.0, -np.inf), color_of(kind), cell=1.0, label=name)
        for t in range(T):
            note(ax, x0 + t + 0.5, 0.65, f"key {t}" if t < T - S else f"new {t}", size=10)
        for s in range(S):
            note(ax, x0 - 0.2, S + 0.5 - s, f"q{T - S + s}", align="right", size=11)
    plt.show()


def _clock(ax: Axes, x: float, y: float, hands: list[tuple[float, str, str, float]], title: str) -> None:
    """Draw a circle with hands (angle in turns of 30 degrees, colour, label, how far out the label stands)."""
    ax.add_patch(Circle((x, y), 1.6, fill=False, color="#CCCCCC", lw=1.2))
    for position, kind, label, out in hands:
        tip = 1.6 * np.array([np.cos(position * np.pi / 6), np.sin(position * np.pi / 6)])
        arrow(ax, (x, y), (x + tip[0], y + tip[1]), kind=kind)
        note(ax, x + out * tip[0], y + 1.22 * tip[1], label, kind, size=11)
    note(ax, x, y + 2.45, title, size=11)


def draw_clocks() -> None:
    """A key at six positions; then a query and a key two positions apart, early and late: the angle is the same."""
    fig, ax = board(18, 5.8, "The hands move on, the angle between them stays")
    _clock(ax, 2.7, 2.5, [(m, "rope", str(m), 1.22) for m in range(6)], "one key at positions 0 to 5")
    for x, m, title in ((8.5, 3, "two apart, early"), (15.4, 7, "two apart, later")):
        _clock(ax, x, 2.5, [(m, "ink", f"query at {m}", 1.6), (m - 2, "rope", f"key at {m - 2}", 1.65)], title)
        start = 30 * (m - 2)
        ax.add_patch(Arc((x, 2.5), 1.3, 1.3, theta1=start, theta2=start + 60, color="#222222"))
        middle = np.deg2rad(start + 30)
        note(ax, x + 1.0 * np.cos(middle), 2.5 + 1.0 * np.sin(middle), "60°", size=10)
    plt.show()


def draw_seats(order: np.ndarray, title: str) -> None:
    """Where each element sits in the layout of neighbours (above) and of halves (below); one shade a pair."""
    fig, ax = board(16, 4.8, title)
    shades = ["#FBE6D4", "#F3C397", "#E69A55", "#D9772B"]
    for place in range(len(order)):
        x, seat = 3.4 + 1.6 * place, 3.4 + 1.6 * int(np.flatnonzero(order == place)[0])
        arrow(ax, (x, 3.35), (seat, 1.25), kind="ink")
        for at, y in ((x, 3.8), (seat, 0.8)):
            face = shades[place // 2]
            ax.add_patch(Rectangle((at - 0.65, y - 0.45), 1.3, 0.9, facecolor=face, edgecolor="white"))
            ax.text(at, y, str(place), ha="center", va="center", color="#222222")
    note(ax, 2.3, 3.8, "neighbours", align="right", size=12)
    note(ax, 2.3, 0.8, "halves", align="right", size=12)
    plt.show()


def draw_mla_layer() -> None:
    """The whole layer: two latents, content in blue, positions in orange; filled boxes are kept in the cache."""
    fig, ax = board(21.4, 11.4, "Words are compared through the latent, places through one small key beside it")
    tall: dict = {"height": 1.3}
    hidden = box(ax, 10.6, 10.4, "hidden state h, 7168", "ink", width=5)
    query = box(ax, 3.9, 8.0, "query latent\n(RMSNorm) 1536", "latent", width=4, **tall)
    rope = box(ax, 10.6, 8.0, "rotary key\n(RoPE) 64", "rope", width=3.2, filled=True, **tall)
    latent = box(ax, 17.3, 8.0, "latent c\n(RMSNorm) 512", "latent", width=3.8, filled=True, **tall)
    for end, text in ((query, "q_a_proj"), (rope, ""), (latent, "kv_a_proj_with_mqa")):
        arrow(ax, hidden, end, text, size=9)
    names = ["q content\n128 × 128", "q rope (RoPE)\n128 × 64", "k content\n128 × 128", "value\n128 × 128"]
    kinds, places = ["content", "rope", "content", "content"], [2, 6.1, 15, 19.3]
    parts = [box(ax, x, 5.2, n, k, width=3.4, height=1.2) for n, k, x in zip(names, kinds, places)]
    for start, end, text in zip([query, query, latent, latent], parts, ["", "q_b_proj", "kv_b_proj", ""]):
        arrow(ax, start, end, text, size=9)
    score = box(ax, 8.6, 2.7, "(q·k content + q·k rope) × scale, softmax", "ink", width=9.4, height=1)
    for start, kind in [(parts[0], "content"), (parts[1], "rope"), (parts[2], "content")]:
        arrow(ax, start, score, kind=kind)
    arrow(ax, rope, (10.6, 3.2), "one for all heads", "rope", size=9)
    out = box(ax, 18.2, 0.8, "weighted values, o_proj", "ink", width=5.6, height=1)
    arrow(ax, score, out)
    arrow(ax, parts[3], out, kind="content")
    plt.show()


def draw_latent() -> None:
    """One note per token in the drawer; every head looks at it through its own two matrices."""
    fig, ax = board(19, 6.8, "One note is kept, and every head has its own view of it")
    hidden = box(ax, 1.6, 3.2, "hidden\nD = 7168", "ink", width=2.4, height=1.5)
    latent = box(ax, 7.4, 3.2, "latent c\nC = 512", "latent", width=2.4, height=1.5, filled=True)
    arrow(ax, hidden, latent, "W_DKV")
    for h, (y, name) in enumerate([(5.3, "1"), (3.2, "2"), (1.1, "128")]):
        pair = box(ax, 13.8, y, f"k{name}   v{name}", "content", width=2.6, height=0.9)
        arrow(ax, latent, pair, "W_UK, W_UV" if h == 1 else "")
    note(ax, 13.8, 2.15, "...", size=16)
    note(ax, 7.4, 5.0, "kept in the cache", "latent", size=12)
    note(ax, 7.4, 1.4, "512 numbers", "latent", size=12)
    note(ax, 17.2, 3.2, "rebuilt when read:\n128 · (128 + 128)\n= 32,768 numbers", "content", size=11)
    plt.show()


def _expanded_flow(ax: Axes) -> list:
    """Above: both matrices stand between the latents and the attention; returns their boxes."""
    note(ax, 0.3, 10.5, "expanded: both act on all T latents", align="left", size=11)
    latents = box(ax, 11.3, 10.2, "T latents, 512", "latent", width=4, filled=True)
    query, out = (box(ax, x, 6.9, name, "content", width=2.2) for x, name in [(1.6, "query"), (20.4, "output")])
    scores, total = box(ax, 7.6, 6.9, "scores", "ink"), box(ax, 15, 6.9, "Σ p v", "ink")
    ups = [box(ax, x, 8.6, n, "content", filled=True) for x, n in [(7.6, "W_UK"), (15, "W_UV")]]
    for start, end in [(latents, ups[0]), (latents, ups[1]), (ups[0], scores), (ups[1], total)]:
        arrow(ax, start, end, kind="latent" if start is latents else "content")
    for start, end in [(query, scores), (scores, total), (total, out)]:
        arrow(ax, start, end)
    return ups


def _absorbed_flow(ax: Axes) -> list:
    """Below: one matrix acts on the query, the other on the mixture; returns their boxes."""
    note(ax, 0.3, 4.6, "absorbed: one acts\non the query, one\non the mixture", align="left", size=11)
    latents = box(ax, 11.3, 3.4, "T latents, 512", "latent", width=4, filled=True)
    query, out = (box(ax, x, 1, name, "content", width=2.2) for x, name in [(1.6, "query"), (20.4, "output")])
    ups = [box(ax, x, 1, n, "content", filled=True) for x, n in [(4.9, "W_UKᵀ"), (17.1, "W_UV")]]
    scores, total = box(ax, 8.8, 1, "scores", "ink"), box(ax, 13.6, 1, "Σ p c", "latent")
    for start, end in [(query, ups[0]), (ups[0], scores), (scores, total), (total, ups[1]), (ups[1], out)]:
        arrow(ax, start, end)
    for end in (scores, total):
        arrow(ax, latents, end, kind="latent")
    return ups


def draw_absorption() -> None:
    """The same computation bracketed in two ways; dashed: where each matrix moves."""
    fig, ax = board(22, 11.2, "The two matrices move from T latents to one query and one mixture")
    for before, after, side in zip(_expanded_flow(ax), _absorbed_flow(ax), (-1, 1)):
        arrow(ax, (before.x + side * before.width / 2, before.y), after, dashed=True, bend=0.12 * side * -1)
    plt.show()


def draw_cells() -> None:
    """One cell is 64 numbers: what a token leaves behind in one layer under four kinds of attention."""
    look: dict = {"cell": 0.36, "limit": 1.4}
    fig, ax = board(27, 7.6, "One token, one layer: 512 cells of multi-head attention against 9")
    note(ax, 6.4, 6.9, "multi-head: 512 cells", size=12)
    matrix(ax, 0.6, 6.4, np.ones((16, 32)), "content", **look)
    for y, cells, name in [(5.6, 32, "8 key-value heads: 32 cells"), (3.4, 4, "multi-query: 4 cells"), (1.2, 8, "")]:
        matrix(ax, 14, y, np.ones((1, cells)), "content" if name else "latent", **look)
        note(ax, 14, y + 0.5, name or "latent attention: 8 cells of latent, 1 of rotary key", align="left", size=12)
    matrix(ax, 14 + 8 * 0.36, 1.2, np.ones((1, 1)), "rope", **look)
    plt.show()


def draw_sharing(panels: dict[int, str], title: str) -> None:
    """Four queries above, J keys and values below, an arrow from each query to the drawer that it reads."""
    fig, ax = board(7 * len(panels), 5.4, title)
    for panel, (J, name) in enumerate(panels.items()):
        x0, share = 7 * panel, 4 // J
        note(ax, x0 + 3.3, 4.7, name, size=12)
        centres = [x0 + 1 + 1.55 * (j * share + (share - 1) / 2) for j in range(J)]
        keys = [
            box(ax, c, 0.8, f"k{j}, v{j}", "content", width=1.35, filled=True, size=10) for j, c in enumerate(centres)
        ]
        for h in range(4):
            arrow(ax, box(ax, x0 + 1 + 1.55 * h, 3.5, f"q{h}", "ink", width=1.2), keys[h // share])
    plt.show()


def draw_overwrites(story: list[tuple[str, int]], asked: str, title: str) -> None:
    """Lines that write values under names, and the question; the latest line of the name is filled."""
    fig, ax = board(20, 4.4, title)
    places = [i for i, (name, _) in enumerate(story) if name == asked]
    boxes = [
        box(ax, 1.5 + 2.3 * i, 1.2, f"{n} = {v}", "content" if n == asked else "ink", filled=i == places[-1])
        for i, (n, v) in enumerate(story)
    ]
    box(ax, 18.4, 1.2, f"{asked} = ?", "rope")
    for i in places:
        kind = "rope" if i == places[-1] else "ink"
        arrow(ax, (18.2, 1.65), (boxes[i].x, 1.65), kind=kind, bend=0.24, dashed=kind == "ink")
    note(ax, boxes[places[-1]].x, 0.4, f"the latest {asked}: answer {story[places[-1]][1]}", "content")
    plt.show()
