"""Judgements: stored once and for good, corrected by newer ones, decided by a third person where two disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from tiltyard.errors import DataError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database, now
from tiltyard.feedback.store.items import enqueue
from tiltyard.feedback.store.leases import end, lease
from tiltyard.feedback.store.texts import storable
from tiltyard.feedback.store.verdicts import Verdict, agree, checked, to_responses

WITHDRAWN: Verdict = {"withdrawn": True}
_NEWER = t.judgements.alias("newer")
_STANDING = (  # made once: building it takes longer than running it
    select(t.judgements)
    .outerjoin(_NEWER, _NEWER.c.supersedes == t.judgements.c.id)
    .join(t.annotators, t.annotators.c.id == t.judgements.c.annotator_id)
    .where(t.judgements.c.task_id == bindparam("task"), _NEWER.c.id.is_(None), t.annotators.c.role != "judge")
    .order_by(t.judgements.c.id)
)


@dataclass(frozen=True)
class Stored:
    """A stored judgement. `right`, `explanation`: of an item whose verdict is known; None and "" of others.

    `stage` is the task's: what is right of a gold or attention item is not for the annotator's eyes.
    """

    id: int
    stage: str
    right: bool | None = None
    explanation: str = ""


def judge(
    database: Database,
    annotator: int,
    exposure: int,
    verdict: Any,
    *,
    key: str,
    seconds: float | None = None,
    comment: str = "",
    adjudicate: bool = True,
    open_alone: bool = False,
    since_shown: bool = False,
    at: int | None = None,
) -> Stored:
    """Stores a verdict on what an exposure showed. When it returns, the judgement is on disk.

    Args:
        verdict: about places on the page.
        key: made by the sender: the same key again returns the judgement that it made, and stores nothing.
        adjudicate: two different verdicts on a real task make a task for a third person.
        since_shown: `seconds` are at most those since the task was shown, and these where they are None.
        open_alone: refuse an exposure that has ended, such as one whose models were shown.

    Raises:
        DataError: an exposure of another annotator, of a task that this annotator has judged, or a malformed verdict.
    """
    if not key or len(key) > 64:
        raise DataError("a judgement needs a key", where="key", got=repr(key[:80]), expected="1 to 64 characters")
    storable(key, "key")
    storable(comment, "comment")
    at = now() if at is None else at
    with database.writing() as connection:
        old = connection.execute(select(t.judgements).where(t.judgements.c.key == key)).one_or_none()
        if old is not None:
            if old.annotator_id != annotator:
                raise DataError("this key belongs to another annotator's judgement", where="key", fix="make a new key")
            return _stored(connection, old)
        shown = _exposure(connection, exposure, annotator, open_alone=open_alone)
        task = connection.execute(select(t.tasks).where(t.tasks.c.id == shown.task_id)).one()
        canonical = to_responses(task.kind, checked(task.kind, verdict, len(task.responses)), shown.shown)
        last = _withdrawn(connection, task.id, annotator)
        row = {
            "key": key,
            "task_id": task.id,
            "annotator_id": annotator,
            "exposure_id": exposure,
            "verdict": canonical,
            "comment": comment[:10_000],
            "seconds": _spent(seconds, shown, at) if since_shown else seconds,
            "supersedes": None if last is None else last.id,
            "created": at,
        }
        inserted = connection.execute(insert(t.judgements).values(row)).inserted_primary_key
        assert inserted is not None
        end(connection, exposure, "judged", "", at)
        _count(connection, task.id, -1)
        if adjudicate and task.stage == "real":
            _adjudicate(connection, task, at)
        new = connection.execute(select(t.judgements).where(t.judgements.c.id == inserted[0])).one()
        return _stored(connection, new)


def _withdrawn(connection: Connection, task: int, annotator: int) -> Any:
    """The judgement of the task that this annotator took back; None if there is none.

    Raises:
        DataError: one that stands.
    """
    last = _newest(connection, task, annotator)
    if last is not None and last.verdict != WITHDRAWN:
        raise DataError(
            "this annotator has judged this task already",
            where=f"task {task}",
            fix="undo the judgement first, then judge again",
        )
    return last


def undo(database: Database, annotator: int, *, at: int | None = None) -> int | None:
    """Withdraws the annotator's newest judgement and shows its task again; returns the task, None if there is none.

    The judgement stays in the store, superseded by one that withdraws it.
    """
    at = now() if at is None else at
    with database.writing() as connection:
        j, newer = t.judgements, t.judgements.alias("newer")
        row = connection.execute(
            select(j)
            .outerjoin(newer, newer.c.supersedes == j.c.id)
            .where(j.c.annotator_id == annotator, newer.c.id.is_(None))
            .order_by(j.c.id.desc())
            .limit(1)
        ).first()
        if row is None or row.verdict == WITHDRAWN:
            return None
        values = {"task_id": row.task_id, "annotator_id": annotator, "exposure_id": row.exposure_id}
        connection.execute(
            insert(j).values(**values, key=f"undo-{row.id}", verdict=WITHDRAWN, supersedes=row.id, created=at)
        )
        _count(connection, row.task_id, +1)
        old = connection.execute(select(t.exposures).where(t.exposures.c.id == row.exposure_id)).one()
        held = select(t.leases.c.exposure_id).where(t.leases.c.annotator_id == annotator, t.leases.c.expires > at)
        for exposure in connection.scalars(held).all():
            end(connection, exposure, "released", "undo", at)
        expires = at + (old.expires - old.began)
        lease(connection, row.task_id, annotator, old.shown, old.guideline, at, expires)
        return int(row.task_id)


def skip(database: Database, annotator: int, exposure: int, reason: str, *, at: int | None = None) -> None:
    """Ends an exposure without a verdict; the task goes to another annotator.

    Raises:
        DataError: no reason, or an exposure of another annotator.
    """
    if not reason.strip():
        raise DataError("a skipped task needs a reason", where="skip", fix="say why it cannot be judged")
    storable(reason, "reason")
    with database.writing() as connection:
        _exposure(connection, exposure, annotator)
        end(connection, exposure, "skipped", reason[:2000], now() if at is None else at)


def flag(database: Database, annotator: int, exposure: int, reason: str, *, stop_at: int = 0) -> bool:
    """Marks the prompt of an exposure as one that should not be judged at all (private data, nonsense, harm).

    Args:
        stop_at: people whose flags stop the prompt: its tasks are given to no one any more, and the one of this
            exposure ends. What was judged stays; who has one of them open may still judge it. 0: never.

    Returns:
        Whether the prompt is stopped.

    Raises:
        DataError: an exposure of another annotator.
    """
    storable(reason, "reason")
    flags, state = t.flags, t.task_state
    with database.writing() as connection:
        shown = _exposure(connection, exposure, annotator)
        prompt = connection.scalar(select(t.tasks.c.prompt_id).where(t.tasks.c.id == shown.task_id))
        row = {"prompt_id": prompt, "annotator_id": annotator, "reason": reason[:2000], "created": now()}
        connection.execute(insert(flags).values(row))
        people = select(func.count(flags.c.annotator_id.distinct())).where(flags.c.prompt_id == prompt)
        if not stop_at or int(connection.scalar(people) or 0) < stop_at:
            return False
        tasks = select(t.tasks.c.id).where(t.tasks.c.prompt_id == prompt)
        connection.execute(update(state).where(state.c.task_id.in_(tasks), state.c.missing > 0).values(t.CLOSED))
        end(connection, exposure, "skipped", f"flagged: {reason}"[:2000], now())
    return True


def end_exposure(database: Database, annotator: int, exposure: int, reason: str) -> None:
    """Ends an exposure without a verdict, whatever the reason; one that has ended stays as it is.

    Raises:
        DataError: an exposure of another annotator.
    """
    with database.writing() as connection:
        _exposure(connection, exposure, annotator)
        end(connection, exposure, reason[:40], "", now())


def _spent(seconds: float | None, exposure: Any, at: int) -> float:
    elapsed = max(0.0, (at - exposure.began) / 1000)
    return round(elapsed if seconds is None else min(seconds, elapsed), 1)


def _exposure(connection: Connection, exposure: int, annotator: int, *, open_alone: bool = False) -> Any:
    row = connection.execute(select(t.exposures).where(t.exposures.c.id == exposure)).one_or_none()
    if row is None or row.annotator_id != annotator:
        raise DataError(
            "this task was not given to this annotator", where=f"exposure {exposure}", fix="ask for the next task"
        )
    ends = t.exposure_ends
    if open_alone and connection.scalar(select(ends.c.exposure_id).where(ends.c.exposure_id == exposure)) is not None:
        raise DataError("this task is over", where=f"exposure {exposure}", got="a verdict after its end", fix="go on")
    return row


def _count(connection: Connection, task: int, change: int) -> None:
    state = t.task_state
    changed = {"missing": state.c.missing + change, "begun": state.c.begun + change}
    connection.execute(update(state).where(state.c.task_id == task).values(changed))


def _newest(connection: Connection, task: int, annotator: int) -> Any:
    j = t.judgements
    return connection.execute(
        select(j).where(j.c.task_id == task, j.c.annotator_id == annotator).order_by(j.c.id.desc()).limit(1)
    ).first()


def standing(connection: Connection, task: int) -> list[Any]:
    """Returns people's judgements of a task that are neither superseded nor withdrawn, the oldest first.

    AI judges are left out: a person and a judge who differ are no two people who do.
    """
    rows = connection.execute(_STANDING, {"task": task}).all()
    return [row for row in rows if row.verdict != WITHDRAWN]


def _adjudicate(connection: Connection, task: Any, at: int) -> None:
    """Makes a task for a third person once two verdicts on a task differ; once for each task."""
    verdicts = [row.verdict for row in standing(connection, task.id)]
    if len(verdicts) < 2 or all(agree(task.kind, verdicts[0], other) for other in verdicts[1:]):
        return
    if connection.scalar(select(t.tasks.c.id).where(t.tasks.c.parent_id == task.id)) is not None:
        return
    same = {key: getattr(task, key) for key in ("kind", "prompt_id", "responses", "probability", "place", "source")}
    row = {**same, "stage": "adjudication", "overlap": 1, "chooser": "adjudication", "parent_id": task.id}
    key = connection.execute(insert(t.tasks).values(**row, created=at)).inserted_primary_key
    assert key is not None
    enqueue(connection, int(key[0]), "adjudication", task.place, 1, 1)


def _stored(connection: Connection, row: Any) -> Stored:
    task = connection.execute(select(t.tasks).where(t.tasks.c.id == row.task_id)).one()
    if task.expected is None or row.verdict == WITHDRAWN:
        return Stored(row.id, task.stage)
    return Stored(row.id, task.stage, agree(task.kind, row.verdict, task.expected), task.explanation)
