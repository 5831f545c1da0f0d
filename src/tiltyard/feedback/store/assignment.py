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

from sqlalchemy import Connection, Select, and_, bindparam, func, select, union

from tiltyard.errors import DataError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database, now
from tiltyard.feedback.store.leases import lease
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
    with database.reading() as connection:
        held = _held(connection, annotator, at)
    if held is None:
        with database.writing() as connection:  # as short as can be: all votes wait for it
            held = _leased(connection, database.where, annotator, gold_every, seed, lease_seconds, at)
    if held is None:
        return None
    with database.reading() as connection:
        return _assignment(connection, held, annotator, gold_every, at)


def _leased(
    connection: Connection, where: str, annotator: int, gold_every: int, seed: int, lease_seconds: float, at: int
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
    shown = list(range(len(task.responses)))
    random.Random(f"{seed}:{task.id}:{annotator}").shuffle(shown)
    lease(connection, task.id, annotator, shown, version, at, at + round(1000 * lease_seconds))
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


# Statements are built once: building one costs more than running it. Their parameters:
_ANNOTATOR: Any = bindparam("annotator")
_AT: Any = bindparam("at")
_TASK: Any = bindparam("task")


def _had() -> tuple[Any, Any]:
    """The tasks that the annotator has judged, and those that it has skipped."""
    j, e, ends = t.judgements, t.exposures, t.exposure_ends
    judged = select(j.c.task_id).where(j.c.annotator_id == _ANNOTATOR)
    skipped = (
        select(e.c.task_id)
        .join(ends, ends.c.exposure_id == e.c.id)
        .where(e.c.annotator_id == _ANNOTATOR, ends.c.reason == "skipped")
    )
    return judged, skipped


def _real() -> Any:
    """Returns the condition of the real tasks and adjudications that are open to the annotator.

    It is on `tasks` joined with `task_state`. Such a task was neither had, nor is it the adjudication or the parent of
    one that was judged, nor do as many people hold it as judgements are missing. Each of these is a set that is
    computed once, from what this annotator did and from the leases that run: a condition for each task costs 20 ms with
    5,000 tasks.
    """
    child, parent, leases, state = t.tasks.alias("child"), t.tasks.alias("parent"), t.leases, t.task_state
    judged = select(t.judgements.c.task_id).where(t.judgements.c.annotator_id == _ANNOTATOR)
    parents = select(child.c.parent_id).where(
        child.c.stage == "adjudication", child.c.parent_id.is_not(None), child.c.id.in_(judged)
    )
    adjudications = select(parent.c.id).where(parent.c.stage == "adjudication", parent.c.parent_id.in_(judged))
    taken = (
        select(leases.c.task_id)
        .join(state, state.c.task_id == leases.c.task_id)
        .where(leases.c.expires > _AT)
        .group_by(leases.c.task_id, state.c.missing)
        .having(func.count() >= state.c.missing)
    )
    return and_(
        t.task_state.c.missing > 0,
        t.tasks.c.stage.in_(DATA),
        t.tasks.c.id.not_in(union(*_had(), parents, adjudications, taken)),
    )


def _joined(*columns: Any) -> Select[Any]:
    return select(*columns).select_from(t.tasks).join(t.task_state, t.task_state.c.task_id == t.tasks.c.id)


def _real_since_gold() -> Select[Any]:
    """The number of real tasks that were shown to the annotator since the last gold item."""
    e = t.exposures
    shown = select(e.c.id).join(t.tasks, t.tasks.c.id == e.c.task_id).where(e.c.annotator_id == _ANNOTATOR)
    last = select(func.max(shown.where(t.tasks.c.stage.in_(KNOWN)).subquery().c.id)).scalar_subquery()
    real = shown.where(t.tasks.c.stage.in_(DATA), e.c.id > func.coalesce(last, 0))
    return select(func.count()).select_from(real.subquery())


_VERSION = select(func.max(t.guidelines.c.version))
_HELD = (  # the exposures of the annotator that are neither ended nor run out, the oldest first
    select(t.exposures)
    .join(t.leases, t.leases.c.exposure_id == t.exposures.c.id)
    .where(t.leases.c.annotator_id == _ANNOTATOR, t.leases.c.expires > _AT)
    .order_by(t.exposures.c.id)
)
_NEW = select(t.tasks).where(t.tasks.c.id.not_in(union(*_had()))).order_by(t.tasks.c.id)
_TRAINING = _NEW.where(t.tasks.c.stage == "training").limit(1)
_GOLD = _NEW.where(t.tasks.c.stage.in_(KNOWN))
_SINCE_GOLD = _real_since_gold()
_FIRST_REAL = (  # adjudications first, then what others have begun, then by place: fewer tasks stay half judged
    _joined(t.tasks.c.id)
    .where(_real())
    .order_by(t.tasks.c.stage, t.task_state.c.missing - t.tasks.c.overlap, t.tasks.c.place, t.tasks.c.id)
    .limit(1)
)
_REAL = select(t.tasks).where(t.tasks.c.id == _FIRST_REAL.scalar_subquery())
_OTHER_REAL = _joined(func.count()).where(_real(), t.tasks.c.id != _TASK)
_OTHER_GOLD = select(func.count()).select_from(
    _GOLD.with_only_columns(t.tasks.c.id).order_by(None).where(t.tasks.c.id != _TASK).subquery()
)
_BY_ID = (
    select(t.tasks.c.kind, t.tasks.c.stage, t.tasks.c.responses, t.prompts.c.messages)
    .join(t.prompts, t.prompts.c.id == t.tasks.c.prompt_id)
    .where(t.tasks.c.id == _TASK)
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
    return connection.execute(_REAL, {**who, "at": at}).first()


def _since_gold(connection: Connection, annotator: int) -> int:
    return int(connection.scalar(_SINCE_GOLD, {"annotator": annotator}) or 0)


def _remaining(connection: Connection, annotator: int, task: int, gold_every: int, at: int) -> int:
    real = int(connection.scalar(_OTHER_REAL, {"annotator": annotator, "at": at, "task": task}) or 0)
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
