"""Tasks are given out, judged once, corrected without loss, and decided by a third person where two disagree."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import sqlalchemy as sa

from tiltyard.data import BadRows
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.active import ActiveOrder
from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.imports import import_judgements
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.judgements import flag, judge, skip, undo
from tiltyard.feedback.store.people import accept_guideline, add_annotator
from tiltyard.types import Preference

from .conftest import group


def person(store, name="ada"):
    return add_annotator(store, name)[0].id


def verdict_for(task, best: str):
    """Chooses the place where the text stands that contains `best`."""
    return {"choice": ("first", "second")[next(k for k, text in enumerate(task.texts) if best in text)]}


def test_a_verdict_about_places_becomes_one_about_responses(store, items):
    """Whatever the order on the page, the response that was chosen is the one that is stored and exported."""
    add_tasks(store, items(12))
    who = person(store)
    orders = Counter()
    for k in range(12):
        task = next_task(store, who)
        orders[task.shown] += 1
        judge(store, who, task.exposure, verdict_for(task, "-1"), key=f"k{k}", seconds=3.5)
    assert next_task(store, who) is None
    assert set(orders) == {(0, 1), (1, 0)}, "both orders occur"
    found = list(groups(store))
    assert len(found) == 12
    for one in found:
        assert one.preference.ranks == (2, 1)
        assert one.responses[1].text.endswith("-1")
        assert one.responses[1].meta == {"policy": "model-1", "version": "1"}
        assert (one.preference.annotator, one.preference.guideline) == ("ada", "1")
        assert one.preference.meta["seconds"] == 3.5
        assert one.prompt.messages[0].content.startswith("Question")
        assert one.prompt.id.startswith("q")


@pytest.mark.parametrize(
    ("kind", "count", "verdict", "ranks"),
    [
        ("pair", 2, {"choice": "tie"}, (1, 1)),
        ("pair", 2, {"choice": "both_bad"}, None),
        ("ranking", 4, {"ranks": [2, 2, 1, 4]}, None),
        ("best_worst", 4, {"best": 0, "worst": 3}, None),
    ],
)
def test_kinds(store, items, kind, count, verdict, ranks):
    add_tasks(store, items(1, count=count, kind=kind))
    who = person(store)
    task = next_task(store, who)
    judge(store, who, task.exposure, verdict, key="k")
    (one,) = groups(store)
    if kind == "pair":
        assert one.preference.ranks == ranks
        assert one.preference.meta.get("reason") == ("both_bad" if ranks is None else None)
        return
    by_text = {response.text: rank for response, rank in zip(one.responses, one.preference.ranks, strict=True)}
    on_page = [by_text[text] for text in task.texts]
    assert on_page == ([2, 2, 1, 3] if kind == "ranking" else [1, 2, 2, 3])


def test_ratings_and_texts(store, items):
    add_tasks(store, [*items(1, count=3, kind="rating"), *items(1, count=1, kind="write")])
    who = person(store)
    for k in range(2):
        task = next_task(store, who)
        if task.kind == "rating":
            ratings = [int(text[-1]) + 3 for text in task.texts]
            flags = [{"truthful": text.endswith("2")} for text in task.texts]
            judge(store, who, task.exposure, {"ratings": ratings, "flags": flags}, key=f"k{k}")
        else:
            judge(store, who, task.exposure, {"text": "A better answer.", "edited": 0}, key=f"k{k}")
    rated, written = sorted(groups(store), key=lambda g: g.preference.meta["kind"])
    assert rated.preference.ratings == (3, 4, 5)
    assert [f["truthful"] for f in rated.preference.meta["flags"]] == [False, False, True]
    assert written.responses[0].text == "A better answer."
    assert written.preference.meta["edited"] == {"text": "answer 0-0", "policy": "model-0", "version": "1"}


def test_overlap_leases_and_never_twice(store, items):
    """Two people judge each task, no third one does, none judges one twice; a lease that runs out frees the place."""
    ids = add_tasks(store, items(3, overlap=2))
    people = [person(store, name) for name in "abc"]
    held = [next_task(store, who, at=1000, lease_seconds=10) for who in people]
    first = Counter(task.task for task in held)
    assert max(first.values()) <= 2
    assert next_task(store, people[0], at=2000).exposure == held[0].exposure, "the same lease again"
    seen = Counter()
    at, k = 20_000, 0  # all leases have run out
    while any(tasks := [next_task(store, who, at=at) for who in people]):
        for who, task in zip(people, tasks, strict=True):
            if task is not None:
                seen[who, task.task] += 1
                judge(store, who, task.exposure, verdict_for(task, "-0"), key=f"k{k}", at=at)
                k += 1
    assert max(seen.values()) == 1
    assert Counter(task for _, task in seen) == dict.fromkeys(ids, 2)


def test_a_key_that_is_sent_twice_is_stored_once(store, items):
    add_tasks(store, items(2))
    who, other = person(store), person(store, "eve")
    task = next_task(store, who)
    one = judge(store, who, task.exposure, {"choice": "tie"}, key="same")
    assert judge(store, who, task.exposure, {"choice": "first"}, key="same") == one
    assert len(list(groups(store))) == 1
    with pytest.raises(DataError, match="another annotator"):
        judge(store, other, task.exposure, {"choice": "tie"}, key="same")
    with pytest.raises(DataError, match="judged this task already"):
        judge(store, who, task.exposure, {"choice": "tie"}, key="new")
    with pytest.raises(DataError, match="not given to this annotator"):
        judge(store, other, task.exposure, {"choice": "tie"}, key="other")


def test_undo_keeps_everything_and_shows_the_same_page(store, items):
    add_tasks(store, items(2))
    who = person(store)
    task = next_task(store, who)
    judge(store, who, task.exposure, {"choice": "first"}, key="a")
    following = next_task(store, who)
    assert undo(store, who) == task.task
    assert list(groups(store)) == []
    again = next_task(store, who)
    assert (again.task, again.shown) == (task.task, task.shown)
    judge(store, who, again.exposure, {"choice": "second"}, key="b")
    assert next_task(store, who).task == following.task
    (one,) = groups(store)
    chosen = one.responses[one.preference.ranks.index(1)].text
    assert chosen == task.texts[1]
    with store.reading() as connection:
        rows = connection.execute(sa.select(t.judgements).order_by(t.judgements.c.id)).all()
    assert [row.supersedes for row in rows] == [None, rows[0].id, rows[1].id]
    assert undo(store, who) == task.task
    assert undo(store, who) is None


def test_two_verdicts_that_differ_go_to_a_third_person(store, items):
    add_tasks(store, items(1, overlap=2))
    people = [person(store, name) for name in "abc"]
    for k, who in enumerate(people[:2]):
        task = next_task(store, who)
        judge(store, who, task.exposure, verdict_for(task, f"-{k}"), key=f"k{k}")
    assert next_task(store, people[0]) is None
    third = next_task(store, people[2])
    assert third.stage == "adjudication"
    judge(store, people[2], third.exposure, verdict_for(third, "-1"), key="third")
    assert next_task(store, people[2]) is None
    assert Counter(g.preference.meta["stage"] for g in groups(store)) == {"real": 2, "adjudication": 1}


def test_who_has_decided_a_dispute_is_not_asked_again(store, items):
    """Two of three wanted verdicts differ: the third person decides, and the task's third place goes to a fourth."""
    add_tasks(store, items(1, overlap=3))
    people = [person(store, name) for name in "abcd"]
    for k, who in enumerate(people[:3]):
        task = next_task(store, who)
        assert task.stage == ("real" if k < 2 else "adjudication")
        judge(store, who, task.exposure, verdict_for(task, f"-{k % 2}"), key=f"k{k}")
    assert next_task(store, people[2]) is None
    assert next_task(store, people[3]).stage == "real"


