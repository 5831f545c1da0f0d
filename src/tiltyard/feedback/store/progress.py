"""The number of an annotator's judgements: for the page's progress."""

from __future__ import annotations

import json
from typing import NamedTuple

from sqlalchemy import Text, cast, func, select

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
        select(func.count().filter(t.tasks.c.stage != "training"), func.sum(j.c.seconds))
        .select_from(j)
        .join(t.tasks, t.tasks.c.id == j.c.task_id)
        .outerjoin(newer, newer.c.supersedes == j.c.id)
        .where(j.c.annotator_id == annotator, newer.c.id.is_(None), cast(j.c.verdict, Text) != json.dumps(WITHDRAWN))
    )
    with database.reading() as connection:
        row = connection.execute(query).one()
    return Progress(int(row[0]), float(row[1] or 0.0))
