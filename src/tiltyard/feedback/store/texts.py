"""Texts that both databases can hold."""

from __future__ import annotations

from tiltyard.errors import DataError


def storable(text: str, where: str) -> str:
    """Returns the text.

    Raises:
        DataError: a NUL, which PostgreSQL cannot store, or half of a surrogate pair, which is no character.
    """
    bad = "\x00" in text
    try:
        text.encode()
    except UnicodeEncodeError:
        bad = True
    if bad:
        raise DataError(
            "this text cannot be stored",
            where=where,
            got="a NUL character or half of a surrogate pair",
            expected="text",
            fix="remove the character",
        )
    return text