def test_training_comes_first_with_feedback_and_gold_never_twice(store, items):
    known = {"expected": {"choice": "second"}, "explanation": "It is shorter."}
    add_tasks(store, items(40))
    add_tasks(store, [Item(group(100 + k), stage="training", **known) for k in range(2)])
    gold = add_tasks(store, [Item(group(200 + k), stage="gold", **known) for k in range(3)])
    who = person(store)
    stages, seen = [], []
    for k in range(30):
        task = next_task(store, who, gold_every=4)
        stored = judge(store, who, task.exposure, verdict_for(task, "-1" if k else "-0"), key=f"k{k}")
        if task.stage == "real":
            assert stored.right is None
        else:
            assert stored.right is bool(k)
            assert stored.explanation == "It is shorter."
        stages.append(task.stage)
        seen.append(task.task)
    assert stages[:2] == ["training", "training"]
    assert [k for k, stage in enumerate(stages) if stage == "gold"] == [6, 11, 16]
    assert len(set(seen)) == 30
    assert set(seen) >= set(gold)
    assert all(g.preference.meta["stage"] == "real" for g in groups(store))


def test_sources_advance_alike(store):
    """After half of the tasks, half of each source is done, however unequal they are."""
    items = [Item(group(k), source="large" if k < 40 else "small") for k in range(50)]
    add_tasks(store, items, seed=3)
    who = person(store)
    sources = Counter()
    for k in range(25):
        task = next_task(store, who)
        judge(store, who, task.exposure, {"choice": "tie"}, key=f"k{k}")
    for one in groups(store):
        sources[one.origin] += 1
    assert abs(sources["small"] - 5) <= 1, sources


