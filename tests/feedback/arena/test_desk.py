"""The desk of an arena on both databases: what is stored, when a vote counts, who meets whom."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from sqlalchemy import select
from tests.chance import follows, shifted
from tests.feedback.arena.scripted import Scripted
from tests.feedback.store.conftest import postgres, store, url  # noqa: F401 - fixtures

from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.arena.desk import ArenaSettings, Busy, Desk
from tiltyard.feedback.arena.pairing import Pairing
from tiltyard.feedback.arena.ranking import Leaderboard, bars
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.export import groups, policies
from tiltyard.feedback.store.people import add_annotator
from tiltyard.types import Message, Prompt, ranks_of

NAMES = ("sft", "dpo", "ppo")


@pytest.fixture
def desk(store) -> Desk:  # noqa: F811
    return Desk(store, [Scripted(name, f"an answer of {name}", "v1") for name in NAMES], ArenaSettings(seed=3))


def fought(desk: Desk, visitor: int, text: str = "Why?") -> int:
    """A battle whose answers are complete."""
    events = list(desk.answers(desk.begin(visitor, text), visitor))
    return events[-1]["battle"]


def test_a_battle_is_stored_with_what_cannot_be_added_later(desk) -> None:
    visitor = desk.visitor("a cookie")
    exposure = fought(desk, visitor)
    with desk.database.reading() as connection:
        task = connection.execute(select(t.tasks)).one()
        shown = connection.execute(select(t.exposures)).one()
    assert (task.probability, task.chooser, task.source) == (pytest.approx(1 / 3), "arena:uniform", "visitor")
    assert sorted(shown.shown) == [0, 1]
    assert shown.id == exposure
    desk.vote(exposure, visitor, "first", "key-1234")
    (one,) = groups(desk.database)
    left = one.responses[shown.shown[0]]
    assert ranks_of(one.preference)[shown.shown[0]] == 1
    assert left.meta["version"] == "v1"
    assert left.meta["temperature"] == 0.7
    assert one.preference.meta["chosen_with"] == pytest.approx(1 / 3)
    assert (one.preference.meta["role"], one.preference.meta["source"]) == ("visitor", "visitor")
    assert one.preference.meta["seconds"] >= 0


def test_names_are_hidden_before_the_vote_and_shown_after(desk) -> None:
    visitor = desk.visitor("a cookie")
    exposure = fought(desk, visitor)
    before = desk.battle(exposure, visitor)
    assert (before.models, before.ended, before.choice) == (("", ""), False, "")
    desk.vote(exposure, visitor, "second", "key-1234")
    after = desk.battle(exposure, visitor)
    assert after.choice == "second"
    assert all(name.partition("@")[0] in text for name, text in zip(after.models, after.texts, strict=True))


def test_a_vote_after_the_names_does_not_count(desk) -> None:
    visitor = desk.visitor("a cookie")
    exposure = fought(desk, visitor)
    desk.reveal(exposure, visitor)
    assert desk.battle(exposure, visitor).models[0].endswith("@v1")
    with pytest.raises(DataError, match="this task is over"):
        desk.vote(exposure, visitor, "first", "key-1234")
    second = fought(desk, visitor)
    desk.vote(second, visitor, "tie", "key-5678")
    with pytest.raises(DataError, match="this task is over"):
        desk.vote(second, visitor, "first", "key-9999")
    desk.vote(second, visitor, "first", "key-5678")  # the same key: sent twice, stored once
    assert [ranks_of(g.preference) for g in groups(desk.database)] == [(1, 1)]


def test_a_vote_and_a_reveal_at_the_same_time_have_one_winner(desk) -> None:
    visitor = desk.visitor("a cookie")
    for k in range(10):
        exposure = fought(desk, visitor)
        failed = []

        def vote(exposure=exposure, k=k, failed=failed) -> None:
            try:
                desk.vote(exposure, visitor, "first", f"key-race-{k}")
            except DataError:
                failed.append(True)

        threads = [threading.Thread(target=vote), threading.Thread(target=desk.reveal, args=(exposure, visitor))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bool(failed) == (desk.battle(exposure, visitor).choice == "")


def test_a_vote_counts_after_a_restart(desk) -> None:
    visitor = desk.visitor("a cookie")
    exposure = fought(desk, visitor)
    again = Desk(desk.database, desk.writers, desk.settings)
    assert again.visitor("a cookie") == visitor
    again.vote(exposure, visitor, "both_bad", "key-1234")
    (one,) = groups(desk.database)
    assert one.preference.meta["reason"] == "both_bad"


def test_another_visitor_sees_and_votes_nothing(desk) -> None:
    one, other = desk.visitor("a cookie"), desk.visitor("another")
    assert one != other
    name = desk.begin(one, "Why?")
    assert desk.opened(name, other) is None
    with pytest.raises(DataError, match="no such battle"):
        list(desk.answers(name, other))
    exposure = list(desk.answers(name, one))[-1]["battle"]
    assert desk.battle(exposure, other) is None
    for act in (lambda: desk.vote(exposure, other, "first", "key-1234"), lambda: desk.reveal(exposure, other)):
        with pytest.raises(DataError, match="not given to this annotator"):
            act()
    with pytest.raises(DataError, match="no such battle"):
        list(desk.answers(name, one))  # answers are written once


def test_labellers_are_never_given_a_battle(desk) -> None:
    ada = add_annotator(desk.database, "ada")[0]
    exposure = fought(desk, desk.visitor("a cookie"))
    assert next_task(desk.database, ada.id) is None
    desk.vote(exposure, desk.visitor("a cookie"), "first", "key-1234")
    assert next_task(desk.database, ada.id) is None


def test_a_model_that_fails_leaves_nothing(store, caplog) -> None:  # noqa: F811
    desk = Desk(store, [Scripted("good", held=threading.Event()), Scripted("bad", fails=True)])
    visitor = desk.visitor("a cookie")
    events = list(desk.answers(desk.begin(visitor, "Why?"), visitor))
    assert events[-1] == {"error": "no_answer"}
    assert desk.writers[0].stopped.is_set()  # the other one writes no further
    assert not list(groups(store))
    assert "bad gave no answer" in caplog.text
    assert "bad" not in str(events)


def test_nothing_is_shown_before_both_have_begun(store) -> None:  # noqa: F811
    """The faster model would be known by its speed."""
    gate = threading.Event()

    class Slow(Scripted):
        def write(self, messages, seed, show):
            gate.wait(10)
            return super().write(messages, seed, show)

    desk = Desk(store, [Scripted("fast"), Slow("slow")])
    visitor = desk.visitor("a cookie")
    found: list[dict] = []
    name = desk.begin(visitor, "Why?")
    reader = threading.Thread(target=lambda: found.extend(desk.answers(name, visitor)))
    reader.start()
    while not desk.writers[0].asked:
        time.sleep(0.01)
    time.sleep(0.1)
    assert found == []
    gate.set()
    reader.join(10)
    assert "battle" in found[-1]


def test_a_visitor_who_leaves_stops_both(store) -> None:  # noqa: F811
    writers = [Scripted(name, held=threading.Event()) for name in ("a", "b")]
    desk = Desk(store, writers, ArenaSettings(at_once=1))
    visitor = desk.visitor("a cookie")
    events = desk.answers(desk.begin(visitor, "Why?"), visitor)
    next(events)
    with pytest.raises(Busy):
        next(desk.answers(desk.begin(visitor, "And?"), visitor))
    events.close()
    assert all(writer.stopped.is_set() for writer in writers)
    for writer in writers:
        writer.held.set()
    assert fought(desk, visitor)  # the place is free again


def test_prompts_are_the_visitors_or_drawn(store) -> None:  # noqa: F811
    drawn = [Prompt(messages=(Message("user", f"Drawn {k}?"),), id=f"d{k}") for k in range(3)]
    desk = Desk(store, [Scripted("a"), Scripted("b")], drawn=drawn)
    visitor = desk.visitor("a cookie")
    battle = desk.battle(fought(desk, visitor, ""), visitor)
    assert battle.prompt.startswith("Drawn")
    with pytest.raises(DataError, match="the prompt is too long"):
        desk.begin(visitor, "x" * 4001)
    with pytest.raises(DataError, match="the prompt is empty"):
        Desk(store, [Scripted("a"), Scripted("b")]).begin(visitor, " ")


def test_every_model_stays_on_the_board(desk) -> None:
    board = Leaderboard(desk.database)
    assert board.ranking().board is None
    assert board.ranking().models == ("sft@v1", "dpo@v1", "ppo@v1")
    visitor = desk.visitor("a cookie")
    for k in range(12):
        desk.vote(fought(desk, visitor), visitor, ("first", "second")[k % 2], f"key-{k:04}")
    newer = Desk(desk.database, [Scripted("sft", version="v2"), Scripted("dpo", version="v1")])
    assert policies(newer.database)[-1] == "sft@v2"
    found = Leaderboard(desk.database).ranking()
    assert {line.model for line in found.board.standings} == {"sft@v1", "dpo@v1", "ppo@v1", "sft@v2"}
    assert found.board.standings[-1].model == "sft@v2"
    assert (found.votes, found.visitors) == (12, 1)
    lines, marks = bars(found.board)
    assert lines[-1].rating is None
    assert all(0 <= place <= 100 for place, _ in marks)


def test_an_arena_needs_two_models_of_two_names(store) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="two models"):
        Desk(store, [Scripted("a")])
    with pytest.raises(ConfigError, match="two models have one name"):
        Desk(store, [Scripted("a"), Scripted("a")])
    with pytest.raises(ConfigError, match="did you mean 'fewer_seen'"):
        Pairing(2, "fewer_sen")  # type: ignore[arg-type]


@pytest.mark.statistical
@pytest.mark.parametrize("policy", ["uniform", "fewer_seen"])
def test_pairs_follow_the_probabilities_that_are_stored(policy) -> None:
    pairing = Pairing(4, policy, seed=shifted(11))
    met = Counter({(0, 1): 9, (2, 3): 1})
    drawn = [pairing.draw(number, met) for number in range(6000)]
    chances = {(pair.one, pair.other): pair.probability for pair in drawn}
    assert sum(chances.values()) == pytest.approx(1)
    counts = Counter((pair.one, pair.other) for pair in drawn)
    follows(counts, chances)
    follows(Counter(pair.left for pair in drawn), {0: 0.5, 1: 0.5})
    if policy == "fewer_seen":
        assert chances[0, 1] < chances[2, 3] < chances[0, 2]
    assert drawn == [pairing.draw(number, met) for number in range(6000)]


def test_fewer_seen_evens_out(store) -> None:  # noqa: F811
    desk = Desk(store, [Scripted(name) for name in "abcd"], ArenaSettings("fewer_seen"))
    visitor = desk.visitor("a cookie")
    for _ in range(48):
        fought(desk, visitor)
    again = Desk(store, [Scripted(name) for name in "abcd"], ArenaSettings("fewer_seen"))
    assert again._met == desk._met
    assert max(desk._met.values()) - min(desk._met.values()) <= 8
