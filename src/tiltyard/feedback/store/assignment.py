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

from sqlalchemy import Connection, Select, func, insert, select, union

from tiltyard.errors import DataError
from tiltyard.feedback.store import queue
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.active import CHOOSER, ActiveOrder
from tiltyard.feedback.store.database import Database, now
from tiltyard.feedback.store.leases import lease
from tiltyard.feedback.store.queue import ANNOTATOR, TASK
from tiltyard.feedback.store.texts import response_texts

LEASE_SECONDS = 20 * 60
KNOWN = ("gold", "attention")  # stages of tasks whose right verdict is known


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
    active: ActiveOrder | None = None,
    at: int | None = None,
) -> Assignment | None:
    """Returns the task that an annotator works on, with its lease; None when there is nothing left for it.

    The same annotator gets the same task again until it is judged, skipped or released, or its lease runs out.

    Args:
        gold_every: after this number of real tasks a gold or attention item comes, never the same twice; 0: none.
        seed: of the order on the page, of the choice among gold items and of active draws.
        active: draws pairs that no one has begun, and the draw is stored; None: tasks are given out in their order.
        at: the present, in milliseconds; for tests.

    Raises:
        DataError: there are no guidelines yet.
    """
    at = now() if at is None else at
    with database.reading() as connection:
        held = _held(connection, annotator, at)
    if held is None:
        with database.writing() as connection:  # as short as can be: all votes wait for it
            held = _leased(connection, database.where, annotator, gold_every, seed, lease_seconds, active, at)
    if held is None:
        return None
    with database.reading() as connection:
        return _assignment(connection, held, annotator, gold_every, at)


def _leased(
    connection: Connection,
    where: str,
    annotator: int,
    gold_every: int,
    seed: int,
    lease_seconds: float,
    active: ActiveOrder | None,
    at: int,
) -> Any:
    """The exposure of the annotator's next task, with its lease; None when there is nothing left."""
    version = connection.scalar(_VERSION)
    if version is None:
        raise DataError("there are no guidelines yet", where=where, fix="add them before tasks are given out")
    if (held := _held(connection, annotator, at)) is not None:
        return held  # another request of the same annotator was quicker
    task = _next(connection, annotator, gold_every, seed, at)
    if task is None:
        return None
    draw = None
    if active is not None and _is_fresh_pair(connection, task):
        draw = active.draw(connection, annotator, at, seed)
        task = task if draw is None else connection.execute(_WHOLE, {"task": draw.task}).one()
    shown = list(range(len(task.responses)))
    random.Random(f"{seed}:{task.id}:{annotator}").shuffle(shown)
    exposure = lease(connection, task.id, annotator, shown, version, at, at + round(1000 * lease_seconds))
    if draw is not None:
        facts = {"probability": draw.probability, "candidates": draw.candidates, "informed_by": draw.informed_by}
        connection.execute(insert(t.draws).values(exposure_id=exposure, chooser=CHOOSER, **facts))
    return _held(connection, annotator, at)


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
        version = connection.scalar(_VERSION)
        responses = connection.scalar(select(t.tasks.c.responses).where(t.tasks.c.id == task))
        if version is None or responses is None or sorted(shown) != list(range(len(responses))):
            raise DataError(
                "this task cannot be shown so",
                where=f"task {task}",
                got=f"order {list(shown)}, guidelines {version}",
                expected="an order of its responses, and a version of the guidelines",
            )
        return lease(connection, task, annotator, list(shown), version, at, at + round(1000 * lease_seconds))


def _had() -> tuple[Any, Any]:
    """The tasks that the annotator has judged, and those that it has skipped."""
    j, e, ends = t.judgements, t.exposures, t.exposure_ends
    judged = select(j.c.task_id).where(j.c.annotator_id == ANNOTATOR)
    skipped = (
        select(e.c.task_id)
        .join(ends, ends.c.exposure_id == e.c.id)
        .where(e.c.annotator_id == ANNOTATOR, ends.c.reason == "skipped")
    )
    return judged, skipped


