"""Debiasing: antisymmetry for any judge, an additive bias in closed form, judges of places, missing verdicts."""

from __future__ import annotations

import math
import random

import pytest

from tiltyard.errors import DataError
from tiltyard.feedback import Debiased, JudgeError
from tiltyard.feedback.verdicts import Verdict, logit_of, sigmoid

from .worlds import Formula, biased, pair, turned, words

HOWS = ["probabilities", "logits"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("together", [True, False])
def test_antisymmetric_for_any_judge(how, together) -> None:
    def law(x: str, y: str) -> float:  # arbitrary, and as asymmetric as can be
        return random.Random(f"{x}|{y}").random()

    pairs = words(1, 40)
    if together:
        both = Debiased(Formula(law), how)([*pairs, *map(turned, pairs)])
        one, two = both[:40], both[40:]
    else:
        one, two = Debiased(Formula(law), how)(pairs), Debiased(Formula(law), how)([turned(p) for p in pairs])
    for v, w in zip(one, two, strict=True):
        assert abs(v.p + w.p - 1) <= 1e-12
    assert max(abs(v.p - 0.5) for v in one) > 0.1


def test_antisymmetric_within_a_call_even_for_dice() -> None:
    dice = random.Random(0)
    judge = Debiased(Formula(lambda x, y: dice.random()))
    pairs = words(2, 20)
    both = judge([*pairs, *map(turned, pairs)])
    assert max(abs(v.p + w.p - 1) for v, w in zip(both[:20], both[20:], strict=True)) <= 1e-12
    assert judge.usage.calls == 40  # each pair once, in both orders


def test_additive_bias_in_closed_form() -> None:
    d = {"a": 0.8, "b": 0.0}
    judges = {how: Debiased(biased(d, 1.1), how) for how in (*HOWS, "none")}
    (by_p,), (by_logit,), (raw,) = (judges[how]([pair("a", "b")]) for how in (*HOWS, "none"))
    assert by_p.p == pytest.approx((sigmoid(0.8 + 1.1) + sigmoid(0.8 - 1.1)) / 2, abs=1e-12)
    assert by_p.p == pytest.approx(0.647725, abs=1e-6)
    assert by_logit.p == pytest.approx(0.689974, abs=1e-6)
    assert by_logit.logit == pytest.approx(0.8, abs=1e-12)
    assert raw.p == pytest.approx(sigmoid(1.9), abs=1e-12)
    (swapped,) = judges["none"]([pair("b", "a")])
    assert swapped.p == pytest.approx(sigmoid(0.3), abs=1e-12)  # one order: the worse answer wins by its place
    for b in (0.0, 0.5, 3.0):
        (level,) = Debiased(biased({"a": 0.0, "b": 0.0}, b))([pair("a", "b")])
        assert level.p == pytest.approx(0.5, abs=1e-15)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("p", "first"), [(0.9, 1.0), (1.0, 1.0), (0.2, 0.0)])
def test_a_judge_of_places_says_nothing(how, p, first) -> None:
    judge = Debiased(Formula(lambda x, y: p), how)
    assert [v.p for v in judge(words(3, 12))] == pytest.approx([0.5] * 12, abs=1e-15)
    assert judge.position_counts.same_rate == 1.0
    assert judge.position_counts.first / judge.position_counts.pairs == first


def test_a_judge_that_reads_has_no_same_position() -> None:
    judge = Debiased(Formula(lambda x, y: 0.7 if x < y else 0.3))
    assert {round(v.p, 12) for v in judge(words(4, 12))} == {0.7, 0.3}
    assert (judge.position_counts.pairs, judge.position_counts.same) == (12, 0)


@pytest.mark.parametrize(("one", "two", "p"), [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 1.0, 0.5), (1.0, 0.4, 1.0)])
def test_certain_answers_in_logits(one, two, p) -> None:
    (verdict,) = Debiased(Formula(lambda x, y: one if x < y else two), "logits")([pair("a", "b")])
    assert verdict.p == p


def test_logits_that_p_cannot_hold() -> None:
    class Sure(Formula):
        def __call__(self, pairs):
            return [Verdict(1.0, logit=60.0 if g.responses[0].text == "a" else 58.0) for g in pairs]

    (verdict,) = Debiased(Sure(lambda x, y: 0.0), "logits")([pair("a", "b")])
    assert verdict.p == pytest.approx(sigmoid(1.0), abs=1e-12)  # from p alone: 1/2
    assert logit_of(Verdict(0.25)) == pytest.approx(-math.log(3), abs=1e-12)


def test_missing_in_one_order_is_missing() -> None:
    judge = Debiased(Formula(lambda x, y: None if x > y else 0.9))
    (verdict,) = judge([pair("a", "b")])
    assert verdict.p is None
    assert verdict.reason == "second order: unsure"
    assert judge.position_counts.pairs == 0


def test_same_words_are_a_tie_and_nobody_is_asked() -> None:
    judge = Debiased(Formula(lambda x, y: 0.9))
    (verdict,) = judge([pair("a", "a")])
    assert (verdict.p, judge.usage.calls, judge.ties, judge.position_counts.pairs) == (0.5, 0, 1, 0)


def test_what_is_no_verdict_is_an_error() -> None:
    with pytest.raises(JudgeError, match="gave no verdicts"):
        Debiased(Formula(lambda x, y: 1.5))([pair("a", "b")])
    group = pair("a", "b")
    with pytest.raises(DataError, match="compares two responses"):
        Debiased(Formula(lambda x, y: 0.5))([type(group)(group.prompt, group.responses[:1])])
