"""Small line charts of characters: braille dots where the terminal has them, stars elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character: 4 rows of 2
BLANK = 0x2800


def chart(values: Sequence[float | None], width: int, height: int, *, braille: bool = True) -> list[str]:
    """Returns `height` lines of `width` characters: the values from left to right, the highest at the top.

    Values are averaged where there are more than dots; None leaves a gap.
    """
    across, rows = (2 * width, 4 * height) if braille else (width, height)
    columns = _columns(values, across)
    known = [value for value in columns if value is not None]
    if not known:
        return [" " * width] * height
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    places = [None if v is None else round((high - v) / span * (rows - 1)) for v in columns]
    if high == low:
        places = [None if place is None else rows // 2 for place in places]
    if not braille:
        return ["".join("*" if place == row else " " for place in places).ljust(width) for row in range(rows)]
    cells = [[BLANK] * width for _ in range(height)]
    before: int | None = None
    for x, place in enumerate(places):
        if place is not None:
            for row in _between(before, place):
                cells[row // 4][x // 2] |= DOTS[row % 4][x % 2]
        before = place
    return ["".join(map(chr, line)) for line in cells]


def _between(before: int | None, place: int) -> range:
    """The rows from the neighbour's to this one's, so that the line has no holes."""
    if before is None or abs(before - place) <= 1:
        return range(place, place + 1)
    return range(before + 1, place + 1) if before < place else range(place, before)


def _between_values(values: Sequence[float | None], at: float) -> float | None:
    """The value at a place between two of them, on the straight line from one to the other."""
    left = int(at)
    a, b = values[left], values[min(left + 1, len(values) - 1)]
    if a is None or b is None:
        return a if at == left else None
    return a + (b - a) * (at - left)


def _columns(values: Sequence[float | None], across: int) -> list[float | None]:
    count = len(values)
    if count <= across:
        return [_between_values(values, x * (count - 1) / max(1, across - 1)) for x in range(across)] if count else []
    columns: list[float | None] = []
    for x in range(across):
        part = [v for v in values[x * count // across : (x + 1) * count // across] if v is not None]
        columns.append(sum(part) / len(part) if part else None)
    return columns