def _real_since_gold() -> Select[Any]:
    """The number of real tasks that were shown to the annotator since the last gold item."""
    e = t.exposures
    shown = select(e.c.id).join(t.tasks, t.tasks.c.id == e.c.task_id).where(e.c.annotator_id == ANNOTATOR)
    last = select(func.max(shown.where(t.tasks.c.stage.in_(KNOWN)).subquery().c.id)).scalar_subquery()
    real = shown.where(t.tasks.c.stage.in_(queue.DATA), e.c.id > func.coalesce(last, 0))
    return select(func.count()).select_from(real.subquery())


_VERSION = select(func.max(t.guidelines.c.version))
_HELD = (  # the exposures of the annotator that are neither ended nor run out, the oldest first
    select(t.exposures)
    .join(t.leases, t.leases.c.exposure_id == t.exposures.c.id)
    .where(t.leases.c.annotator_id == ANNOTATOR, t.leases.c.expires > queue.AT)
    .order_by(t.exposures.c.id)
)
_NEW = select(t.tasks).where(t.tasks.c.id.not_in(union(*_had()))).order_by(t.tasks.c.id)
_TRAINING = _NEW.where(t.tasks.c.stage == "training").limit(1)
_GOLD = _NEW.where(t.tasks.c.stage.in_(KNOWN))
_SINCE_GOLD = _real_since_gold()
_WHOLE = select(t.tasks).where(t.tasks.c.id == TASK)
_OTHER_GOLD = select(func.count()).select_from(
    _GOLD.with_only_columns(t.tasks.c.id).order_by(None).where(t.tasks.c.id != TASK).subquery()
)
_BY_ID = (
    select(t.tasks.c.kind, t.tasks.c.stage, t.tasks.c.responses, t.prompts.c.messages)
    .join(t.prompts, t.prompts.c.id == t.tasks.c.prompt_id)
    .where(t.tasks.c.id == TASK)
)


def _held(connection: Connection, annotator: int, at: int) -> Any:
    return connection.execute(_HELD, {"annotator": annotator, "at": at}).first()


def _next(connection: Connection, annotator: int, gold_every: int, seed: int, at: int) -> Any:
    who = {"annotator": annotator}
    if (task := connection.execute(_TRAINING, who).first()) is not None:
        return task
    if gold_every and _since_gold(connection, annotator) >= gold_every:
        items = connection.execute(_GOLD, who).all()
        if items:
            digest = hashlib.sha256(f"{seed}:{annotator}:{len(items)}".encode()).digest()
            return items[int.from_bytes(digest[:4], "big") % len(items)]
    real = queue.first(connection, annotator, at)
    return None if real is None else connection.execute(_WHOLE, {"task": real}).one()


def _is_fresh_pair(connection: Connection, task: Any) -> bool:
    """True for a real pair that no one has judged yet."""
    if task.kind != "pair" or task.stage != "real":
        return False
    return connection.scalar(select(t.task_state.c.begun).where(t.task_state.c.task_id == task.id)) == 0


def _since_gold(connection: Connection, annotator: int) -> int:
    return int(connection.scalar(_SINCE_GOLD, {"annotator": annotator}) or 0)


def _remaining(connection: Connection, annotator: int, task: int, gold_every: int, at: int) -> int:
    real = queue.remaining(connection, annotator, task, at)
    if not gold_every:
        return real
    gold = int(connection.scalar(_OTHER_GOLD, {"annotator": annotator, "task": task}) or 0)
    return real + min(gold, (_since_gold(connection, annotator) + real) // gold_every)


def _assignment(connection: Connection, exposure: Any, annotator: int, gold_every: int, at: int) -> Assignment:
    task = connection.execute(_BY_ID, {"task": exposure.task_id}).one()
    texts = response_texts(connection, task.responses)
    return Assignment(
        exposure.id,
        exposure.task_id,
        task.kind,
        task.stage,
        task.messages,
        tuple(texts[task.responses[k]] for k in exposure.shown),
        tuple(exposure.shown),
        exposure.guideline,
        _remaining(connection, annotator, exposure.task_id, gold_every, at),
    )
