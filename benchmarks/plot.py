"""A chart as an SVG, by hand: a dot a row on a logarithmic scale, the middle half of the samples as a line."""

import math
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from benchmarks.samples import Spread

__all__ = ["write_dots"]

WIDTH, ROW, NAMES, RIGHT, TOP = 720, 30, 170, 110, 46
_OURS, _OTHERS, _TEXT = "#1f6feb", "#9aa4b2", "#57606a"
"""Colours that are read on white and on black."""


def write_dots(path: Path, title: str, unit: str, rows: Mapping[str, Spread]) -> None:
    """Write the chart. At least one row, every sample above 0; rows whose name begins with `ours` stand out."""
    least = 10 ** math.floor(math.log10(min(spread.median for spread in rows.values()) / 1.5))
    most = max(spread.upper for spread in rows.values()) * 1.1
    scale = (WIDTH - NAMES - RIGHT) / math.log10(most / least)

    def place(value: float) -> float:
        return NAMES + max(0.0, math.log10(value / least)) * scale

    height = TOP + ROW * len(rows) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        f' font-size="13" fill="{_TEXT}">',
        f'<text x="0" y="18" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    parts += _grid(least, most, place, height)
    for number, (name, spread) in enumerate(rows.items()):
        top = TOP + ROW * number
        middle = top + ROW / 2
        colour = _OURS if name.startswith("ours") else _OTHERS
        parts += [
            f'<text x="{NAMES - 8}" y="{middle + 4:.0f}" text-anchor="end">{escape(name)}</text>',
            f'<path d="M{NAMES} {middle:.0f}H{WIDTH - RIGHT}" stroke="{_OTHERS}" stroke-opacity="0.25"/>',
            f'<path d="M{place(spread.lower):.1f} {middle:.0f}H{place(spread.upper):.1f}" stroke="{colour}"'
            ' stroke-width="3"/>',
            f'<circle cx="{place(spread.median):.1f}" cy="{middle:.0f}" r="6" fill="{colour}"/>',
            f'<text x="{place(spread.upper) + 10:.1f}" y="{middle + 4:.0f}">{spread.median:,.0f} {escape(unit)}</text>',
        ]
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def _grid(least: float, most: float, place: Callable[[float], float], height: int) -> list[str]:
    parts = []
    value = least
    while value <= most:
        x = place(value)
        parts.append(f'<path d="M{x:.1f} {TOP - 4}V{height - 22}" stroke="{_OTHERS}" stroke-dasharray="2 3"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle" font-size="11">{value:,.0f}</text>')
        value *= 10
    return parts
