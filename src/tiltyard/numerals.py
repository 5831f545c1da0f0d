"""Numbers with their nouns in sentences for people."""

from __future__ import annotations


def plural(count: int, one: str, many: str = "") -> str:
    """Returns the number with its noun: `1 tie`, `1,200 ties`; `many` is the plural where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def verb(count: int, one: str, many: str) -> str:
    """Returns the form of a verb that agrees with the number: `1 of 5 rows is left out`, `2 of 5 rows are left out`."""
    return one if count == 1 else many
