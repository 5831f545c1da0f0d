"""Agreement, quality and habits of annotators from judged groups."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.exchange.judged import battles, group

from tiltyard.errors import DataError
from tiltyard.stats.agreement import cohen_kappa, krippendorff_alpha
from tiltyard.stats.annotations import Annotations
from tiltyard.stats.intervals import wilson
from tiltyard.stats.judged import votes_of
from tiltyard.stats.label_quality import label_report
from tiltyard.stats.reliability import reliabilities
from tiltyard.types import response_id

STRENGTHS = {"m0": 0.8, "m1": 0.2, "m2": -1.0}


def indices(report) -> dict:
    return {(kind, name): value for kind, name, value in report.indices}


def test_the_indices_are_those_of_the_library() -> None:
    groups = battles(80, STRENGTHS, annotators=2, wrong=0.2)
    report = label_report(groups, rounds=50)
    rows = []
    for g in groups:
        best = g.responses[g.preference.ranks.index(1)]
        smaller = min(g.responses, key=response_id)
        rows.append((g.prompt.id, g.preference.annotator, best == smaller))
    data = Annotations.of(rows)
    found = indices(report)
    assert found["pair", "Krippendorff alpha"].value == pytest.approx(krippendorff_alpha(data, rounds=50).value)
    assert found["pair", "Cohen kappa"].value == pytest.approx(cohen_kappa(data, rounds=50).value)
    assert (report.judgements, report.items, report.doubly) == (160, 80, 80)


def test_one_label_alone_is_undefined_and_says_why() -> None:
    same = [group(k, annotator=name) for k in range(5) for name in ("ada", "bob")]
    same = [replace(g, responses=tuple(replace(r, text=f"{j}") for j, r in enumerate(g.responses))) for g in same]
    found = indices(label_report(same, rounds=20))
    assert math.isnan(found["pair", "Krippendorff alpha"].value)
    assert "all labels are the same" in found["pair", "Krippendorff alpha"].reason
    assert found["pair", "percent"].value == 1


def test_the_poor_annotator_is_found() -> None:
    rng = np.random.default_rng(0)
    groups = []
    for g in battles(250, STRENGTHS, seed=1, annotators=4, wrong=0.1):
        if g.preference.annotator == "a3":
            g = replace(g, preference=replace(g.preference, ranks=(1, 2) if rng.random() < 0.5 else (2, 1)))
        groups.append(g)
    report = label_report(groups, rounds=100)
    assert {one.name: one.standing for one in report.annotators} == {
        "a0": "good",
        "a1": "good",
        "a2": "good",
        "a3": "poor",
    }
    worst = min(report.annotators, key=lambda one: one.accuracy.value)
    assert worst.name == "a3"
    weight = reliabilities(votes_of(groups).votes)
    assert weight["a3"] < 0.3 < 0.6 < min(weight[name] for name in ("a0", "a1", "a2"))


def test_ties_make_no_good_annotator_a_poor_one() -> None:
    """One label in ten is a tie or both bad: MACE's competence is that of the decided labels, and nobody is accused."""
    rng = np.random.default_rng(3)
    groups = []
    for g in battles(200, STRENGTHS, seed=2, annotators=4, wrong=0.15):
        drawn = rng.random()
        if g.preference.annotator == "a3":
            g = replace(g, preference=replace(g.preference, ranks=(1, 2) if rng.random() < 0.5 else (2, 1)))
        if drawn < 0.05:
            g = replace(g, preference=replace(g.preference, ranks=(1, 1)))
        elif drawn < 0.1:
            meta = {**g.preference.meta, "reason": "both_bad"}
            g = replace(g, preference=replace(g.preference, ranks=None, meta=meta))
        groups.append(g)
    report = label_report(groups, rounds=100)
    found = {one.name: one.standing for one in report.annotators}
    assert found["a3"] == "poor"
    assert {found[name] for name in ("a0", "a1", "a2")} == {"good"}
    assert all(0.5 < one.competence.value < 0.9 for one in report.annotators if one.name != "a3")  # 1 - 2 * 0.15
    weight = reliabilities(votes_of(groups).votes)
    assert weight["a3"] < 0.3 < 0.5 < min(weight[name] for name in ("a0", "a1", "a2"))


