"""The queue's index gives the tasks that a search through all of them gives, in the same order, and is used."""

from __future__ import annotations

import random

import pytest
import sqlalchemy as sa

from tiltyard.feedback.store import queue
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.campaigns import close
from tiltyard.feedback.store.items import add_tasks
from tiltyard.feedback.store.judgements import judge, skip, undo
from tiltyard.feedback.store.people import add_annotator

SECOND = 1000


def searched(store, who: int, at: int) -> list[int]:
    """All tasks that the annotator may get, in order, found by looking at every row."""
    with store.reading() as connection:
        tasks = {row.id: row for row in connection.execute(sa.select(t.tasks))}
        missing = dict(connection.execute(sa.select(t.task_state.c.task_id, t.task_state.c.missing)).all())
        judged = {tuple(x) for x in connection.execute(sa.select(t.judgements.c.task_id, t.judgements.c.annotator_id))}
        ends = dict(connection.execute(sa.select(t.exposure_ends.c.exposure_id, t.exposure_ends.c.reason)).all())
        shown = connection.execute(sa.select(t.exposures)).all()
    skipped = {(e.task_id, e.annotator_id) for e in shown if ends.get(e.id) == "skipped"}
    held = [e.task_id for e in shown if e.id not in ends and e.expires > at]
    children = {task.parent_id: task.id for task in tasks.values() if task.parent_id is not None}
    found = []
    for task in tasks.values():
        related = [task.id, task.parent_id, children.get(task.id)]
        closed = any((one, who) in judged for one in related) or (task.id, who) in skipped
        if task.stage in queue.DATA and missing[task.id] > held.count(task.id) and not closed:
            found.append((task.stage, missing[task.id] - task.overlap, task.place, task.id))
    return [key[-1] for key in sorted(found)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_next_task_is_the_first_of_all(store, items, seed):
    """Four people judge, skip, undo and let leases run out; two verdicts that differ make adjudications."""
    rng = random.Random(seed)
    add_tasks(store, [*items(6, overlap=2), *items(4, overlap=3), *items(3)], seed=seed)
    add_tasks(store, items(3), campaign="c")
    people = [add_annotator(store, name)[0].id for name in "abcd"]
    at, disputes = 0, 0
    for k in range(70):
        at += rng.choice([1, 5, 40]) * SECOND
        who = rng.choice(people)
        if k == 50:
            assert close(store, "c") > 0
        held = searched(store, who, at)
        task = next_task(store, who, lease_seconds=30, at=at)
        if task is None:
            assert held == []
            continue
        with store.reading() as connection:
            began = connection.scalar(sa.select(t.exposures.c.began).where(t.exposures.c.id == task.exposure))
            assert queue.first(connection, who, at) == next(iter(searched(store, who, at)), None)
        assert began < at or task.task == held[0]  # an older lease, or the first of all
        assert task.remaining == len([one for one in searched(store, who, at) if one != task.task])
        disputes += task.stage == "adjudication"
        act = rng.choice(["judge", "judge", "judge", "skip", "undo", "leave"])
        if act == "judge":
            judge(store, who, task.exposure, {"choice": rng.choice(["first", "second"])}, key=f"k{k}", at=at)
        elif act == "skip":
            skip(store, who, task.exposure, "why", at=at)
        elif act == "undo":
            undo(store, who, at=at)
    assert disputes


def test_a_request_walks_the_index(store, items):
    add_tasks(store, items(3))
    who = add_annotator(store, "ada")[0].id
    statements = []
    engine = store._writer
    sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append((args[2], args[3])))
    next_task(store, who)
    walks = [s for s in statements if "ORDER BY task_state.begun" in s[0]]
    assert walks
    with store.reading() as connection:
        if not store.is_sqlite:
            connection.exec_driver_sql("SET enable_seqscan = off")  # three rows are read faster than any index
        word = "EXPLAIN QUERY PLAN" if store.is_sqlite else "EXPLAIN"
        plan = "\n".join(map(str, connection.exec_driver_sql(f"{word} {walks[-1][0]}", walks[-1][1]).all()))
    assert "ix_task_state_queue" in plan
    if store.is_sqlite:
        assert "TEMP B-TREE" not in plan, "nothing is sorted"
    assert "SCAN judgements" not in plan
