"""Batches: how often groups are packed in a step, and what minibatches and micro-batches contain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.training import tiny

from tiltyard.batch import batch as batches
from tiltyard.batch.batch import Batch
from tiltyard.batch.forest import Forest, pack
from tiltyard.errors import CompositionError
from tiltyard.methods import ppo
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt


def packings_of_a_ppo_step(monkeypatch: pytest.MonkeyPatch, minibatches: int) -> list[int]:
    """The sizes of all forests that one PPO step of six groups, three micro-batches and four epochs packs."""
    g = torch.Generator().manual_seed(0)
    prompts = [Prompt(id=str(i), ids=tiny.ids(1 + i % 5, g)) for i in range(6)]
    models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar(3))
    scorer = FunctionScorer(lambda _, response: float(len(response.ids)))  # a reward model packs groups of its own
    source = Online(prompts, NativeSampler(), scorer, 6, 2, SampleSettings(max_tokens=6), seed=2)
    sizes: list[int] = []

    def counted(groups: Sequence[Group], device: torch.device | str = "cpu") -> Forest:
        sizes.append(len(groups))
        return pack(groups, device)

    monkeypatch.setattr(batches, "pack", counted)
    tiny.fit(ppo(source, ppo_epochs=4, minibatches=minibatches), models, steps=1, tokens_per_microbatch=38)
    return sizes


def test_a_ppo_step_packs_the_whole_batch_and_each_micro_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old log-probs, values and four epochs share them; each packed anew, they would be 19."""
    assert packings_of_a_ppo_step(monkeypatch, 1) == [6, 2, 2, 2]


def test_minibatches_are_packed_once_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch has minibatches of its own, of which only the micro-batches are packed."""
    sizes = packings_of_a_ppo_step(monkeypatch, 2)
    assert sizes[:4] == [6, 2, 2, 2]
    assert sum(sizes[4:]) == 4 * 6


def batch(budget: int = 30) -> Batch:
    groups = [*tiny.rankings(4), *tiny.demonstrations(3)]
    first = groups[1].responses[0]
    partly = replace(first, loss_spans=((0, 1), (2, len(first.ids))))  # a token in the middle is out of the loss
    groups[1] = replace(groups[1], responses=(partly, *groups[1].responses[1:]))
    whole = Batch.of(groups, range(7), 7, budget=budget)
    forest = whole.forest
    axes = {"token_R": forest.target_R.double(), "own_B": forest.start_B.double(), "place_G": torch.arange(7.0)}
    return whole.with_columns({"seen": (1.0, 1.0)}, **axes)


def cut(whole: Batch, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
    """The columns of some groups, found by the forest's own indices."""
    forest = whole.forest
    rows_B = [b for g in chosen for b in torch.nonzero(forest.group_B == g).flatten().tolist()]
    rows_R = [r for b in rows_B for r in torch.nonzero(forest.response_R == b).flatten().tolist()]
    rows = {"G": list(chosen), "B": rows_B, "R": rows_R}
    return {name: whole[name][torch.tensor(rows[name[-1]], dtype=torch.long)] for name in whole.columns}


@pytest.mark.parametrize("chosen", [[0, 1, 2], [4, 1], [6], [], [2, 3, 4, 5, 6]])
def test_a_selection_has_the_columns_of_its_groups(chosen: list[int]) -> None:
    whole = batch()
    part = whole.select(chosen)
    assert part.groups == tuple(whole.groups[g] for g in chosen)
    assert part.index == tuple(chosen)
    assert part.total == 7
    expected = cut(whole, chosen)
    assert set(part.columns) == set(expected)
    assert all(part[name].equal(expected[name]) for name in expected)
    assert part.forest.target_R.double().equal(part["token_R"])
    assert part.metrics == {}


def test_micro_batches_of_a_selection_are_those_of_its_groups() -> None:
    whole = batch(budget=20)
    part = whole.select([5, 0, 3, 1, 6])
    micro = part.micro()
    assert len(micro) > 1
    assert [i for one in micro for i in one.index] == [5, 0, 3, 1, 6]
    for one in micro:
        expected = cut(whole, one.index)
        assert all(one[name].equal(expected[name]) for name in expected)
        one["token_R"].zero_()  # a copy: the whole batch keeps its numbers
    assert whole["token_R"].any()


def test_versions_of_a_batch_share_their_micro_batches() -> None:
    whole = batch(budget=20)
    later = whole.with_columns(more_R=whole["token_R"] + 1).without("own_B")
    pairs = list(zip(whole.micro(), later.micro(), strict=True))
    assert len(pairs) > 1
    assert all(one.forest is other.forest for one, other in pairs)
    assert all("own_B" not in other.columns and other["more_R"].equal(one["token_R"] + 1) for one, other in pairs)


def test_a_column_has_the_length_of_its_axis() -> None:
    with pytest.raises(CompositionError, match="wrong length"):
        batch().with_columns(odd_B=torch.zeros(3))
    with pytest.raises(CompositionError, match="no column 'odd_B'"):
        batch()["odd_B"]


def test_a_batch_of_one_micro_batch_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(batches, "pack", lambda *args: (calls.append(1), pack(*args))[1])
    whole = Batch.of(tiny.demonstrations(4), range(4), 4)
    assert whole.micro()[0] is whole
    assert whole.forest.G == 4
    assert len(calls) == 1
