"""Self-rewarding: the composition, what its hook measures, and what the judge's faults do to the pairs."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.chance import beyond, shifted
from tests.sampling.scripted import ScriptedSampler

from tiltyard.batch.batch import Batch
from tiltyard.config import parse_settings
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback import Grade, GradeScorer, Usage
from tiltyard.feedback.local import mean_points, read_sample
from tiltyard.inputs import Prompts
from tiltyard.methods import METHODS, self_rewarding
from tiltyard.methods.self_rewarding import pair_lengths
from tiltyard.records import flat_keys
from tiltyard.stages.settings import method_settings
from tiltyard.training.algorithm import Models
from tiltyard.training.rounds import Rounds, renew_ref
from tiltyard.training.select import best_worst
from tiltyard.training.source import generator
from tiltyard.types import Group, Preference, Prompt, Response

from . import tiny

SETTINGS = method_settings(METHODS["self_rewarding"])
ASKED = {"model": "m", "prompts": "p"}


class Says:
    """A judge whose grade of an answer is what a function of the answer says."""

    def __init__(self, grade: Any):
        self.grade, self.usage = grade, Usage()

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        return [tuple(self.grade(r) for r in g.responses) for g in groups]


def sampler(model: Any, prompts: Sequence[Prompt], n: int, *_: Any, **__: Any) -> list[Group]:
    """Answers 1, 2, .. n tokens long, numbered by their first token."""
    return [
        Group(p, tuple(Response(ids=(i + 1,) * (i + 1), text="a" * (i + 1)) for i in range(n)), origin=p.id)
        for p in prompts
    ]


def rounds(grade: Any, n: int = 4, size: int = 12) -> Rounds:
    prompts = [Prompt(id=str(i), ids=(i + 1,)) for i in range(size)]
    return Rounds(prompts, ScriptedSampler(sampler), GradeScorer(Says(grade)), size, size, 2, n)


def points(*texts: str) -> Grade:
    return mean_points([read_sample(text, cut=False) for text in texts])


def models() -> Models:
    return Models(policy=tiny.policy(1), ref=tiny.frozen(0))


# --------------------------------------------------------------------------------------------------- what it composes


def test_what_it_says_of_itself() -> None:
    method = METHODS["self_rewarding"]
    assert method.source == Prompts(every="round")
    assert not method.human_labels
    assert (method.trains, method.frozen) == (("policy",), ("ref",))
    settings = parse_settings(SETTINGS, ASKED, "self_rewarding")
    sampling = settings.sampling
    assert (sampling.samples_per_prompt, sampling.temperature, sampling.top_p, settings.beta) == (4, 0.7, 0.9, 0.1)
    assert (settings.judge.kind, settings.judge.ask, settings.judge.model) == ("model", "points", "policy")
    assert settings.judge.samples == 3
    assert {"reward", "ref"}.isdisjoint(flat_keys(SETTINGS))  # neither would be read


def test_one_setting_of_the_judge_can_be_changed_alone() -> None:
    settings = parse_settings(SETTINGS, ASKED | {"judge": {"max_tokens": 24}}, "self_rewarding")
    assert (settings.judge.max_tokens, settings.judge.model, settings.judge.ask) == (24, "policy", "points")
    with pytest.raises(ConfigError, match="judge"):
        parse_settings(SETTINGS, ASKED | {"judge": {"kind": "simulated"}}, "self_rewarding")
    with pytest.raises(ConfigError, match="reasoning has no effect with ask: points"):
        parse_settings(SETTINGS, ASKED | {"judge": {"reasoning": 9}}, "self_rewarding")


def test_each_round_renews_the_reference_and_takes_best_against_worst() -> None:
    algorithm = self_rewarding(rounds(lambda r: Grade(float(len(r.ids) % 3))))
    assert algorithm.source.begin == (renew_ref,)
    assert algorithm.reads_ref
    held = models()
    before = held.get("ref").module.state_dict()["model.embed_tokens.weight"].clone()
    groups = algorithm.source(held, 0).groups
    after = held.get("ref").module.state_dict()["model.embed_tokens.weight"]
    assert not torch.equal(before, after)
    assert torch.equal(after, held.get("policy").module.state_dict()["model.embed_tokens.weight"])
    # points of the lengths 1, 2, 3, 4 are 1, 2, 0, 1
    assert [[len(r.ids) for r in g.responses] for g in groups] == [[2, 3]] * 12


# --------------------------------------------------------------------------------------------------- the judge's faults


def test_answers_without_a_score_are_dropped_and_never_count_as_zero() -> None:
    """Odd answers get words without a score, as the judge may write them: among the others the order decides."""

    def grade(response: Response) -> Grade:
        size = len(response.ids)
        return points("no idea", "Score: 9") if size in (1, 4) else points(f"Score: {5 - size}", "Score: what")

    groups = self_rewarding(rounds(grade)).source(models(), 0).groups
    assert [[len(r.ids) for r in g.responses] for g in groups] == [[2, 3]] * 12
    assert {g.scores for g in groups} == {(3.0, 2.0)}


def test_a_judge_that_scores_everything_alike_teaches_nothing() -> None:
    with pytest.raises(DataError, match="nothing is left to learn from"):
        self_rewarding(rounds(lambda r: Grade(3.0))).source(models(), 0)


def test_a_judge_that_likes_length_shows_in_the_metrics() -> None:
    """r = 0 and points for length alone: the longest stands against the shortest, and the hook says by how much."""
    algorithm = self_rewarding(rounds(lambda r: Grade(0.5 * len(r.ids))))
    draw = algorithm.source(models(), 0)
    batch = Batch.of(draw.groups, draw.index, draw.total)
    for prepare in algorithm.prepare[:1]:
        batch = prepare(models(), batch)
    (hook,) = algorithm.after
    found = {name: s / n for name, (s, n) in hook(models(), batch, 0).items()}
    assert found == {"chosen_length": 4.0, "rejected_length": 1.0, "length_gap": 3.0}


def test_lengths_follow_the_labels_and_ties_have_none() -> None:
    one, two = Response(ids=(1, 2, 3)), Response(ids=(4,))
    groups = [
        Group(Prompt(ids=(1,)), (one, two), preference=Preference(ranks=(2, 1))),
        Group(Prompt(ids=(2,)), (one, two), preference=Preference(shares=(0.5, 0.5))),
    ]
    batch = Batch.of(groups, range(2), 2)
    batch = batch.with_columns(share_B=torch.tensor([0.0, 1.0, 0.5, 0.5], dtype=torch.float64))
    assert pair_lengths(models(), batch, 0) == {
        "chosen_length": (1.0, 1),
        "rejected_length": (3.0, 1),
        "length_gap": (-2.0, 1),
    }


@pytest.mark.statistical
def test_more_judgements_mislabel_less() -> None:
    """Points are r plus noise, averaged over k: how often the pair is the wrong way round, counted, falls with k."""
    rng = random.Random(shifted(5))
    worth = (1.0, 2.0, 3.0, 4.0)

    def wrong(k: int) -> float:
        groups = []
        for i in range(4000):
            grades = [
                points(*(f"Score: {min(5, max(0, round(r + rng.gauss(0, 2))))}" for _ in range(k))) for r in worth
            ]
            scores = tuple(g.score or 0.0 for g in grades)
            groups.append(Group(Prompt(id=str(i)), tuple(Response(text=str(r)) for r in worth), scores=scores))
        pairs = best_worst(groups, generator(shifted(3)))
        turned = [float(p.responses[0].text) < float(p.responses[1].text) for p in pairs]
        return sum(turned) / len(turned)

    shares = [wrong(k) for k in (1, 3, 9)]
    errors = [math.sqrt(p * (1 - p) / 4000) for p in shares]  # a few groups of 4,000 are all ties, which is as good
    beyond(shares[0] - shares[1], 0.01, math.hypot(*errors[:2]))
    beyond(shares[1] - shares[2], 0.01, math.hypot(*errors[1:]))


def test_the_pool_is_the_same_after_a_stop() -> None:
    """What the judge said is kept with the answers: a second source over the same state learns from the same pairs."""
    grade = lambda r: Grade(float(sum(r.ids) % 5))  # noqa: E731
    first = self_rewarding(rounds(grade)).source
    groups = first(models(), 0).groups
    second = self_rewarding(rounds(lambda r: Grade(-1.0))).source  # must not be asked
    second.load_state_dict(first.state_dict())
    again = second(models().replace(), 1)
    assert sorted(g.origin for g in again.groups) == sorted(g.origin for g in groups)
    assert {g.scores for g in again.groups} == {g.scores for g in groups}
