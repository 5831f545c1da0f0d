"""Judges in a store: their tasks are those of people, their verdicts stand beside people's under a name of their own.

A judge takes no place of a person: its verdicts neither count towards a task's overlap nor make an adjudication. It is
shown nothing, so its judgements have no exposure; what it was asked is in the facts of its record (model, snapshot,
digest of the template).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import insert, select

from tiltyard.errors import ConfigError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database, now
from tiltyard.feedback.store.export import prompt_of, responses_of
from tiltyard.feedback.store.people import add_annotator
from tiltyard.feedback.store.verdicts import Verdict, checked_of_judge
from tiltyard.types import Group, Preference, Prompt, Response, ranks_of

KIND_OF_ASK = {"pair": "pair", "rank": "ranking"}


def tasks_to_judge(database: Database, kind: str) -> list[tuple[int, Group]]:
    """Returns the real tasks of a kind in the order in which they were added, as (id, group without a preference)."""
    query = (
        select(
            t.tasks.c.id,
            t.tasks.c.responses,
            t.tasks.c.source,
            t.prompts.c.id.label("prompt_id"),
            t.prompts.c.messages,
            t.prompts.c.tools,
            t.prompts.c.meta,
        )
        .join(t.prompts, t.prompts.c.id == t.tasks.c.prompt_id)
        .where(t.tasks.c.kind == kind, t.tasks.c.stage == "real")
        .order_by(t.tasks.c.id)
    )
    with database.reading() as connection:
        rows = list(connection.execute(query).all())
    found: list[tuple[int, Group]] = []
    for row, stored in zip(rows, responses_of(database, rows), strict=True):
        prompt: Prompt = prompt_of(row)
        responses = tuple(
            Response(text=one.text, meta={**one.meta, "policy": one.name, "version": one.version}) for one in stored
        )
        found.append((int(row.id), Group(prompt, responses, origin=f"task {row.id}")))
    return found


def judge_annotator(database: Database, name: str, facts: Mapping[str, Any]) -> int:
    """Returns the id of a judge's record; it is added if it is new.

    Raises:
        ConfigError: a person has this name.
    """
    with database.reading() as connection:
        row = connection.execute(select(t.annotators).where(t.annotators.c.name == name)).one_or_none()
    if row is None:
        return add_annotator(database, name, "judge", facts)[0].id
    if row.role != "judge":
        raise ConfigError("a person has the name of this judge", where=f"annotator {name}", got=row.role)
    return int(row.id)


def store_verdicts(database: Database, annotator: int, verdicts: Mapping[int, Verdict]) -> int:
    """Stores a judge's verdicts by task in one transaction; returns how many were new.

    One verdict a task: what is there already stays, so a run that goes on after a kill may store a block again.

    Raises:
        DataError: a malformed verdict; nothing is stored.
    """
    stored, at = 0, now()
    with database.writing() as connection:
        tasks = {row.id: row for row in connection.execute(select(t.tasks).where(t.tasks.c.id.in_(list(verdicts))))}
        query = select(t.judgements.c.task_id).where(
            t.judgements.c.annotator_id == annotator, t.judgements.c.task_id.in_(list(verdicts))
        )
        there = set(connection.scalars(query))
        for task, verdict in verdicts.items():
            if task in there:
                continue
            row = tasks[task]
            kept = checked_of_judge(row.kind, verdict, len(row.responses))
            key = hashlib.sha256(f"judge:{annotator}:{task}".encode()).hexdigest()
            values = {"key": key, "task_id": task, "annotator_id": annotator, "verdict": kept, "created": at}
            connection.execute(insert(t.judgements).values(values))
            stored += 1
    return stored


def verdict_of_preference(preference: Preference) -> Verdict | None:
    """Returns a judge's preference as the verdict of a task of pairs or rankings; None where it has none."""
    ranks = ranks_of(preference)
    if ranks is None:
        return None
    if preference.shares is None or len(ranks) != 2:
        return {"ranks": list(ranks)}
    choice = "tie" if ranks[0] == ranks[1] else "first" if ranks[0] < ranks[1] else "second"
    orders: Sequence[float | None] | None = preference.meta.get("orders")
    both = {} if orders is None or None in orders else {"orders": list(orders)}
    return {"choice": choice, "p": preference.shares[0], **both}
