"""The queue of real tasks: which of them an annotator may get, the next one, and how many are left.

`task_state` has the open tasks in the order in which they are given out: adjudications first, then what others have
begun (so that fewer tasks stay half judged), then by place. Its partial index is walked from the start to the first
task that this annotator may get, so that a request costs what the annotator has done, and not what is still to be done.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, exists, func, or_, select, text, union

from tiltyard.feedback.store import tables as t

DATA = ("adjudication", "real")  # stages of what is collected, in the order in which they are given out

# Statements are built once: building one costs more than running it. Their parameters:
ANNOTATOR: Any = bindparam("annotator")
AT: Any = bindparam("at")
TASK: Any = bindparam("task")
_OPEN = text("task_state.missing > 0")  # literally the condition of the index


def first(connection: Connection, annotator: int, at: int) -> int | None:
    """Returns the next task of an annotator; None where there is none."""
    for stage in DATA:
        task = connection.scalar(_FIRST, {"annotator": annotator, "at": at, "stage": stage})
        if task is not None:
            return int(task)
    return None


def untouched(connection: Connection, annotator: int, at: int) -> list[int]:
    """Returns the real tasks that the annotator may get and that no one has begun or holds, in order of their ids."""
    return sorted(connection.scalars(_UNTOUCHED, {"annotator": annotator, "at": at}))


def remaining(connection: Connection, annotator: int, task: int, at: int) -> int:
    """Counts the tasks that the annotator may get, `task` left out.

    All open ones, but for those that the annotator has had or may not decide, and those that others hold: these are
    few, and looked up one by one.
    """
    who = {"annotator": annotator, "at": at, "task": task}
    return int(connection.scalar(_OTHERS, who) or 0) - int(connection.scalar(_OTHERS_CLOSED, who) or 0)


def _leased() -> Any:
    """The number of people who hold a task of `task_state` now."""
    leases = t.leases
    held = select(func.count()).select_from(leases)
    return held.where(leases.c.task_id == t.task_state.c.task_id, leases.c.expires > AT).scalar_subquery()


def _closed() -> ColumnElement[bool]:
    """True of an open task that the annotator may not get: had before, in dispute with it, or held by enough people."""
    s, j, e, ends = t.task_state, t.judgements, t.exposures, t.exposure_ends
    own, child = t.tasks.alias("own"), t.tasks.alias("child")
    judged = exists().where(j.c.task_id == s.c.task_id, j.c.annotator_id == ANNOTATOR)
    skipped = exists().where(
        e.c.task_id == s.c.task_id,
        e.c.annotator_id == ANNOTATOR,
        ends.c.exposure_id == e.c.id,
        ends.c.reason == "skipped",
    )
    disputed = exists().where(
        own.c.id == s.c.task_id, j.c.task_id == own.c.parent_id, j.c.annotator_id == ANNOTATOR
    )  # an adjudication of what the annotator has judged
    decided = exists().where(
        child.c.parent_id == s.c.task_id, j.c.task_id == child.c.id, j.c.annotator_id == ANNOTATOR
    )  # a task whose dispute the annotator has decided
    return or_(judged, skipped, disputed, decided, s.c.missing <= _leased())


def _near() -> Any:
    """Selects all tasks of which `_closed` may be true."""
    j, e = t.judgements, t.exposures
    judged = select(j.c.task_id).where(j.c.annotator_id == ANNOTATOR)
    shown = select(e.c.task_id).where(e.c.annotator_id == ANNOTATOR)
    children = select(t.tasks.c.id.label("task_id")).where(t.tasks.c.parent_id.in_(judged))
    parents = select(t.tasks.c.parent_id.label("task_id")).where(
        and_(t.tasks.c.id.in_(judged), t.tasks.c.parent_id.is_not(None))
    )
    held = select(t.leases.c.task_id).where(t.leases.c.expires > AT)
    return union(judged, shown, children, parents, held).subquery()


_S = t.task_state
_FIRST = (
    select(_S.c.task_id)
    .where(_OPEN, _S.c.stage == bindparam("stage"), ~_closed())
    .order_by(_S.c.begun, _S.c.place, _S.c.task_id)
    .limit(1)
)
_UNTOUCHED = select(_S.c.task_id).where(_OPEN, _S.c.stage == "real", _S.c.begun == 0, _leased() == 0, ~_closed())
_OTHER = (_OPEN, _S.c.stage.in_(DATA), _S.c.task_id != TASK)
_OTHERS = select(func.count()).select_from(_S).where(*_OTHER)
_TOUCHED = _near()
_OTHERS_CLOSED = (
    select(func.count()).select_from(_TOUCHED).join(_S, _S.c.task_id == _TOUCHED.c.task_id).where(*_OTHER, _closed())
)
