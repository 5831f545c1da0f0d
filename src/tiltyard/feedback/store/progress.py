"""The number of an annotator's judgements: for the page's progress."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import select

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.judgements import WITHDRAWN


class Progress(NamedTuple):
    """`judged`: tasks with a standing verdict of the annotator, without training. `seconds`: spent on all of them."""

    judged: int
    seconds: float


def progress(database: Database, annotator: int) -> Progress:
    """Returns how many tasks an annotator has judged, and the time spent on them."""
    j, newer = t.judgements, t.judgements.alias("newer")
    query = (
        select(j.c.verdict, j.c.seconds, t.tasks.c.stage)
        .join(t.tasks, t.tasks.c.id == j.c.task_id)
        .outerjoin(newer, newer.c.supersedes == j.c.id)
        .where(j.c.annotator_id == annotator, newer.c.id.is_(None))
    )
    with database.reading() as connection:
        rows = [row for row in connection.execute(query).all() if row.verdict != WITHDRAWN]
    judged = sum(row.stage != "training" for row in rows)
    return Progress(judged, sum(row.seconds or 0.0 for row in rows))