def test_habits_gold_and_repeats() -> None:
    groups = []
    for k in range(60):
        shown = [0, 1] if k % 2 else [1, 0]
        ranks = (1, 2) if shown == [0, 1] else (2, 1)  # always what stands first
        groups.append(group(k, annotator="first", ranks=ranks, shown=shown, seconds=3.0))
        groups.append(group(k, annotator="ada", ranks=(2, 1), shown=shown))  # dpo is the longer one
        groups.append(group(k, annotator="ada", ranks=(2, 1), shown=shown))
    groups += [group(100 + k, annotator="ada", stage="gold", right=k < 3) for k in range(4)]
    report = label_report(groups, rounds=50)
    by_name = {one.name: one for one in report.annotators}
    assert by_name["first"].first.value == 1
    assert by_name["first"].seconds == 3
    assert by_name["ada"].longer.value == 1
    assert by_name["ada"].first.value == 0.5
    assert (by_name["ada"].gold.value, by_name["ada"].gold.n) == (0.75, 4)
    assert by_name["ada"].repeats.value == 1
    assert by_name["ada"].gold.ci == wilson(3, 4)
    narrow = {one.name: one for one in label_report(groups, rounds=50, level=0.5).annotators}["ada"]
    assert narrow.gold.ci == wilson(3, 4, 0.5)
    assert narrow.repeats.low > by_name["ada"].repeats.low
    assert "judgements of an item by the same annotator again" in report.notes[0]
    assert len(report.disagreements) == 30


def test_ratings_and_rankings_have_their_own_indices() -> None:
    models = ("sft", "dpo", "ppo")
    groups = [
        group(k, models, annotator=name, ratings=(1.0 + k % 5, 3.0, 6.0)) for k in range(10) for name in ("a", "b")
    ]
    groups += [group(50 + k, models, annotator=name, ranks=(2, 1, 3)) for k in range(10) for name in ("a", "b")]
    groups += [group(90, ("sft",), annotator="a", ratings=(4.0,)), group(90, ("sft",), annotator="b", ratings=(5.0,))]
    found = indices(label_report(groups, rounds=20))
    assert found["ranking", "Kendall W"].value == 1
    assert 0.9 < found["rating", "Krippendorff alpha, ordinal"].value < 1
    assert ("pair", "percent") not in found


def test_the_most_disputed_item_comes_first() -> None:
    groups = [group(0, annotator=n, ranks=r) for n, r in (("a", (1, 2)), ("b", (2, 1)), ("c", (1, 1)))]
    groups += [group(1, annotator=n, ranks=r) for n, r in (("a", (1, 2)), ("b", (2, 1)), ("c", (1, 2)))]
    groups += [group(2, annotator=n) for n in "abc"]
    report = label_report(groups, rounds=20)
    assert [one.prompt for one in report.disagreements] == ["Question 0?", "Question 1?"]
    assert set(report.disagreements[0].labels) == {"a", "b", "c"}
    assert sum(report.disagreements[0].posterior.values()) == pytest.approx(1)


def test_adjudications_decide_and_do_not_count_as_agreement() -> None:
    groups = [group(k, annotator=n) for k in range(4) for n in ("a", "b")]
    groups += [group(9, annotator="a"), group(9, annotator="b", ranks=(2, 1))]
    groups += [group(9, annotator="c", ranks=(2, 1), stage="adjudication")]
    report = label_report(groups, rounds=20)
    assert indices(report)["pair", "percent"].value == 0.8
    assert len(report.disagreements[0].labels) == 3


def test_nobody_named_is_an_error() -> None:
    with pytest.raises(DataError, match="named annotators"):
        label_report([group(annotator="")])