def test_skips_and_flags(store, items):
    add_tasks(store, items(1))
    who, other = person(store), person(store, "eve")
    task = next_task(store, who)
    with pytest.raises(DataError, match="needs a reason"):
        skip(store, who, task.exposure, " ")
    flag(store, who, task.exposure, "a private address")
    skip(store, who, task.exposure, "cannot tell")
    assert next_task(store, who) is None, "it does not come back to whom it was skipped by"
    assert next_task(store, other).task == task.task


def test_flags_of_enough_people_stop_a_prompt(store, items):
    """No one gets its tasks any more; other prompts go on, and a verdict under way counts."""
    first, *others = items(3, overlap=5)
    add_tasks(store, [first, *others])
    ann, eve, max_, zoe = (person(store, name) for name in ("ann", "eve", "max", "zoe"))
    held = {who: next_task(store, who) for who in (ann, eve, max_)}
    stopped = held[ann].task
    assert {one.task for one in held.values()} == {stopped}
    for _ in range(2):  # one person twice is one person
        assert not flag(store, ann, held[ann].exposure, "private: a name", stop_at=2)
    assert next_task(store, zoe).task == stopped
    assert not flag(store, eve, held[eve].exposure, "nonsense", stop_at=0)
    assert next_task(store, eve).task == stopped, "0: flags stop nothing"
    assert flag(store, eve, held[eve].exposure, "nonsense", stop_at=2)
    assert next_task(store, eve).task != stopped
    assert judge(store, max_, held[max_].exposure, {"choice": "first"}, key="m", adjudicate=False).id
    assert next_task(store, person(store, "new")).task != stopped
    for who in (ann, max_, zoe):
        while (task := next_task(store, who)) is not None:
            judge(store, who, task.exposure, {"choice": "first"}, key=f"{who}-{task.task}", adjudicate=False)
    with store.reading() as connection:
        judged = connection.execute(sa.select(t.judgements.c.task_id, t.judgements.c.annotator_id)).all()
    assert {who for task, who in judged if task == stopped} == {max_, ann, zoe}, "those who had it open"
    assert all(len({who for task, who in judged if task == one}) == 3 for one in {task for task, _ in judged})


@pytest.mark.parametrize(
    ("kind", "count", "verdict"),
    [
        ("pair", 2, {"choice": "third"}),
        ("pair", 2, {"choice": "tie", "strength": 2}),
        ("pair", 2, {"choice": "first", "strength": 9}),
        ("pair", 2, "first"),
        ("ranking", 3, {"ranks": [1, 2]}),
        ("ranking", 3, {"ranks": [1, 2, True]}),
        ("best_worst", 3, {"best": 1, "worst": 1}),
        ("rating", 2, {"ratings": [0, 8]}),
        ("rating", 1, {"ratings": [3], "flags": [{"kind": True}]}),
        ("write", 0, {"text": "  "}),
        ("write", 1, {"text": "x", "edited": 1}),
    ],
)
def test_malformed_verdicts_store_nothing(store, items, kind, count, verdict):
    add_tasks(store, items(1, count=count, kind=kind))
    who = person(store)
    task = next_task(store, who)
    with pytest.raises(DataError, match="not a verdict"):
        judge(store, who, task.exposure, verdict, key="k")
    assert list(groups(store)) == []
    assert next_task(store, who).exposure == task.exposure


@pytest.mark.parametrize(
    "change",
    [{"kind": "par"}, {"stage": "gold"}, {"overlap": 0}, {"probability": 0.0}, {"kind": "ranking", "count": 10}],
)
def test_tasks_that_cannot_be(store, items, change):
    with pytest.raises((ConfigError, DataError)):
        add_tasks(store, items(2, **change))
    with store.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(t.tasks)) == 0


@pytest.mark.parametrize("table", t.APPEND_ONLY)
def test_what_was_collected_cannot_be_changed(store, items, table):
    add_tasks(store, items(1), campaign="c")
    who = person(store)
    task = next_task(store, who, active=ActiveOrder())
    flag(store, who, task.exposure, "why")
    accept_guideline(store, who, 1)
    judge(store, who, task.exposure, {"choice": "tie"}, key="k")
    given = replace(group(9), preference=Preference(ranks=(1, 2), annotator="eve"), origin="f.jsonl:1")
    import_judgements(store, [given], BadRows(), annotator="")
    for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET created = 0"):
        column = next(
            name for name in ("created", "began", "ended", "name", "chooser") if name in t.metadata.tables[table].c
        )
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), store.writing() as connection:
            connection.execute(sa.text(statement.replace("created", column)))
