"""ReST: which offline losses it can take, what they are given, and the data beside the samples."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from losses_oracles.tabular import World
from losses_oracles.toy import F64, same
from tiltyard.errors import ConfigError
from tiltyard.feedback import JudgeScorer, SimulatedJudge
from tiltyard.methods import rest
from tiltyard.methods.sft import WeightedNll
from tiltyard.runs.groups import read_groups
from tiltyard.training.rounds import sampled
from tiltyard.training.select import better_half, pairs_above
from tiltyard.types import Group, Prompt, Response

from . import round_runs as runs

EASY, HARD = Prompt(id="easy", ids=(7,)), Prompt(id="hard", ids=(8,))


def scored(prompt: Prompt, *scores: float) -> Group:
    return Group(prompt, tuple(Response(ids=(i,)) for i in range(len(scores))), scores=scores)


def held(groups: Any) -> list[tuple[str, list[int]]]:
    return [(g.prompt.id, [r.ids[0] for r in g.responses]) for g in groups]


# ------------------------------------------------------------------------------------------------ what a phase is given


def test_the_better_half_is_better_than_its_own_prompt() -> None:
    """By scores alone all of the easy prompt would be taken. Weights are exp(A/eta), one on average."""
    groups = [scored(EASY, 0.9, 0.8, 0.7, 1.0), scored(HARD, 0.0, 0.3, 0.1, 0.0)]
    advantages = {("easy", 0): 0.05, ("easy", 3): 0.15, ("hard", 1): 0.2, ("hard", 2): 0.0}
    found = better_half(groups, -math.inf, 0.1)
    assert held(found) == [("easy", [0, 3]), ("hard", [1, 2])]
    mean = sum(math.exp(a / 0.1) for a in advantages.values()) / 4
    for group in found:
        for response, weight in zip(group.responses, group.scores or (), strict=True):
            expected = math.exp(advantages[group.prompt.id, response.ids[0]] / 0.1) / mean
            assert weight == pytest.approx(expected, rel=1e-12)


def test_the_value_of_a_prompt_is_that_of_all_its_answers() -> None:
    """The threshold takes answers away and leaves the mean that the others are measured by."""
    groups = [scored(EASY, 0.9, 0.8, 0.2, 0.1), scored(HARD, 0.6, 0.3)]
    found = better_half(groups, 0.5, 0.1)  # advantages of what is above: 0.4, 0.3, 0.15
    assert held(found) == [("easy", [0, 1])]
    ratio = [w / (found[0].scores or (1,))[0] for w in found[0].scores or ()]
    assert ratio == [1, pytest.approx(math.exp(-1.0), rel=1e-12)]
    nothing = better_half(groups, 0.95, 0.1)
    assert (list(nothing), nothing.dropped) == ([], 2)


def test_pairs_above_have_a_better_answer_above() -> None:
    pairs = pairs_above([scored(EASY, 0.2, 0.9, 0.5), scored(HARD, 0.5, 0.5, 0.1)], 0.4)
    expected = [("easy", [1, 0]), ("easy", [1, 2]), ("easy", [2, 0]), ("hard", [0, 2]), ("hard", [1, 2])]
    assert sorted(held(pairs)) == expected
    assert pairs.dropped == 1  # the tie


@pytest.mark.parametrize(("loss", "push"), [("dpo", 0.35), ("ipo", 1 / 0.7), ("hinge", 0.7)])
def test_any_loss_of_pairs(loss: Any, push: float) -> None:
    """At the reference each pushes the pair's logits apart by its own amount: beta/2, 1/tau, gamma."""
    algorithm = rest(runs.rounds(), thresholds=[0.3], loss=loss, beta=0.7)
    source: Any = algorithm.source
    ref = torch.log_softmax(torch.tensor([0.3, -0.1, 0.2], dtype=F64), 0)
    (pair,) = source.phase([scored(EASY, 1.0, 0.0)], 0)
    same(World(algorithm, ref, [pair]).slope(ref), torch.tensor([-push, push, 0], dtype=F64), 1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.25, 1.0])
