"""Leases are what the log of exposures says, whatever was done and in which order."""

from __future__ import annotations

import random

import sqlalchemy as sa

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.assignment import next_task, show
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.items import add_tasks
from tiltyard.feedback.store.judgements import judge, skip, undo
from tiltyard.feedback.store.people import add_annotator

from .conftest import undo_migrations_to_0003

LEASE = 10  # seconds


def running(store: Database, at: int) -> tuple[set[int], set[int]]:
    """Exposures that last, by the log and by the table of leases."""
    ended = sa.select(t.exposure_ends.c.exposure_id)
    log = sa.select(t.exposures.c.id).where(t.exposures.c.id.not_in(ended), t.exposures.c.expires > at)
    table = sa.select(t.leases.c.exposure_id).where(t.leases.c.expires > at)
    with store.reading() as connection:
        return set(connection.scalars(log)), set(connection.scalars(table))


def worked(store: Database, people: list[int], seed: int, steps: int) -> int:
    """People take tasks, judge, skip and undo at random, and let leases run out; returns the time at the end."""
    rng, at, held = random.Random(seed), 1_000_000, {}
    for step in range(steps):
        at += rng.choice((10, 500, 1000 * LEASE))
        who = rng.choice(people)
        action = rng.choice(("take", "take", "judge", "judge", "skip", "undo"))
        if action == "take":
            held[who] = next_task(store, who, gold_every=3, seed=seed, lease_seconds=LEASE, at=at)
        elif action == "undo":
            undo(store, who, at=at)
            held.pop(who, None)
        elif (task := held.pop(who, None)) is not None:
            if action == "judge":
                judge(store, who, task.exposure, {"choice": rng.choice(("first", "tie"))}, key=f"{step}", at=at)
            else:
                skip(store, who, task.exposure, "broken", at=at)
        by_log, by_table = running(store, at)
        assert by_log == by_table
    return at


def test_leases_are_what_the_log_says(store, items):
    add_tasks(store, items(12, overlap=2))
    add_tasks(store, items(2, stage="gold", expected={"choice": "first"}))
    people = [add_annotator(store, name)[0].id for name in "abcd"]
    at = worked(store, people, seed=1, steps=120)
    show(store, people[0], 1, (1, 0), at=at)
    by_log, by_table = running(store, at)
    assert by_log == by_table
    assert by_table


def test_what_was_leased_before_the_table_existed_stays_leased(store, url, items):
    """A store of schema 0003 with work in hand: the task comes back after the migration, as the same exposure."""
    add_tasks(store, items(6))
    people = [add_annotator(store, name)[0].id for name in "abc"]
    judged, held = (next_task(store, who) for who in people[:2])
    judge(store, people[0], judged.exposure, {"choice": "tie"}, key="one")
    with store.writing() as connection:
        undo_migrations_to_0003(connection)
    again = Database(url)
    assert next_task(again, people[1]).exposure == held.exposure
    assert next_task(again, people[2]).task not in (judged.task, held.task)
    again.close()
