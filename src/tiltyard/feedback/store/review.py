"""A judged training item, seen again: its verdict beside the expected one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.judgements import WITHDRAWN
from tiltyard.feedback.store.texts import response_texts
from tiltyard.feedback.store.verdicts import Verdict, agree, to_places


@dataclass(frozen=True)
class Review:
    """A judged training item; `given` and `expected` are about places on the page."""

    kind: str
    right: bool
    given: Verdict
    expected: Verdict
    explanation: str
    prompt: Any
    texts: tuple[str, ...]


def review(database: Database, annotator: int, judgement: int) -> Review | None:
    """Returns a judgement of this annotator on a training item; None for any other, so that gold items stay unknown."""
    j = t.judgements
    query = (
        select(j.c.verdict, t.tasks, t.exposures.c.shown, t.prompts.c.messages)
        .join(t.tasks, t.tasks.c.id == j.c.task_id)
        .join(t.exposures, t.exposures.c.id == j.c.exposure_id)
        .join(t.prompts, t.prompts.c.id == t.tasks.c.prompt_id)
        .where(j.c.id == judgement, j.c.annotator_id == annotator, t.tasks.c.stage == "training")
    )
    with database.reading() as connection:
        row = connection.execute(query).one_or_none()
        if row is None or row.verdict == WITHDRAWN:
            return None
        texts = response_texts(connection, row.responses)
    return Review(
        row.kind,
        agree(row.kind, row.verdict, row.expected),
        to_places(row.kind, row.verdict, row.shown),
        to_places(row.kind, row.expected, row.shown),
        row.explanation,
        row.messages,
        tuple(texts[row.responses[k]] for k in row.shown),
    )
