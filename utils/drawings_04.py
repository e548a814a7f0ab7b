"""Drawings of chapter 04: blue is the main model, crimson what the module proposes, brown a mistake."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from utils.plots_02 import WRONG
from utils.whiteboard import COLORS, INK, Box, arrow, board, box, matrix, note, tint


def draw_scoring(logits: np.ndarray, prob: np.ndarray, notes: list[tuple[str, bool]]) -> None:
    """Logits, shares, and what each row pays; a row that does not count has a dashed arrow."""
    fig, ax = board(12.6, 4.2, "Softmax each row, read off what came, take minus the logarithm")
    a = matrix(ax, 0.4, 3.3, logits, "ink", cell=0.9, label="logits", numbers=".2f")
    b = matrix(ax, 4.9, 3.3, prob, "content", cell=0.9, label="probabilities", numbers=".3f", limit=1)
    arrow(ax, a, b, "softmax")
    for row, (text, counts) in enumerate(notes):
        y = 3.3 - 0.9 * (row + 0.5)
        arrow(ax, (7.7, y), (9.0, y), kind="content" if counts else "ink", dashed=not counts)
        note(ax, 9.2, y, text, "content" if counts else "ink", align="left")
    plt.show()


def draw_compact_block() -> None:
    """The block as two readers beside a stream; where positions and the cache come in."""
    fig, ax = board(24, 7.4, "Look back, then think: all that a module asks of its block")
    ax.plot([0.6, 23], [1.5, 1.5], color=COLORS["content"], linewidth=5, solid_capstyle="round", zorder=0)
    for x, reader, width in ((2.4, "attention", 3.2), (13.2, "relu² network", 3.8)):
        plus = box(ax, x + 7.4, 1.5, "+", "content", width=0.9, height=0.9, size=15, filled=True)
        first = box(ax, x + 1.2, 4.2, "norm", width=2.0, height=1.1)
        second = box(ax, x + 5.4, 4.2, reader, "content", width=width, height=1.1)
        arrow(ax, (x - 0.6, 1.5), (x + 0.5, 3.6))
        arrow(ax, first, second)
        arrow(ax, second, plus)
        if reader == "attention":
            arrow(ax, box(ax, x + 3.6, 6.4, "position", "rope", width=2.6), second, kind="rope")
            arrow(ax, box(ax, x + 7.6, 6.4, "older keys, values", "content", width=4.8), second, kind="content")
    for x, text in ((1.0, "x"), (12.2, "a"), (22.6, "y")):
        note(ax, x, 0.6, text, "content", size=12)
    plt.show()


def draw_module() -> None:
    """One depth beside the main model; filled boxes exist once and serve both."""
    fig, ax = board(16, 6.0, "One further guess: a pair, one block, the shared head")
    places = {
        "main model": (1.7, 1.5, "content", 2.3), "final norm": (4.5, 1.5, "content", 1.9),
        "hnorm": (7.3, 1.5, "draft", 1.5), "enorm": (7.3, 3.4, "draft", 1.5), "eh_proj": (9.6, 2.5, "draft", 1.6),
        "block": (11.9, 2.5, "draft", 1.5), "shared_head\n.norm": (14.4, 2.5, "draft", 2.2),
        "lm_head": (4.5, 4.4, "content", 1.8), "embed_tokens": (7.3, 5.0, "content", 2.4),
        "lm_head ": (14.4, 4.4, "content", 1.8),
    }  # fmt: skip
    shared = ("lm_head", "embed_tokens")
    boxes = {
        t: box(ax, x, y, t.strip(), kind, width=w, height=0.9, filled=t.strip() in shared)
        for t, (x, y, kind, w) in places.items()
    }
    lines = ["main model > final norm", "final norm > hnorm", "final norm > lm_head", "embed_tokens > enorm"]
    lines += ["hnorm > eh_proj", "enorm > eh_proj", "eh_proj > block", "block > shared_head\n.norm"]
    for line in [*lines, "shared_head\n.norm > lm_head "]:
        arrow(ax, *(boxes[name] for name in line.split(" > ")))
    words = [(1.7, 0.6, "… that heard the"), (4.5, 5.35, "dog"), (9.3, 5.35, "dog"), (14.4, 5.35, "sat")]
    for x, y, text in words:
        note(ax, x, y, text, size=12)
    note(ax, 5.95, 1.05, "$h_i$", size=12)
    note(ax, 11.9, 1.6, "at position i, as $h_i$", "rope")
    plt.show()


def draw_orders(released: np.ndarray, swapped: np.ndarray) -> None:
    """The columns of eh_proj in the order of the released weights and in that of the report."""
    D = len(released)
    look: dict = {"cell": 0.62, "numbers": ".1f", "limit": 2}
    fig, ax = board(13.4, 3.9, "The same numbers in two orders")
    for x, weights, names in (
        (0.6, released, ("embedding", "hidden row")),
        (8.4, swapped, ("hidden row", "embedding")),
    ):
        for half, name in enumerate(names):
            kind = "content" if name == "embedding" else "ink"
            matrix(
                ax, x + half * (0.62 * D + 0.2), 2.9, weights[:, half * D : (half + 1) * D], kind, label=name, **look
            )
    arrow(ax, (4.9, 2.0), (8.1, 2.0), "swap_order")
    note(ax, 2.6, 0.5, "released:  eh_proj [ e ; h ]")
    note(ax, 10.4, 0.5, "report:  M [ h ; e ]")
    plt.show()


def _cell(ax: Axes, x: float, y: float, text: str, face, ink: str = INK, edge: str = "white") -> None:
    ax.add_patch(Rectangle((x - 0.44, y - 0.32), 0.88, 0.64, facecolor=face, edgecolor=edge, linewidth=1.0))
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color=ink)


def draw_grid(words: list[str], border: int, targets: dict[int, np.ndarray], ignore: int) -> None:
    """One panel a depth: which hidden row and which word a row reads, and what it is trained on.

    Args:
        border: the first word of the second document.
        targets: for each depth, the targets of its rows, `ignore` where a row does not count.
    """
    S, wide = len(words), len(words) + 1.3
    fig, ax = board(
        wide * len(targets), S + 1.6, "Every depth has one row fewer, and looks one word further", inches=11
    )
    for panel, (depth, target) in enumerate(targets.items()):
        x0 = 0.9 + wide * panel
        note(ax, x0 + (S - 1) / 2, S + 1.1, f"depth {depth}" + (": the main model" if not depth else ""), size=11)
        ax.plot([x0 + border - 0.5] * 2, [0.3, S + 0.6], "--", color=COLORS["ink"], linewidth=1.2)
        for j, word in enumerate(words):
            note(ax, x0 + j, S + 0.4, word, size=9)
        for i in range(S - 1 - depth):
            y, counts = S - 0.4 - 0.8 * i, target[i] != ignore
            if depth:
                _cell(ax, x0 + i, y, "h", tint("content", 0.25))
            _cell(ax, x0 + i + depth, y, "E", COLORS["content"], "white")
            face, edge = (COLORS["draft"] if counts else "white"), ("white" if counts else COLORS["ink"])
            _cell(ax, x0 + i + depth + 1, y, "guess" if counts else "—", face, "white" if counts else INK, edge)
    plt.show()


def draw_chain_and_heads() -> None:
    """Left: each module is told a word and stands on the one before. Right: heads that all stand on the same row."""
    fig, ax = board(22, 6.2, "A chain is told the words in between; parallel heads are not")
    note(ax, 4.6, 5.7, "DeepSeek: a causal chain", size=11)
    note(ax, 16.6, 5.7, "parallel heads (2404.19737)", size=11)
    for told, x0 in ((True, 1.3), (False, 13.4)):
        rows = [box(ax, x0, 2.5, "$h_i$", "content", width=1.4)]
        for k in (1, 2):
            x, y = (x0 + 3.6 * k, 2.5) if told else (x0 + 3.6, 4.2 - 3.4 * (k - 1))
            rows.append(box(ax, x, y, f"depth {k}", "draft" if told else "ink", width=2.0))
            arrow(ax, rows[k - 1 if told else 0], rows[k])
            end = (x, 4.5) if told else (x0 + 7.2, y)
            arrow(ax, rows[k], box(ax, *end, f"$t_{{i+{k + 1}}}$", "ink", width=1.5))
            if told:
                arrow(ax, box(ax, x, 0.7, f"$t_{{i+{k}}}$", "content", width=1.5, filled=True), rows[k])
    plt.show()


def _step(ax: Axes, y: float, reads: list[str], answers: list[str], n_accepted: int) -> None:
    """One main pass: what it reads above, what it answers below, and the draft that each answer judges."""
    for j, (token, answer) in enumerate(zip(reads, answers)):
        x, passed = 3.6 + 2.9 * j, j <= n_accepted
        top = box(ax, x, y + 1.5, token, "draft" if j else "content", width=1.9, height=0.7)
        low = box(ax, x, y, answer, "content" if passed else "ink", width=1.9, height=0.7, filled=passed)
        arrow(ax, top, low, kind="content" if passed else "ink", dashed=not passed)
        if j and not passed:
            ax.plot([x - 0.8, x + 0.8], [y + 1.25, y + 1.75], color=WRONG, linewidth=2.5)
        if j < len(reads) - 1 and passed:
            arrow(ax, low, (x + 2.0, y + 1.2), kind="ink")
    note(ax, 1.3, y + 1.5, "reads")
    note(ax, 1.3, y, "answers")
    note(ax, 13.2, y + 0.8, f"{n_accepted} accepted:\n{n_accepted + 1} words for one pass", "content", size=11)


def draw_checks() -> None:
    """Two passes over a word and two drafts: both pass; the second does not."""
    fig, ax = board(16, 6.6, "One pass over a word and two drafts: each answer judges the draft to its right")
    _step(ax, 3.9, ["sat", "on", "the"], ["on", "the", "mat"], 2)
    _step(ax, 0.6, ["sat", "on", "a"], ["on", "the", "…"], 1)
    note(ax, 6.5, 3.1, "below, the model would not have said “a”: that draft goes, and its row in the cache too")
    plt.show()


def draw_written(prompt: list[str], steps: list[tuple[list[str], str]], title: str, width: float = 30.0) -> None:
    """A text as it was written: the prompt grey, accepted drafts crimson, what the main model added blue.

    Args:
        steps: for each pass the accepted drafts and the token that the main model added.
    """
    pieces: list[tuple[str, str]] = [(w, "ink") for w in prompt]
    for accepted, own in steps:
        pieces += [(w, "draft") for w in accepted] + [(own, "content")]
    single = max(len(w) for w, _ in pieces) == 1  # letters stand close, words apart
    sizes = [0.62 if single else 0.55 * len(w) + 0.7 for w, _ in pieces]
    places, x, line = [], 0.0, 0
    for size in sizes:
        if x + size > width:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += size
    fig, ax = board(width + 0.4, 1.25 * (line + 1) + 1.3, title)
    for (x, row), size, (word, kind) in zip(places, sizes, pieces):
        y = 1.25 * (line - row) + 1.5
        face = tint("ink", 0.12) if kind == "ink" else COLORS[kind]
        ax.add_patch(Rectangle((0.2 + x, y - 0.5), size - 0.06, 1.0, facecolor=face, edgecolor="white"))
        shown = word.replace(" ", "·").replace("\n", "↵")
        ax.text(
            0.2 + x + size / 2, y, shown, ha="center", va="center", color=INK if kind == "ink" else "white", fontsize=9
        )
    for x, text, kind in (
        (0.2, "given", "ink"),
        (4.2, "drafted and accepted", "draft"),
        (13.0, "the main model’s own", "content"),
    ):
        ax.text(x, 0.35, text, color=COLORS[kind], fontsize=10, va="center")
    plt.show()


def draw_shared_parts() -> None:
    """One model, two questions; filled parts exist once."""
    fig, ax = board(15, 4.4, "One model, two questions: filled parts exist once")
    places = {
        "window": (1.2, 1.3, "ink", 1.8), "embed_tokens": (3.9, 1.3, "content", 2.4),
        "2 blocks": (6.6, 1.3, "content", 1.8), "norm": (8.8, 1.3, "content", 1.4),
        "lm_head": (11.0, 1.3, "content", 1.8), "next word": (13.7, 1.3, "ink", 2.2),
        "module": (8.8, 3.3, "draft", 1.8), "lm_head ": (11.0, 3.3, "content", 1.8),
        "one further": (13.7, 3.3, "ink", 2.2),
    }  # fmt: skip
    shared = ("lm_head", "embed_tokens")
    boxes: dict[str, Box] = {
        t: box(ax, *p[:2], t.strip(), p[2], width=p[3], filled=t.strip() in shared) for t, p in places.items()
    }
    lines = ["window > embed_tokens", "embed_tokens > 2 blocks", "2 blocks > norm", "norm > lm_head", "norm > module"]
    lines += ["lm_head > next word", "module > lm_head ", "lm_head  > one further", "embed_tokens > module"]
    for line in lines:
        arrow(ax, *(boxes[name] for name in line.split(" > ")))
    note(ax, 5.6, 2.75, "the word that came", "content", size=10)
    plt.show()
