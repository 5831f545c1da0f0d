"""The number of an annotator's judgements: for the page's progress."""

from __future__ import annotations

import json
from typing import NamedTuple

from sqlalchemy import Text, bindparam, cast, func, select

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.judgements import WITHDRAWN

_J, _NEWER = t.judgements, t.judgements.alias("newer")
_QUERY = (
    select(func.count().filter(t.tasks.c.stage != "training"), func.sum(_J.c.seconds))
    .select_from(_J)
    .join(t.tasks, t.tasks.c.id == _J.c.task_id)
    .outerjoin(_NEWER, _NEWER.c.supersedes == _J.c.id)
    .where(
        _J.c.annotator_id == bindparam("annotator"),
        _NEWER.c.id.is_(None),
        cast(_J.c.verdict, Text) != json.dumps(WITHDRAWN),
    )
)


class Progress(NamedTuple):
    """`judged`: tasks with a standing verdict of the annotator, without training. `seconds`: spent on all of them."""

    judged: int
    seconds: float


def progress(database: Database, annotator: int) -> Progress:
    """Returns how many tasks an annotator has judged, and the time spent on them."""
    with database.reading() as connection:
        row = connection.execute(_QUERY, {"annotator": annotator}).one()
    return Progress(int(row[0]), float(row[1] or 0.0))
