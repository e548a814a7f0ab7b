"""The figure of a claim: runs as lines, or arms and pairs with intervals. SVG by hand: it never changes by itself."""

from collections.abc import Sequence
from html import escape
from typing import Any

COLOURS = ("#2f6db5", "#d9772b", "#2e8b6f", "#8a56ac", "#b8860b", "#c0396b")
W, T, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 56, 150, 34, 40


def draw_figure(title: str, measure: dict[str, Any], arms: dict[str, dict[str, Any]]) -> str:
    """Return the figure as text."""
    points = [point for seeds in arms.values() for run in seeds.values() for point in run["series"]]
    x1 = max(x for x, _ in points) or 1
    y0, y1 = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    y1 = y1 if y1 > y0 else y0 + 1

    def place(x: float, y: float) -> str:
        across = LEFT + x / x1 * (W - LEFT - RIGHT)
        return f"{across:.1f} {T - BOTTOM - (y - y0) / (y1 - y0) * (T - TOP - BOTTOM):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {T}" font-family="sans-serif" font-size="12">',
        f'<rect width="{W}" height="{T}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}: {escape(measure["value"])} over steps</text>',
    ]
    for i in range(5):
        level = y0 + (y1 - y0) * i / 4
        height = place(0, level).split()[1]
        parts.append(f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{height}" y2="{height}" stroke="#e6e8ec"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height}" text-anchor="end" fill="#6b7280">{level:.3g}</text>')
        step = x1 * i / 4
        parts.append(
            f'<text x="{place(step, y0).split()[0]}" y="{T - 14}" text-anchor="middle" fill="#6b7280">{step:.0f}</text>'
        )
    for number, (arm, seeds) in enumerate(arms.items()):
        colour = COLOURS[number % len(COLOURS)]
        for run in seeds.values():
            line = "M" + "L".join(place(x, y) for x, y in run["series"])
            parts.append(f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        y = TOP + 14 + 18 * number
        parts.append(f'<text x="{W - RIGHT + 12}" y="{y}" fill="{colour}">{escape(arm)} ({len(seeds)})</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


ROW, NAME_W, PLOT_W, LABEL_W = 24, 112, 236, 232  # of the figure of an order


def draw_order(title: str, measure: dict[str, Any], arms: dict[str, dict[str, Any]], orders: list[Any]) -> str:
    """Return the figure of an order: left every arm's seeds, right every pair with its interval.

    Args:
        orders: what `verdict.weigh_order` says of each pair.
    """
    rows = max(len(arms), len(orders))
    height, right = TOP + ROW * rows + 44, NAME_W + PLOT_W + LABEL_W
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + PLOT_W + 16} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{right + PLOT_W + 16}" height="{height}" fill="white"/>',
        f'<text x="12" y="20" font-size="14">{escape(title)}</text>',
    ]
    values = {arm: [run["number"] for run in seeds.values()] for arm, seeds in arms.items()}
    every = [value for found in values.values() for value in found]
    levels = [(arm, COLOURS[i % len(COLOURS)], values[arm], None) for i, arm in enumerate(arms)]
    axis = (min(every), max(every))
    parts += _draw_rows(levels, axis, NAME_W, f"{measure['value']}, each seed and mean", height, "{:.3f}")
    ends = [100 * (o.mean + side * o.half) for o in orders for side in (-1, 1) if len(o.each) > 1]
    ends += [100 * value for o in orders for value in o.each] + [0.0]
    word = {"holds": "#2e8b6f", "does not hold": "#c0396b"}
    pairs = [(o.name.replace("`", ""), word.get(o.word, "#6b7280"), [100 * value for value in o.each],
              100 * o.half if len(o.each) > 1 else None) for o in orders]  # fmt: skip
    parts += _draw_rows(pairs, (min(ends), max(ends)), right, "lower / upper - 1, in %", height, "{:+.1f}")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_rows(
    rows: Sequence[tuple[str, str, list[float], float | None]], ends: tuple[float, float], left: int, caption: str,
    height: int, form: str,
) -> list[str]:  # fmt: skip
    """Draw one row a name: its values as dots, their mean as a line, and an interval where half of it is given."""
    low, high = ends
    margin = 0.06 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def across(value: float) -> str:
        return f"{left + (value - low) / (high - low) * PLOT_W:.1f}"

    bottom = height - 44
    parts = [f'<rect x="{left}" y="{TOP}" width="{PLOT_W}" height="{bottom - TOP}" fill="#f7f8fa"/>']
    for i in range(4):
        level = low + margin + (high - low - 2 * margin) * i / 3
        parts.append(f'<text x="{across(level)}" y="{bottom + 16}" text-anchor="middle" fill="#6b7280">'
                     f"{form.format(level)}</text>")  # fmt: skip
    parts.append(f'<text x="{left}" y="{bottom + 34}" fill="#6b7280">{escape(caption)}</text>')
    if low < 0 < high:
        parts.append(f'<line x1="{across(0)}" x2="{across(0)}" y1="{TOP}" y2="{bottom}" stroke="#111827"/>')
    for i, (name, colour, values, half) in enumerate(rows):
        y = TOP + ROW * i + ROW / 2
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" fill="{colour}">{escape(name)}</text>')
        parts += [f'<circle cx="{across(v)}" cy="{y}" r="3" fill="{colour}" fill-opacity="0.45"/>' for v in values]
        if values:
            mean = sum(values) / len(values)
            parts.append(f'<path d="M{across(mean)} {y - 8}V{y + 8}" stroke="{colour}" stroke-width="2.5"/>')
            if half is not None:
                parts.append(f'<path d="M{across(mean - half)} {y}H{across(mean + half)}" stroke="{colour}" '
                             'stroke-width="2"/>')  # fmt: skip
    return parts
