"""Held-out measurements go through their groups in pieces: the same figures however they are cut, and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training import tiny

from models import encoders
from tiltyard.batch.batch import Batch
from tiltyard.data import GroupFile
from tiltyard.inputs import measure
from tiltyard.methods.mlm import Mask
from tiltyard.training.algorithm import Models
from tiltyard.training.refcache import cache_ref_logps
from tiltyard.types import Group, ranks_of

POLICY, REF, REWARD = tiny.policy(1), tiny.frozen(0), tiny.scalar(2)
torch.nn.init.normal_(REWARD.head.weight)


def rows(kind: str) -> list[Group]:
    if kind == "demonstrations":
        found = tiny.demonstrations(9)
        return [replace(g, responses=(replace(g.responses[0], text=f"{i} é"),)) for i, g in enumerate(found)]
    found = tiny.rankings(9, tied=(4,))
    if kind == "rankings":
        return found
    labels = [tuple(float(k == min(ranks_of(g.preference) or ())) for k in ranks_of(g.preference) or ()) for g in found]
    return [replace(g, preference=None, scores=s) for g, s in zip(found, labels, strict=True)]


def preference(groups: Sequence[Group], budget: int) -> measure.Measure:
    return measure.preference(groups, budget, cache_ref_logps(REF, groups, None))


CASES: dict[str, tuple[Callable[[Sequence[Group], int], measure.Measure], str]] = {
    "likelihood": (measure.likelihood, "demonstrations"),
    "preference": (preference, "rankings"),
    "labels": (preference, "labels"),
    "ranking": (measure.ranking, "rankings"),
}


def found(case: str, groups: Sequence[Group], budget: int) -> dict[str, float]:
    return CASES[case][0](groups, budget)(Models(policy=POLICY, reward=REWARD), 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", [1, 30, 60])
def test_pieces_add_up(case: str, budget: int, tmp_path: Path) -> None:
    groups = rows(CASES[case][1])
    whole = found(case, groups, 10**6)
    tiny.assert_same(found(case, GroupFile.write(groups, tmp_path), budget), whole, 1e-9)
    assert len(set(map(str, whole.values()))) == len(whole)  # none is a constant that would agree with anything


@pytest.mark.parametrize("budget", [1, 30])
def test_an_encoder_is_asked_about_the_same_tokens(budget: int, tmp_path: Path) -> None:
    model: Any = encoders.masked("bert")
    groups = encoders.documents(7)
    case = lambda rows, size: measure.cloze(rows, size, Mask(p=0.3, seed=2))(Models(encoder=model), 5)  # noqa: E731
    tiny.assert_same(case(GroupFile.write(groups, tmp_path), budget), case(groups, 10**6), 1e-5)


@torch.no_grad()
def test_by_hand(tmp_path: Path) -> None:
    """Group by group and pair by pair, with nothing shared."""
    groups = rows("rankings")

    def says(model: Any, group: Group) -> list[float]:
        alone = [replace(group, responses=(r,), preference=None) for r in group.responses]
        return [float(model.logp_R(Batch.of([g], [0], 1).forest)[0].sum()) for g in alone]

    right, margins, ratios = [], [], []
    for group in groups:
        ratio = [a - b for a, b in zip(says(POLICY, group), says(REF, group), strict=True)]
        ratios += ratio
        ranked = list(zip(ranks_of(group.preference) or (), ratio, strict=True))
        pairs = [(x, y) for (i, x), (j, y) in itertools.permutations(ranked, 2) if i < j]
        margins += [x - y for x, y in pairs]
        right += [sum(x > y for x, y in pairs) / len(pairs)] if pairs else []
    measured = found("preference", GroupFile.write(groups, tmp_path), 30)
    assert measured["held_out/accuracy"] == pytest.approx(sum(right) / len(right))
    assert measured["held_out/margin"] == pytest.approx(sum(margins) / len(margins))
    assert measured["held_out/log_ratio"] == pytest.approx(sum(ratios) / len(ratios))
