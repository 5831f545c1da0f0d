"""Texts that both databases can hold."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from tiltyard.errors import DataError
from tiltyard.feedback.store import tables as t


def response_texts(connection: Connection, ids: Iterable[int]) -> dict[int, str]:
    """Returns {id: text} of stored responses."""
    query = select(t.responses.c.id, t.responses.c.text).where(t.responses.c.id.in_(list(ids)))
    return {row.id: row.text for row in connection.execute(query)}


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
