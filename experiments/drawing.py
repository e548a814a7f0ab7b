"""The figure of a claim: every run a line, every arm a colour; SVG by hand, so that no library draws it otherwise."""

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