def test_gold_weighs_an_answer_by_its_scaled_score(floor: float) -> None:
    """-max(pi, floor) r per token over the tokens of the batch, answer 2 having two."""
    algorithm = rest(runs.rounds(), thresholds=[0.3], loss="gold", floor=floor)
    source: Any = algorithm.source
    lengths = [1, 1, 2]
    group = Group(EASY, tuple(Response(ids=(i,) * n) for i, n in enumerate(lengths)), scores=(4.0, 8.0, 6.0))
    (kept,) = source.phase([group], 0)
    assert held([kept]) == [("easy", [1, 2])]
    theta = torch.tensor([0.4, -0.6, 0.1], dtype=F64)
    logp = (torch.log_softmax(theta, 0) / torch.tensor(lengths)).tolist()
    tokens = [(1.0, logp[1]), (0.5, logp[2]), (0.5, logp[2])]
    expected = sum(-max(math.exp(x), floor) * q * x for q, x in tokens) / 3
    world = World(algorithm, theta, [kept], length=lengths)
    assert float(world.mean(theta)) == pytest.approx(expected, rel=1e-12)


def test_v_mpo_takes_its_weights_as_they_are() -> None:
    algorithm = rest(runs.rounds(), thresholds=[0.0], loss="vmpo", floor=0.5)
    assert algorithm.loss == WeightedNll(1.0)


@pytest.mark.parametrize("loss", ["vmpo", "dpo", "ipo", "hinge"])
def test_one_answer_cannot_be_compared(loss: Any) -> None:
    with pytest.raises(ConfigError, match="compares the responses to a prompt with each other"):
        rest(runs.rounds(samples_per_prompt=1), thresholds=[0.1], loss=loss)


# ---------------------------------------------------------------------------------------------- data beside the samples


def test_the_data_join_every_round_with_scores_of_the_same_scorer(tmp_path: Path) -> None:
    """They are in the round's file, scored anew by whoever scores; samples alone count as sampled."""
    algorithm, record = runs.make("rest_given", folder=tmp_path / "rounds"), runs.tiny.Record()
    runs.run(algorithm, runs.models(), tmp_path, sinks=[record])
    data = runs.data().shuffle.items
    for number in range(3):
        groups = list(read_groups(tmp_path / "rounds" / f"round-{number:04d}.groups.jsonl"))
        assert [g.responses for g in groups[9:]] == [g.responses for g in data]
        assert len(sampled(groups)) == 9
        assert all(g.scores == tuple(runs.score(g.prompt, r) for r in g.responses) for g in groups)
        row = record.rows[number * runs.EVERY]
        assert row["sampled"] == 9 * 6
        assert row["sampled_share"] == pytest.approx(54 / 61, abs=1e-12)
        scores = [s for g in groups[:9] for s in g.scores or ()]
        assert row["score"] == pytest.approx(sum(scores) / 54, abs=1e-12)


def test_the_data_pass_the_same_threshold() -> None:
    """Of a prompt that was sampled and is in the data one group is made; what scores low goes, whoever wrote it."""
    source: Any = rest(runs.rounds(), runs.data(), thresholds=[0.6]).source
    source(runs.models(), 0)
    known = source.held[0]
    every = [s for g in known for s in g.scores or ()]
    low, width = min(every), max(every) - min(every)
    above = sorted(
        r.ids for g in known for r, s in zip(g.responses, g.scores or (), strict=True) if s > low + 0.6 * width
    )
    pool = list(source._pools[0].items)
    assert sorted(r.ids for g in pool for r in g.responses) == above
    assert len({g.prompt.ids for g in pool}) == len(pool)
    origins = [{r.policy_version for r in g.responses} for g in pool]
    assert {None} in origins  # a prompt of the data alone
    assert {None, 0} in origins  # one of both


def test_a_threshold_below_every_reward_is_the_whole_union() -> None:
    source: Any = rest(runs.rounds(), runs.data(), thresholds=[0.0]).source
    source(runs.models(), 0)
    answers = [r.ids for g in source._pools[0].items for r in g.responses]
    assert sorted(answers) == sorted(r.ids for g in source.held[0] for r in g.responses)
    assert len(answers) == 54 + 7


def test_a_judge_of_pairs_has_nothing_to_compare_the_data_with() -> None:
    judged = replace(runs.rounds(), scorer=JudgeScorer(SimulatedJudge()))
    with pytest.raises(ConfigError, match="cannot score responses that stand alone") as caught:
        rest(judged, runs.data(), thresholds=[0.1])
    assert "judge.ask=score" in caught.value.fix
    rest(judged, thresholds=[0.1])
