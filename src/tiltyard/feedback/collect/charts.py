"""Small charts as inline SVG, drawn on the server: no script, no style attribute, and the numbers stand beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 240, 24


def interval(
    value: float, low: float, high: float, *, least: float = 0.0, most: float = 1.0, mark: float | None = None
) -> Markup:
    """Draws a value with its interval on a line from `least` to `most`; `mark` is drawn as a dashed line.

    A value that is nan is not drawn; a bound that is nan leaves the interval out.
    """

    def x(at: float) -> float:
        share = (min(max(at, least), most) - least) / (most - least)
        return round(8 + share * (WIDTH - 16), 1)

    middle = HEIGHT / 2
    parts = [f'<line class="axis" x1="8" x2="{WIDTH - 8}" y1="{middle}" y2="{middle}"/>']
    parts += [
        f'<line class="axis" x1="{x(at)}" x2="{x(at)}" y1="{middle - 4}" y2="{middle + 4}"/>'
        for at in (least, (least + most) / 2, most)
    ]
    if mark is not None:
        parts.append(f'<line class="mark-line" x1="{x(mark)}" x2="{x(mark)}" y1="2" y2="{HEIGHT - 2}"/>')
    if not math.isnan(value):
        if not math.isnan(low) and not math.isnan(high):
            wide = max(x(high) - x(low), 1)
            parts.append(f'<rect class="range" x="{x(low)}" y="{middle - 4}" width="{wide}" height="8" rx="4"/>')
        parts.append(f'<circle class="point" cx="{x(value)}" cy="{middle}" r="5"/>')
    return _svg(WIDTH, HEIGHT, "interval", "", parts)


def scale(least: str, middle: str, most: str) -> Markup:
    """Draws the numbers of the line on which `interval` draws, to stand above a column of them."""
    ends = ((8, "start", least), (WIDTH / 2, "middle", middle), (WIDTH - 8, "end", most))
    parts = [
        f'<text class="tick" x="{x}" y="18" text-anchor="{anchor}">{escape(text)}</text>' for x, anchor, text in ends
    ]
    return _svg(WIDTH, 22, "interval", "", parts)


def columns(values: Sequence[tuple[str, int]], title: str, marks: Sequence[tuple[int, str]] = ()) -> Markup:
    """Draws counts as columns, with the first and the last label below and the largest count at the top.

    Args:
        marks: (index of a column, name) of what happened then, such as a new version of the guidelines.
    """
    width, height, top, floor = 720, 160, 24, 130
    if not values:
        return Markup("")
    most = max(1, *(count for _, count in values))
    step = (width - 40) / len(values)
    parts = [f'<line class="axis" x1="40" x2="{width}" y1="{floor}" y2="{floor}"/>']
    parts.append(f'<text class="tick" x="34" y="{top + 6}" text-anchor="end">{most}</text>')
    parts.append(f'<text class="tick" x="34" y="{floor + 4}" text-anchor="end">0</text>')
    for k, (label, count) in enumerate(values):
        tall = round((floor - top) * count / most, 1)
        left, wide = round(40 + k * step + step * 0.1, 1), round(max(step * 0.8, 1), 1)
        hint = f"<title>{escape(label)}: {count}</title>"
        parts.append(
            f'<rect class="column" x="{left}" y="{floor - tall}" width="{min(wide, 60)}" height="{tall}" rx="3">'
            f"{hint}</rect>"
        )
    for k, name in marks:
        left = round(40 + k * step + step * 0.02, 1)
        near = 'text-anchor="end" dx="-5"' if k > len(values) * 0.8 else 'dx="5"'
        parts.append(f'<line class="mark-line" x1="{left}" x2="{left}" y1="4" y2="{floor}"/>')
        parts.append(f'<text class="tick" x="{left}" y="14" {near}>{escape(name)}</text>')
    ends = [(0, "start", 40), (len(values) - 1, "end", width)] if len(values) > 1 else [(0, "start", 40)]
    for k, anchor, at in ends:
        parts.append(
            f'<text class="tick" x="{at}" y="{height - 8}" text-anchor="{anchor}">{escape(values[k][0])}</text>'
        )
    return _svg(width, height, "columns", title, parts)


def _svg(width: int, height: int, kind: str, title: str, parts: Sequence[str]) -> Markup:
    named = Markup('role="img" aria-label="{}"').format(title) if title else Markup('aria-hidden="true"')
    inside = Markup("".join(parts))  # noqa: S704 - numbers, and texts that are escaped above
    return Markup('<svg class="chart {}" viewBox="0 0 {} {}" {}>{}</svg>').format(kind, width, height, named, inside)
