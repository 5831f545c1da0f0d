"""The active order of pairs: drawn with known probabilities that are stored, and never out of what others began."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import sqlalchemy as sa
from tests.chance import follows, shifted

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.active import ActiveOrder
from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.judgements import judge, skip, undo
from tiltyard.feedback.store.people import add_annotator, add_guideline
from tiltyard.stats.judged import propensity_weights, votes_of
from tiltyard.stats.ratings.selection import EVEN
from tiltyard.types import Group, Message, Prompt, Response

MODELS = ("a", "b", "c")


def pair(k: int, one: str, other: str, source: str = "s") -> Item:
    prompt = Prompt(messages=(Message("user", f"Question {k}?"),), id=f"q{k}")
    texts = tuple(Response(text=f"{name} {k}", meta={"policy": name}) for name in (one, other))
    return Item(Group(prompt, texts), source=source)


def drawn(store) -> list:
    with store.reading() as connection:
        return connection.execute(sa.select(t.draws).order_by(t.draws.c.exposure_id)).all()


def give(store, who: int, active: ActiveOrder, key: str, choice: str = "first", **settings):
    """Takes the next task and judges it: a verdict on the task's responses."""
    task = next_task(store, who, active=active, **settings)
    if task is not None:
        place = ("first", "second")[task.shown.index(("first", "second").index(choice))]
        judge(store, who, task.exposure, {"choice": place}, key=key)
    return task


def test_each_draw_is_stored_with_its_probability(store):
    add_tasks(store, [pair(k, MODELS[k % 2], "c") for k in range(12)])
    who, active = add_annotator(store, "ada")[0].id, ActiveOrder(refit=1)
    seen = [give(store, who, active, f"k{k}") for k in range(12)]
    assert next_task(store, who, active=active) is None
    rows = drawn(store)
    assert [row.candidates for row in rows] == list(range(12, 0, -1))
    assert {row.chooser for row in rows} == {"expected information"}
    assert rows[0].probability == pytest.approx(1 / 12)  # nothing is known: all tell the same
    assert rows[-1].probability == 1
    assert all(row.probability >= EVEN / row.candidates - 1e-12 for row in rows)
    assert [row.informed_by > 0 for row in rows] == [False, *[True] * 11]
    assert sorted(task.task for task in seen) == sorted({task.task for task in seen})
    found = list(groups(store))
    assert [(g.preference.meta["drawn_with"], g.preference.meta["candidates"]) for g in found] == [
        (row.probability, row.candidates) for row in rows
    ]
    assert propensity_weights(votes_of(found).votes) == pytest.approx([1.0] * 12)  # all were drawn: nothing was chosen


def test_what_tells_more_is_drawn_more_often(store):
    """After nine verdicts for a against b, pairs with c tell more; a model against itself tells nothing."""
    add_tasks(store, [pair(k, "a", "b") for k in range(9)])
    who, active = add_annotator(store, "ada")[0].id, ActiveOrder(refit=1)
    for k in range(9):
        give(store, who, active, f"k{k}")
    ids = add_tasks(store, [pair(20, "a", "b"), pair(21, "a", "c"), pair(22, "b", "c"), pair(23, "a", "a")])
    next_task(store, who, active=active)
    known, first, second, same = active.probabilities(ids)
    assert known < first
    assert known < second
    assert same == pytest.approx(EVEN / 4)
    assert known + first + second + same == pytest.approx(1)


@pytest.mark.statistical
def test_draws_follow_their_probabilities(tmp_path):
    database = Database(tmp_path / "labels.db")
    add_guideline(database, "Prefer what helps.")
    add_tasks(database, [pair(0, "a", "b"), pair(1, "a", "a"), pair(2, "a", "c")])
    who, active = add_annotator(database, "ada")[0].id, ActiveOrder()
    counts: Counter[int] = Counter()
    with database.reading() as connection:
        for seed in range(600):
            counts[active.draw(connection, who, 0, shifted(seed)).task] += 1
    law = dict(zip((1, 2, 3), active.probabilities([1, 2, 3]), strict=True))
    database.close()
    follows(counts, law)


def test_what_is_begun_comes_first_and_keeps_its_draw(store):
    """The second person's verdict and the third's decision carry the draw of the first; undoing changes nothing."""
    add_tasks(store, [Item(**{**vars(pair(k, "a", "b")), "overlap": 2}) for k in range(4)])
    people = [add_annotator(store, name)[0].id for name in ("ada", "bob", "eve")]
    active = ActiveOrder(refit=1)
    first = give(store, people[0], active, "a")
    undo(store, people[0])
    again = next_task(store, people[0], active=active)
    assert again.task == first.task
    judge(store, people[0], again.exposure, {"choice": ("first", "second")[again.shown.index(0)]}, key="again")
    held = next_task(store, people[0], active=active)
    assert held.task != first.task
    assert give(store, people[1], active, "b", "second").task == first.task
    assert give(store, people[2], active, "c").stage == "adjudication"
    assert len(drawn(store)) == 2
    metas = [g.preference.meta for g in groups(store)]
    assert [(m["task"] == first.task, m["drawn_with"], m["candidates"]) for m in metas[:2]] == [(True, 0.25, 4)] * 2
    assert (metas[2]["stage"], metas[2]["drawn_with"]) == ("adjudication", 0.25)


def test_two_people_draw_two_tasks_and_a_skipped_one_comes_back(store):
    add_tasks(store, [pair(k, "a", "b") for k in range(3)])
    people = [add_annotator(store, name)[0].id for name in ("ada", "bob")]
    active = ActiveOrder()
    one, other = (next_task(store, who, active=active) for who in people)
    assert one.task != other.task
    assert [row.candidates for row in drawn(store)] == [3, 2]
    skip(store, people[0], one.exposure, "why")
    last = next_task(store, people[0], active=active)
    assert last.task not in (one.task, other.task)
    judge(store, people[1], other.exposure, {"choice": "tie"}, key="k")
    assert next_task(store, people[1], active=active).task == one.task
    assert [row.candidates for row in drawn(store)] == [3, 2, 1, 1]


def test_sources_advance_alike_and_other_kinds_come_in_order(store, items):
    add_tasks(store, [pair(k, "a", "b", "large" if k < 12 else "small") for k in range(16)])
    who, active = add_annotator(store, "ada")[0].id, ActiveOrder()
    for k in range(8):
        give(store, who, active, f"k{k}")
    assert Counter(g.origin for g in groups(store)) == {"large": 6, "small": 2}
    database_rankings = items(2, count=3, kind="ranking")
    assert len(add_tasks(store, database_rankings)) == 2
    kinds = Counter()
    rng = random.Random(0)
    while (task := next_task(store, who, active=active)) is not None:
        kinds[task.kind] += 1
        verdict = {"choice": "tie"} if task.kind == "pair" else {"ranks": [1, 2, 3]}
        judge(store, who, task.exposure, verdict, key=f"r{rng.random()}")
    assert kinds == {"pair": 8, "ranking": 2}
    assert len(drawn(store)) == 16
