"""`fit` against the flat reference of online direct alignment: the same answers, then the same numbers for 20 steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.reference import online_dpo as flat
from tests.scoring.stubs import Scripted

from tiltyard.batch.batch import Batch
from tiltyard.methods import online_dpo
from tiltyard.sampling import NativeSampler, SampleSettings, UniformStream, response_seeds
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.source import Online, generator
from tiltyard.types import Group, Preference, Prompt, Response

from . import tiny
from .test_agreement_rl import plain_copy

STEPS, BATCH, SEED = 20, 5, 4
Answers = list[list[int]]


def worth(ids: tuple[int, ...] | list[int]) -> float:
    """Few levels, so that different answers tie."""
    return float(sum(ids) % 3)


def by_score(prompt: list[int], first: list[int], second: list[int]) -> float | None:
    return None if worth(first) == worth(second) else float(worth(first) > worth(second))


def chance(first: Any, second: Any) -> float:
    return 1 / (1 + math.exp(worth(second) - worth(first)))


def in_shares(groups: list[Group]) -> list[Group]:
    """A judge that says how sure it is; an even verdict is one too, and no tie."""
    found = []
    for group in groups:
        q = chance(*(r.ids for r in group.responses))
        found.append(replace(group, preference=Preference(shares=(q, 1 - q))))
    return found


def source(scorer: Any, settings: SampleSettings, batch: int = BATCH) -> Online:
    g = generator(11)
    prompts = [Prompt(id=str(i), ids=tiny.ids(tiny.length(1, 7, g), g)) for i in range(8)]
    return Online(prompts, NativeSampler(), scorer, batch, 2, settings, seed=SEED)


def both(
    scorer: Any, judge: Callable[..., float | None], settings: SampleSettings, batch: int, **own: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Answers]]:
    """Our metrics, the reference's, and our answers of each step; the parameters at the end are compared here."""
    policy, ref = tiny.policy(), tiny.frozen(2)
    drawn = source(scorer, settings, batch)

    def uniforms(step: int) -> Any:
        stream = UniformStream(response_seeds(range(batch), 2, SEED, 2, step))
        rows = torch.arange(2 * batch)
        columns = [stream.uniform_R(rows, torch.full_like(rows, t)) for t in range(settings.max_tokens)]
        return torch.stack(columns, 1).unflatten(0, (batch, 2))

    batches = [[list(p.ids) for p in drawn.shuffle.batch_at(step, batch)] for step in range(STEPS)]
    names = {"kind": own["loss"], "beta": own["beta"], "temperature": settings.temperature, "eos": tiny.EOS}
    theirs, final = flat.run(plain_copy(policy), plain_copy(ref), batches, uniforms, judge, lr=3e-3, **names)
    answers: list[Answers] = []

    def keep(models: Models, seen: Batch, step: int) -> None:
        answers.append([list(r.ids) for group in seen.groups for r in group.responses])

    ours = tiny.train(tiny.watch(online_dpo(drawn, **own), keep), Models(policy=policy, ref=ref), lr=3e-3)
    tiny.assert_same(tiny.parameters(policy), final)
    return ours, theirs, answers


def assert_agree(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], beta: float, batch: int) -> None:
    for own, other in zip(ours, theirs, strict=True):
        assert own["tied_groups"] == other["ties"] / batch
        assert own.get("groups", 0) == batch - other["ties"]
        assert ("loss" in own) == ("loss" in other)
        assert own["sampler_gap"] < 1e-12
        if "loss" in own:
            tiny.assert_same([own[n] for n in ("loss", "grad_norm")], [other[n] for n in ("loss", "grad_norm")])
            if "margin" not in own:  # every verdict of the step is even: there is no right side
                assert math.isnan(other["margin"])
                continue
            expected = [beta * other["margin"], other["accuracy"]]
            tiny.assert_same([own["margin"], own["accuracy"]], expected)


