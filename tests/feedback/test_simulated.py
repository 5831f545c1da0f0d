"""The simulated judge: right without noise, its wishes change its verdicts, its votes are those of its probability."""

from __future__ import annotations

import pytest
import torch
from tests.chance import chi_square, shifted

from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback import Debiased, JudgeScorer, SimulatedJudge
from tiltyard.feedback.verdicts import sigmoid
from tiltyard.types import Group, Response, ranks_of, shares_of
from tiltyard.world import gold

from .worlds import pair, world_pairs


def golds(group: Group) -> tuple[float, float]:
    return tuple(gold(group.prompt.meta, r.text).total for r in group.responses)  # type: ignore[return-value]


def test_without_noise_it_is_right() -> None:
    groups = world_pairs()
    told = [(g, golds(g)) for g in groups]
    apart = [(g, t) for g, t in told if abs(t[0] - t[1]) > 1e-3]
    assert len(apart) > 30
    verdicts = Debiased(SimulatedJudge(temperature=1e-6))([g for g, _ in apart])
    right = sum((v.p > 0.5) == (t[0] > t[1]) for v, (_, t) in zip(verdicts, apart, strict=True))
    assert right == len(apart)
    soft = SimulatedJudge(temperature=0.7)([g for g, _ in told])
    for verdict, (_, (a, b)) in zip(soft, told, strict=True):
        assert verdict.p == pytest.approx(sigmoid((a - b) / 0.7), abs=1e-12)


def test_kendall_of_a_group_is_one() -> None:
    groups = world_pairs(6)
    answers = tuple(dict.fromkeys(r.text for g in groups for r in g.responses))[:5]
    group = Group(groups[0].prompt, tuple(Response(text=t) for t in answers))
    totals = [gold(group.prompt.meta, t).total for t in answers]
    (scored,) = JudgeScorer(SimulatedJudge(temperature=1e-6)).score([group])
    assert shares_of(scored.preference) is None
    for i in range(5):
        for j in range(5):
            assert (totals[i] > totals[j]) == (scored.scores[i] > scored.scores[j])
            assert (totals[i] > totals[j]) == (ranks_of(scored.preference)[i] < ranks_of(scored.preference)[j])


def test_the_instruction_changes_the_verdict() -> None:
    group = world_pairs(1)[0]
    text = group.responses[1].text
    longer = Group(group.prompt, (Response(text=text), Response(text=f"{text} I am glad to help with that.")))
    lengths = [gold(group.prompt.meta, r.text).length for r in longer.responses]
    (short,) = SimulatedJudge({"length": -1.0}, temperature=1.0)([longer])
    (long,) = SimulatedJudge({"length": 1.0}, temperature=1.0)([longer])
    assert short.p == pytest.approx(sigmoid((lengths[1] - lengths[0]) / 10), abs=1e-12)
    assert short.p > 0.5 > long.p
    values = [gold(group.prompt.meta, r.text) for r in group.responses]
    (mixed,) = SimulatedJudge({"helpful": 2.0, "truthful": 0.5, "harmless": 1.0}, temperature=1.0)([group])
    gap = sum(s * (2 * g.helpful + 0.5 * g.truthful + g.harmless) for s, g in zip((1, -1), values, strict=True))
    assert mixed.p == pytest.approx(sigmoid(gap), abs=1e-12)


def test_position_bias_cancels_in_logits() -> None:
    groups = world_pairs(20)
    plain = SimulatedJudge(temperature=1.0)(groups)
    fair = Debiased(SimulatedJudge(temperature=1.0, position_bias=2.5), "logits")
    for v, w in zip(fair(groups), plain, strict=True):
        assert v.p == pytest.approx(w.p, abs=1e-12)
    assert fair.position_counts.same > 0
    assert fair.position_counts.first == fair.position_counts.same


@pytest.mark.statistical
def test_votes_are_drawn_with_p() -> None:
    groups = world_pairs(30)
    judge = SimulatedJudge(temperature=1.0, votes=4000, seed=shifted(5))
    found, exact = (torch.tensor([v.p for v in j(groups)]).double() for j in (judge, SimulatedJudge(temperature=1.0)))
    chi_square(float((4000 * (found - exact) ** 2 / (exact * (1 - exact))).sum()), len(groups))


def test_votes_repeat() -> None:
    groups = world_pairs(30)
    few = SimulatedJudge(temperature=1.0, votes=3, seed=5)
    first = [v.p for v in few(groups)]
    assert {round(3 * p, 9) for p in first} <= {0.0, 1.0, 2.0, 3.0}
    assert [v.p for v in few(groups[::-1])][::-1] == first  # the question alone decides, not what came before
    assert [v.p for v in SimulatedJudge(temperature=1.0, votes=3, seed=6)(groups)] != first


def test_scores_are_utilities() -> None:
    groups = world_pairs(5)
    grades = SimulatedJudge().score(groups)
    assert [tuple(g.score for g in row) for row in grades] == [golds(g) for g in groups]


def test_wrong_wishes_and_foreign_prompts() -> None:
    with pytest.raises(ConfigError, match="did you mean 'helpful'"):
        SimulatedJudge({"helpfull": 1.0})
    with pytest.raises(DataError, match="needs prompts of the embedded world"):
        SimulatedJudge()([pair("a", "b")])
