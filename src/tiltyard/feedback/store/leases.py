"""Leases: the exposures that have neither ended nor run out, so that assignment need not search the whole log.

`exposures` and `exposure_ends` are the log and are never changed; `leases` can be computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select

from tiltyard.feedback.store import tables as t


def lease(
    connection: Connection, task: int, annotator: int, shown: Sequence[int], guideline: int, began: int, expires: int
) -> int:
    """Notes that an annotator is shown a task, and leases it; returns the exposure. Leases that have run out go.

    Args:
        shown: shown[place on the page] = index into the task's responses.
        began, expires: milliseconds since 1970.
    """
    connection.execute(delete(t.leases).where(t.leases.c.expires <= began))
    row = {"task_id": task, "annotator_id": annotator, "shown": list(shown), "guideline": guideline}
    key = connection.execute(insert(t.exposures).values(**row, began=began, expires=expires)).inserted_primary_key
    assert key is not None
    lasts = {"exposure_id": key[0], "task_id": task, "annotator_id": annotator, "expires": expires}
    connection.execute(insert(t.leases).values(lasts))
    return int(key[0])


def end(connection: Connection, exposure: int, reason: str, note: str, at: int) -> None:
    """Ends an exposure and its lease; one that has ended stays as it is."""
    ends = t.exposure_ends
    if connection.scalar(select(ends.c.exposure_id).where(ends.c.exposure_id == exposure)) is None:
        connection.execute(insert(ends).values(exposure_id=exposure, reason=reason, note=note, ended=at))
    connection.execute(delete(t.leases).where(t.leases.c.exposure_id == exposure))
