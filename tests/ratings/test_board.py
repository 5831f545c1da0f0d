"""The leaderboard: from judged groups to ratings, with everything on it that was ever named."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.exchange.judged import battles, group
from tests.ratings.planted import planted

from tiltyard.errors import DataError
from tiltyard.stats.corrected import ppi_rate
from tiltyard.stats.judged import battles_of_votes, model_of, rewarded, votes_of
from tiltyard.stats.judged_rates import corrected_wins
from tiltyard.stats.ratings.battles import battles_of
from tiltyard.stats.ratings.board import BoardSettings, board_of
from tiltyard.stats.ratings.bradley_terry import ELO, bradley_terry
from tiltyard.types import Response

STRENGTHS = {"m0": 0.8, "m1": 0.2, "m2": -1.0}


def names(board) -> list[str]:
    return [line.model for line in board.standings]


def test_a_board_shows_the_fit_on_the_scale_of_elo() -> None:
    fought = planted(np.random.default_rng(3), 600, 4, ties=0.2)
    board = board_of(fought, BoardSettings(anchor="m1"))
    fit = bradley_terry(fought)
    by_name = {line.model: line for line in board.standings}
    for k, name in enumerate(fit.models):
        assert by_name[name].rating == pytest.approx(1000 + ELO * (fit.rating_M[k] - fit.rating_M[1]))
        assert by_name[name].low <= by_name[name].rating <= by_name[name].high
    assert (by_name["m1"].low, by_name["m1"].high) == (1000, 1000)
    assert names(board) == sorted(names(board), key=lambda name: -by_name[name].rating)
    assert sum(line.battles for line in board.standings) == 2 * board.battles
    assert board.to_dict()["standings"][0]["model"] == names(board)[0]


@pytest.mark.parametrize("ties", ["half_win", "davidson", "rao_kupper"])
@pytest.mark.parametrize("method", ["sandwich", "bootstrap"])
def test_every_tie_model_and_interval(ties, method) -> None:
    fought = planted(np.random.default_rng(5), 400, 3, ties=0.2)
    board = board_of(fought, BoardSettings(ties=ties, method=method, rounds=100, elo_orders=0))
    assert all(line.low < line.rating < line.high for line in board.standings)
    assert (board.tie_parameter is None) == (ties == "half_win")


def test_a_model_without_battles_stays_on_the_board() -> None:
    votes = votes_of(battles(60, STRENGTHS)).votes
    board = board_of(battles_of_votes(votes, models=("new", "m0")), BoardSettings(elo_orders=0))
    last = board.standings[-1]
    assert (last.model, last.battles, last.status) == ("new", 0, "apart")
    assert math.isnan(last.rating)
    assert any("cannot be compared" in note and "new" in note for note in board.notes)


def test_models_that_only_won_lead_and_have_no_upper_bound() -> None:
    fought = battles_of(["a", "b", "b", "a"], ["b", "c", "c", "b"], ["a", "a", "b", "a"])
    board = board_of(fought)
    assert names(board)[0] == "a"
    assert board.standings[0].rating == math.inf
    assert "never lost" in board.notes[0]


def test_battles_that_rate_no_model_are_no_error_of_a_board() -> None:
    board = board_of(battles_of(["a"], ["b"], ["a"]))
    assert [line.battles for line in board.standings] == [1, 1]
    assert board.notes[0].startswith("no ratings: no two models can be rated")
    assert math.isnan(board.standings[0].rating)


def test_both_bad_has_its_own_column() -> None:
    groups = [group(k, ranks=(1, 2) if k % 2 else (2, 1)) for k in range(8)]
    groups += [group(k, ranks=None, reason="both_bad") for k in range(8, 10)]
    board = board_of(battles_of_votes(votes_of(groups).votes))
    assert [line.both_bad for line in board.standings] == [0.2, 0.2]
    assert [line.ties for line in board.standings] == [0.0, 0.0]


def test_choices_are_checked_by_name() -> None:
    fought = planted(np.random.default_rng(0), 50, 2)
    with pytest.raises(DataError, match="did you mean 'davidson'"):
        board_of(fought, BoardSettings(ties="davison"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="did you mean 'm1'"):
        board_of(fought, BoardSettings(anchor="m11"))
    with pytest.raises(DataError, match="length control needs"):
        board_of(fought, BoardSettings(length_control=True))


def test_a_vote_has_one_direction_whatever_the_order_of_the_group() -> None:
    one = group(0, shown=[1, 0])
    other = replace(
        one,
        responses=one.responses[::-1],
        preference=replace(one.preference, ranks=(2, 1), meta={"shown": [0, 1]}),
    )
    assert votes_of([one]).votes == votes_of([other]).votes
    (vote,) = votes_of([one]).votes
    assert vote.score_of("sft") == 1
    assert vote.first == (vote.a == "dpo")


def test_versions_of_a_policy_are_models_of_their_own() -> None:
    assert model_of(Response(text="x", meta={"policy": "ppo", "version": "step200"})) == "ppo@step200"
    with pytest.raises(DataError, match="not recorded which model"):
        model_of(Response(text="x"), "f.jsonl:3")


def test_a_ranking_is_its_comparisons_and_a_ranking() -> None:
    found = votes_of([group(0, ("sft", "dpo", "ppo"), ranks=(2, 1, 2)), group(1, ("sft", "sft"), ranks=(1, 2))])
    assert len(found.votes) == 3
    assert found.rankings == (("q0", (("dpo",), ("sft", "ppo"))),)
    assert found.left_out == {"comparisons of a model with itself": 1}


def _paired(n: int, *, adaptive: bool) -> list:
    """n votes: half of the prompts suit m0, and adaptive pairing shows it on those nine times as often."""
    rng = np.random.default_rng(1)
    pairs = [("m0", "m1"), ("m0", "m2"), ("m1", "m2")]
    groups = []
    for k in range(n):
        suits = rng.random() < 0.5
        chance = [0.45, 0.45, 0.1] if suits and adaptive else [0.1, 0.1, 0.8] if adaptive else [1 / 3] * 3
        i = int(rng.choice(3, p=chance))
        d = (1.5 if suits else -1.5) if pairs[i][0] == "m0" else 0.5
        ranks = (1, 2) if rng.random() < 1 / (1 + np.exp(-d)) else (2, 1)
        groups.append(group(k, pairs[i], ranks=ranks, chosen_with=chance[i]))
    return groups


@pytest.mark.slow
def test_adaptive_pairing_is_weighed_back() -> None:
    """Where the pair depends on the prompt, weights give the ratings of even pairing, and votes as they are do not."""
    plain = BoardSettings(elo_orders=0)
    even = board_of(battles_of_votes(votes_of(_paired(8000, adaptive=False)).votes), plain)
    votes = votes_of(_paired(8000, adaptive=True)).votes
    weighted = board_of(battles_of_votes(votes), plain)
    unweighted = board_of(battles_of_votes([v._replace(probability=1.0) for v in votes]), plain)
    assert weighted.weighted
    assert not unweighted.weighted
    assert weighted.effective < unweighted.effective == 8000
    rating = {name: {x.model: x.rating for x in b.standings} for name, b in
              (("even", even), ("weighted", weighted), ("unweighted", unweighted))}  # fmt: skip
    off = {name: abs(rating[name]["m0"] - rating["even"]["m0"]) for name in ("weighted", "unweighted")}
    assert off["weighted"] < 30
    assert off["unweighted"] > 60


def test_a_judge_is_corrected_by_people_as_ppi_does() -> None:
    rng = np.random.default_rng(2)
    people, judge = [], []
    for k in range(300):
        truth = (1, 2) if rng.random() < 0.6 else (2, 1)
        said = truth if rng.random() < 0.7 else (1, 2)
        judge.append(group(k, ranks=said, annotator="judge:x"))
        if k % 3 == 0:
            people.append(group(k, ranks=truth))
    votes = votes_of([*people, *judge]).votes
    rows = corrected_wins(votes, rounds=200)
    assert [(row.judge, row.model, row.items, row.labelled) for row in rows] == [
        ("judge:x", "dpo", 300, 100), ("judge:x", "sft", 300, 100),
    ]  # fmt: skip
    said = [float(g.preference.ranks == (1, 2)) for g in judge]
    truth = [float(people[k // 3].preference.ranks == (1, 2)) if k % 3 == 0 else math.nan for k in range(300)]
    expected = ppi_rate(said, truth, [f"q{k}" for k in range(300)], rounds=200)
    assert rows[1].corrected.estimate == expected.estimate
    assert rows[1].corrected.judge.value == pytest.approx(np.mean(said))
    assert corrected_wins([v for v in votes if not v.judge]) == []


def test_rewards_come_from_all_votes_on_a_prompt() -> None:
    groups = [group(0, annotator=f"a{k}") for k in range(3)] + [group(0, annotator="b", ranks=(2, 1))]
    groups += [group(1, ("sft", "dpo", "ppo"), ranks=(1, 2, 3)), group(2, ranks=None, reason="both_bad")]
    first, second = rewarded(groups, prior_sd=1.0)
    assert [r.meta["policy"] for r in first.responses] == ["sft", "dpo"]
    assert first.scores[0] == pytest.approx(-first.scores[1])
    assert first.scores[0] > 0
    assert sorted(second.scores, reverse=True) == list(second.scores)
    exact = {g.prompt.id: g.scores for g in rewarded(groups, prior_sd=None)}
    assert exact == {"q0": (pytest.approx(math.log(3) / 2), pytest.approx(-math.log(3) / 2))}


def test_a_hundred_thousand_votes_take_seconds() -> None:
    import time

    fought = planted(np.random.default_rng(0), 100_000, 12, ties=0.2)
    start = time.process_time()
    board = board_of(fought, BoardSettings(method="bootstrap", rounds=1000, elo_orders=0))
    assert time.process_time() - start < 20
    assert len(board.standings) == 12
