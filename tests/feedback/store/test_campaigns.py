"""Campaigns: added once, counted with the adjudications of their tasks, exported apart, and closed."""

from __future__ import annotations

from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.campaigns import close, counted
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.items import add_tasks
from tiltyard.feedback.store.judgements import judge, undo
from tiltyard.feedback.store.people import add_annotator


def judged(store, who: int, choice: str = "first") -> int:
    task = next_task(store, who)
    places = task.shown if choice == "first" else task.shown[::-1]
    judge(store, who, task.exposure, {"choice": ("first", "second")[places.index(0)]}, key=f"{who}-{task.exposure}")
    return task.task


def test_a_campaign_is_added_once(store, items):
    ids = add_tasks(store, items(3), campaign="run/collect@1")
    assert add_tasks(store, items(3), campaign="run/collect@1") == ids
    assert add_tasks(store, items(3), campaign="run/collect@2") == [id + 3 for id in ids]


def test_what_is_there_of_what_is_wanted(store, items):
    add_tasks(store, items(2, overlap=2), campaign="c")
    assert counted(store, "c") == (2, 4, 0, 0)
    ada, bob, eve = (add_annotator(store, name)[0].id for name in ("ada", "bob", "eve"))
    first = judged(store, ada)
    assert counted(store, "c") == (2, 4, 1, 1)
    assert judged(store, bob, "second") == first  # they differ: a third person is asked
    assert counted(store, "c") == (3, 5, 2, 2)
    judged(store, eve)
    assert counted(store, "c") == (3, 5, 3, 3)
    undo(store, eve)
    add_tasks(store, items(5), campaign="other")
    assert counted(store, "c")[:3] == (3, 5, 2)
    assert counted(store, "nothing") == (0, 0, 0, 0)
    assert {group.preference.annotator for group in groups(store, campaign="c")} == {"ada", "bob"}
    assert not list(groups(store, campaign="other"))


def test_a_closed_campaign_is_given_to_no_one(store, items):
    add_tasks(store, items(2), campaign="run/collect@1")
    add_tasks(store, items(1), campaign="run/collect@2")
    add_tasks(store, items(1), campaign="run/collect_2@1")
    ada = add_annotator(store, "ada")[0].id
    held = next_task(store, ada)
    assert close(store, "run/collect@", but="run/collect@2") == 2
    assert close(store, "run/collect@", but="run/collect@2") == 0
    judge(store, ada, held.exposure, {"choice": "tie"}, key="k")  # who has one open may still judge it
    left = []
    while next_task(store, ada) is not None:
        left.append(judged(store, ada))
    assert len(left) == 2
    assert close(store, "100%_") == 0
