"""A picture of rates, as SVG for the documentation: a bar for each peer, and a line for the spread of its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tests.bench.rounds import Series

__all__ = ["draw_chart"]

_WIDTH, _LEFT, _RIGHT, _BAR, _GAP = 760, 300, 90, 20, 12


def draw_chart(title: str, series: Sequence[Series]) -> str:
    """Return the picture.

    Args:
        title: What is shown.
        series: What was measured, in the order of the bars.
    """
    rows = [(f"{one.title}, {one.load}", one.rate, [result.rate for result in one.results]) for one in series]
    most = max((max(rates) for _, _, rates in rows), default=1.0)
    height = 50 + len(rows) * (_BAR + _GAP)
    box = f'viewBox="0 0 {_WIDTH} {height}" role="img" font-family="sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}><title>{escape(title)}</title>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="10" y="24" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (name, rate, rates) in enumerate(rows):
        top = 40 + number * (_BAR + _GAP)
        color = "#1f5fbf" if name.startswith("invites-api") else "#8a8f98"
        middle = top + _BAR / 2
        low, high = (_scale(value, most) for value in (min(rates), max(rates)))
        parts += [
            f'<text x="{_LEFT - 8}" y="{top + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{_scale(rate, most):.1f}" height="{_BAR}" fill="{color}"/>',
            f'<path d="M{_LEFT + low:.1f} {middle}H{_LEFT + high:.1f}" stroke="#111" stroke-width="2"/>',
            f'<text x="{_LEFT + high + 8:.1f}" y="{top + 15}">{rate:,.0f}/s</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _scale(rate: float, most: float) -> float:
    return rate / most * (_WIDTH - _LEFT - _RIGHT)