LONG, ONE = SampleSettings(max_tokens=6), SampleSettings(max_tokens=1)
CASES: dict[str, tuple[dict[str, Any], SampleSettings, int]] = {
    "dpo": ({"loss": "dpo", "beta": 0.3}, LONG, BATCH),
    "ipo": ({"loss": "ipo", "beta": 0.2}, LONG, BATCH),
    "hinge": ({"loss": "hinge", "beta": 1.5}, LONG, BATCH),
    "sampled colder than learnt": ({"loss": "dpo", "beta": 0.3}, SampleSettings(temperature=0.6, max_tokens=6), BATCH),
    "one token, one prompt": ({"loss": "ipo", "beta": 1.0}, ONE, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_hard_verdicts(case: str) -> None:
    """By score, ties left out; answers that ended and answers that were cut, steps in which every pair is a tie."""
    settings, law, batch = CASES[case]
    ours, theirs, answers = both(FunctionScorer(lambda p, r: worth(r.ids)), by_score, law, batch, **settings)
    assert answers == [row["answers"] for row in theirs]
    assert_agree(ours, theirs, settings["beta"], batch)
    everything = [answer for step in answers for answer in step]
    assert 0.02 < sum(answer[-1] != tiny.EOS for answer in everything) / len(everything) < 0.98
    assert 0 < sum(row["ties"] for row in theirs) < STEPS * batch
    assert (batch > 1) or (any("loss" not in row for row in ours) and any(a == b for a, b in answers))


@pytest.mark.parametrize("loss", ["dpo", "ipo", "hinge"])
def test_soft_verdicts(loss: Any) -> None:
    """A judge's probabilities: an even verdict is learnt from, a pair is never counted as a tie."""
    ours, theirs, answers = both(Scripted(in_shares), lambda p, a, b: chance(a, b), LONG, BATCH, loss=loss, beta=0.5)
    assert answers == [row["answers"] for row in theirs]
    assert_agree(ours, theirs, 0.5, BATCH)
    assert any(worth(a) == worth(b) for step in answers for a, b in zip(step[::2], step[1::2], strict=True))
    assert {row["ties"] for row in theirs} == {0}


@pytest.mark.parametrize("loss", ["dpo", "ipo", "hinge"])
def test_a_verdict_on_one_answer_twice_has_no_gradient(loss: Any) -> None:
    """A judge that always takes the first: where both are the same h is 0, whatever it says."""

    def first(groups: list[Group]) -> list[Group]:
        return [replace(g, scores=(1.0, 0.0)) for g in groups]

    likeliest = SampleSettings(top_k=1, max_tokens=6)
    models = Models(policy=tiny.policy(), ref=tiny.frozen(2))
    ours = tiny.train(online_dpo(source(Scripted(first), likeliest), loss=loss), models, steps=3)
    assert all(row["grad_norm"] < 1e-13 for row in ours)
    expected = {"dpo": math.log(2), "ipo": 25.0, "hinge": 1.0}[loss]
    assert [row["loss"] for row in ours] == pytest.approx([expected] * 3, abs=1e-12)
    assert {row["groups"] for row in ours} == {float(BATCH)}


def test_equal_scores_change_nothing() -> None:
    """Every pair a tie: no step is taken, so not even the momentum of an earlier one moves a parameter."""
    turn = [0]

    def tied_from_the_second(prompt: Prompt, response: Response) -> float:
        turn[0] += 1
        return float(turn[0]) if turn[0] <= 2 * BATCH else 0.5

    policy, seen = tiny.policy(), []
    drawn = source(FunctionScorer(tied_from_the_second), LONG)
    watched = tiny.watch(online_dpo(drawn), lambda m, b, s: seen.append(tiny.parameters(policy)))
    ours = tiny.train(watched, Models(policy=policy, ref=tiny.frozen(2)), steps=3)
    assert [row["tied_groups"] for row in ours] == [0, 1, 1]
    assert ["loss" in row for row in ours] == [True, False, False]
    assert all((seen[0][n] == p).all() for n, p in seen[2].items())
