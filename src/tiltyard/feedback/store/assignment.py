"""Assignment of tasks to annotators: training first, then real ones with gold between them, leased and never twice.

A task is given out while fewer people judge or have judged it than its overlap asks for; a lease that runs out gives
the place back. The order on the page is drawn with a seed made of the task and the annotator, and stored.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, exists, func, insert, select

from tiltyard.errors import DataError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database, now
from tiltyard.feedback.store.texts import response_texts

LEASE_SECONDS = 20 * 60
DATA, KNOWN = ("real", "adjudication"), ("gold", "attention")  # stages: what is collected, what is known


@dataclass(frozen=True)
class Assignment:
    """A task as one annotator sees it: the responses' texts in the order of the page, and no names of models.

    `shown[place]` is the index of the response among the task's; `remaining` counts the tasks that this annotator could
    get after this one, with the gold items that will come between them, so that it falls by one whatever comes next.
    """

    exposure: int
    task: int
    kind: str
    stage: str
    prompt: Any
    texts: tuple[str, ...]
    shown: tuple[int, ...]
    guideline: int
    remaining: int


def next_task(
    database: Database,
    annotator: int,
    *,
    gold_every: int = 0,
    seed: int = 0,
    lease_seconds: float = LEASE_SECONDS,
    at: int | None = None,
) -> Assignment | None:
    """Returns the task that an annotator works on, with its lease; None when there is nothing left for it.

    The same annotator gets the same task again until it is judged, skipped or released, or its lease runs out.

    Args:
        gold_every: after this number of real tasks a gold or attention item comes, never the same twice; 0: none.
        seed: of the order on the page and of the choice among gold items.
        at: the present, in milliseconds; for tests.

    Raises:
        DataError: there are no guidelines yet.
    """
    at = now() if at is None else at
    with database.writing() as connection:
        version = connection.scalar(select(func.max(t.guidelines.c.version)))
        if version is None:
            raise DataError(
                "there are no guidelines yet", where=database.where, fix="add them before tasks are given out"
            )
        held = connection.execute(_held(annotator, at)).first()
        if held is not None:
            return _assignment(connection, held, annotator, gold_every, at)
        task = _next(connection, annotator, gold_every, seed, at)
        if task is None:
            return None
        count = len(task.responses)
        shown = list(range(count))
        random.Random(f"{seed}:{task.id}:{annotator}").shuffle(shown)
        row = {
            "task_id": task.id,
            "annotator_id": annotator,
            "shown": shown,
            "guideline": version,
            "began": at,
            "expires": at + round(1000 * lease_seconds),
        }
        connection.execute(insert(t.exposures).values(row))
        exposure = connection.execute(_held(annotator, at)).first()
        return _assignment(connection, exposure, annotator, gold_every, at)


def show(
    database: Database,
    annotator: int,
    task: int,
    shown: Sequence[int],
    *,
    lease_seconds: float = LEASE_SECONDS,
    at: int | None = None,
) -> int:
    """Notes that an annotator is shown a task in an order that the page has chosen; returns the exposure.

    Args:
        shown: shown[place on the page] = index into the task's responses.

    Raises:
        DataError: there are no guidelines yet, or `shown` is no order of the task's responses.
    """
    at = now() if at is None else at
    with database.writing() as connection:
        version = connection.scalar(select(func.max(t.guidelines.c.version)))
        responses = connection.scalar(select(t.tasks.c.responses).where(t.tasks.c.id == task))
        if version is None or responses is None or sorted(shown) != list(range(len(responses))):
            raise DataError(
                "this task cannot be shown so",
                where=f"task {task}",
                got=f"order {list(shown)}, guidelines {version}",
                expected="an order of its responses, and a version of the guidelines",
            )
        row = {"task_id": task, "annotator_id": annotator, "shown": list(shown), "guideline": version}
        times = {"began": at, "expires": at + round(1000 * lease_seconds)}
        key = connection.execute(insert(t.exposures).values(**row, **times)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _held(annotator: int, at: int) -> Select[Any]:
    """The exposures of an annotator that are neither ended nor run out, the oldest first."""
    e = t.exposures
    return select(e).where(e.c.annotator_id == annotator, e.c.expires > at, ~_ended(e.c.id)).order_by(e.c.id)


def _ended(exposure: Any) -> Any:
    return exists().where(t.exposure_ends.c.exposure_id == exposure)


def _open_to(annotator: int) -> Any:
    """The task was neither judged nor skipped by this annotator."""
    judged = exists().where(t.judgements.c.task_id == t.tasks.c.id, t.judgements.c.annotator_id == annotator)
    skipped = exists().where(
        t.exposures.c.task_id == t.tasks.c.id,
        t.exposures.c.annotator_id == annotator,
        t.exposure_ends.c.exposure_id == t.exposures.c.id,
        t.exposure_ends.c.reason == "skipped",
    )
    return and_(~judged, ~skipped)


def _wanted(at: int) -> Any:
    """Fewer people hold the task than judgements are missing."""
    e = t.exposures
    leased = (
        select(func.count())
        .select_from(e)
        .where(e.c.task_id == t.tasks.c.id, e.c.expires > at, ~_ended(e.c.id))
        .scalar_subquery()
    )
    return t.task_state.c.missing > leased


def _real(annotator: int, at: int) -> Select[Any]:
    """Real tasks and adjudications that this annotator may get: none whose adjudication or parent it has judged."""
    child = t.tasks.alias("child")
    decided = (  # computed once: there is no index to look the adjudication of a task up by
        select(child.c.parent_id)
        .join(t.judgements, t.judgements.c.task_id == child.c.id)
        .where(t.judgements.c.annotator_id == annotator, child.c.parent_id.is_not(None))
    )
    parent = exists().where(t.judgements.c.task_id == t.tasks.c.parent_id, t.judgements.c.annotator_id == annotator)
    return (
        select(t.tasks)
        .join(t.task_state, t.task_state.c.task_id == t.tasks.c.id)
        .where(
            t.task_state.c.missing > 0,
            t.tasks.c.stage.in_(DATA),
            ~parent,
            t.tasks.c.id.not_in(decided),
            _open_to(annotator),
            _wanted(at),
        )
    )


def _next(connection: Connection, annotator: int, gold_every: int, seed: int, at: int) -> Any:
    open_to = _open_to(annotator)
    training = select(t.tasks).where(t.tasks.c.stage == "training", open_to).order_by(t.tasks.c.id).limit(1)
    if (task := connection.execute(training).first()) is not None:
        return task
    if gold_every and _gold_is_due(connection, annotator, gold_every):
        gold = select(t.tasks).where(t.tasks.c.stage.in_(KNOWN), open_to).order_by(t.tasks.c.id)
        items = connection.execute(gold).all()
        if items:
            digest = hashlib.sha256(f"{seed}:{annotator}:{len(items)}".encode()).digest()
            return items[int.from_bytes(digest[:4], "big") % len(items)]
    # adjudications first, then what others have begun, then by place: fewer tasks stay half judged
    order = (t.tasks.c.stage, t.task_state.c.missing - t.tasks.c.overlap, t.tasks.c.place, t.tasks.c.id)
    return connection.execute(_real(annotator, at).order_by(*order).limit(1)).first()


def _gold_is_due(connection: Connection, annotator: int, gold_every: int) -> bool:
    """True if as many real tasks were shown to the annotator since the last gold item."""
    return _since_gold(connection, annotator) >= gold_every


def _since_gold(connection: Connection, annotator: int) -> int:
    """The number of real tasks that were shown to the annotator since the last gold item."""
    shown = (
        select(t.exposures.c.id)
        .join(t.tasks, t.tasks.c.id == t.exposures.c.task_id)
        .where(t.exposures.c.annotator_id == annotator)
    )
    last = select(func.max(shown.where(t.tasks.c.stage.in_(KNOWN)).subquery().c.id)).scalar_subquery()
    real = shown.where(t.tasks.c.stage.in_(DATA), t.exposures.c.id > func.coalesce(last, 0))
    return int(connection.scalar(select(func.count()).select_from(real.subquery())) or 0)


def _remaining(connection: Connection, annotator: int, task: int, gold_every: int, at: int) -> int:
    others = _real(annotator, at).where(t.tasks.c.id != task)
    real = int(connection.scalar(select(func.count()).select_from(others.subquery())) or 0)
    if not gold_every:
        return real
    known = select(t.tasks.c.id).where(t.tasks.c.stage.in_(KNOWN), t.tasks.c.id != task, _open_to(annotator))
    gold = int(connection.scalar(select(func.count()).select_from(known.subquery())) or 0)
    return real + min(gold, (_since_gold(connection, annotator) + real) // gold_every)


def _assignment(connection: Connection, exposure: Any, annotator: int, gold_every: int, at: int) -> Assignment:
    task = connection.execute(select(t.tasks).where(t.tasks.c.id == exposure.task_id)).one()
    prompt = connection.scalar(select(t.prompts.c.messages).where(t.prompts.c.id == task.prompt_id))
    texts = response_texts(connection, task.responses)
    return Assignment(
        exposure.id,
        task.id,
        task.kind,
        task.stage,
        prompt,
        tuple(texts[task.responses[k]] for k in exposure.shown),
        tuple(exposure.shown),
        exposure.guideline,
        _remaining(connection, annotator, task.id, gold_every, at),
    )
