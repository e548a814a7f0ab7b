"""The figure of a claim: runs as lines, or arms and pairs with intervals. SVG by hand: it never changes by itself."""

import math
from html import escape
from typing import Any, NamedTuple

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
    for level in round_levels(y0, y1):
        height, ink = place(0, level).split()[1], "#6b7280" if y0 < 0 == level else "#e6e8ec"
        parts.append(f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{height}" y2="{height}" stroke="{ink}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{float(height) + 4:.1f}" text-anchor="end" fill="#6b7280">{level:g}</text>'
        )
    for i in range(5):
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


def round_levels(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers: four to ten of them."""
    unit = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(unit * k for k in (5, 2, 1) if unit * k * 4 <= high - low)
    return [round(i * step, 9) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


ROW, NAME_W, PLOT_W, LABEL_W, SAID_W = 24, 112, 216, 232, 108  # of the figure of an order
AXIS_H = 50
WORDS = {"holds": "#2e8b6f", "does not hold": "#c0396b"}


class Row(NamedTuple):
    """One line of a panel: values as dots, their mean as a stroke, half of an interval, and what stands beside."""

    name: str
    colour: str
    values: list[float]
    half: float | None = None
    said: str = ""


def draw_order(title: str, measure: dict[str, Any], arms: dict[str, dict[str, Any]], orders: list[Any]) -> str:
    """Return the figure of an order: left every arm's seeds; right every pair with its interval, a panel a value.

    Args:
        orders: what `verdict.weigh_order` says of each pair.
    """
    right, panels = NAME_W + PLOT_W + LABEL_W, {order.value: [] for order in orders}
    for order in orders:
        known = len(order.each) > 1
        said = f"{100 * order.mean:+.2f} ± {100 * order.half:.2f}" if known else ""
        each, half = [100 * value for value in order.each], 100 * order.half if known else None
        panels[order.value].append(Row(order.name.replace("`", ""), WORDS.get(order.word, "#6b7280"), each, half, said))
    levels = [
        Row(arm, COLOURS[i % len(COLOURS)], [run["number"] for run in seeds.values()])
        for i, (arm, seeds) in enumerate(arms.items())
    ]
    parts = _draw_panel(levels, TOP, NAME_W, f"{measure['value']}: each seed, mean", "{:.3f}")
    top = TOP
    for value, rows in panels.items():
        caption = f"{value or measure['value']}: lower / upper - 1 in %"
        parts += _draw_panel([*rows], top, right, caption, "{:+.1f}", zero=True)
        top += ROW * len(rows) + AXIS_H
    width, height = right + PLOT_W + SAID_W, max(top, TOP + ROW * len(levels) + AXIS_H)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="20" font-size="14">{escape(title)}</text>',
        *parts, "</svg>",
    ]) + "\n"  # fmt: skip


def _draw_panel(rows: list[Row], top: int, left: int, caption: str, form: str, *, zero: bool = False) -> list[str]:
    """Draw rows above one axis, which has 0 on it if asked."""
    ends = [value for row in rows for value in row.values] or [0.0]
    ends += [sum(row.values) / len(row.values) + side * row.half for row in rows if row.half for side in (-1, 1)]
    ends += [0.0] if zero else []
    margin = 0.06 * (max(ends) - min(ends)) or 0.01
    low, high = min(ends) - margin, max(ends) + margin

    def across(value: float) -> str:
        return f"{left + (value - low) / (high - low) * PLOT_W:.1f}"

    bottom = top + ROW * len(rows)
    parts = [f'<rect x="{left}" y="{top}" width="{PLOT_W}" height="{bottom - top}" fill="#f7f8fa"/>']
    for i in range(4):
        level = min(ends) + (max(ends) - min(ends)) * i / 3
        said = form.format(round(level, 3) + 0.0).replace("-0.0", "+0.0" if round(level, 1) == 0 else "-0.0")
        parts.append(f'<text x="{across(level)}" y="{bottom + 16}" text-anchor="middle" fill="#6b7280">{said}</text>')
    parts.append(f'<text x="{left}" y="{bottom + 34}" fill="#6b7280">{escape(caption)}</text>')
    if zero:
        parts.append(f'<line x1="{across(0)}" x2="{across(0)}" y1="{top}" y2="{bottom}" stroke="#111827"/>')
    for i, row in enumerate(rows):
        y, colour = top + ROW * i + ROW // 2, row.colour
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" fill="{colour}">{escape(row.name)}</text>')
        parts += [f'<circle cx="{across(v)}" cy="{y}" r="3" fill="{colour}" fill-opacity="0.45"/>' for v in row.values]
        if row.values:
            mean = sum(row.values) / len(row.values)
            parts.append(f'<path d="M{across(mean)} {y - 8}V{y + 8}" stroke="{colour}" stroke-width="2.5"/>')
            if row.half is not None:
                line = f"M{across(mean - row.half)} {y}H{across(mean + row.half)}"
                parts.append(f'<path d="{line}" stroke="{colour}" stroke-width="2"/>')
        if row.said:
            parts.append(f'<text x="{left + PLOT_W + 8}" y="{y + 4}" fill="{colour}">{row.said}</text>')
    return parts
