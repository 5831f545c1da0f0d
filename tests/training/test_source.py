"""Groups of a file, from memory or from disk: the same steps bit for bit, and what they read is known before."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from tiltyard.batch.batch import Batch
from tiltyard.data import GroupFile
from tiltyard.methods import dpo, sft
from tiltyard.training.algorithm import Models
from tiltyard.training.refcache import cache_ref_logps
from tiltyard.training.source import Offline
from tiltyard.types import Group, Preference

from . import tiny


def pairs(n: int) -> list[Group]:
    return [
        replace(g, responses=g.responses[:2], preference=Preference(ranks=(1, 2)), scores=None)
        for g in tiny.rankings(n)
    ]


def test_training_from_disk_is_training_from_memory(tmp_path: Path) -> None:
    groups = tiny.demonstrations(11)
    ends = []
    for source in (groups, GroupFile.write(groups, tmp_path)):
        models = Models(policy=tiny.policy())
        rows = tiny.train(sft(Offline(source, 4, seed=3)), models, steps=7)
        ends.append((rows, tiny.parameters(models.policy)))
    tiny.assert_same(ends[0], ends[1], 0)


def test_a_reference_on_disk_for_groups_on_disk(tmp_path: Path) -> None:
    groups = pairs(9)
    ends = []
    for source in (groups, GroupFile.write(groups, tmp_path)):
        cache = cache_ref_logps(tiny.frozen(7), source, tmp_path / "cache")
        models = Models(policy=tiny.policy(), ref_cache=cache)
        ends.append(tiny.train(dpo(Offline(source, 4), beta=0.3), models, steps=5))
    assert not cache.fresh  # the same content
    tiny.assert_same(ends[0], ends[1], 0)


@pytest.mark.parametrize(("steps", "read"), [(1, 4), (2, 8), (3, 10), (30, 10)])
def test_what_the_steps_read(tmp_path: Path, steps: int, read: int) -> None:
    """A reference that was asked about these groups alone has an answer at every step, and about no group more."""
    groups = pairs(10)
    source = Offline(groups, 4, seed=5)
    places = source.indices_until(steps).tolist()
    assert places == sorted({groups.index(g) for step in range(steps) for g in source(Models(), step).groups})
    assert len(places) == read
    cache = cache_ref_logps(tiny.frozen(), GroupFile.write(groups, tmp_path).pick(places), tmp_path)
    assert len(cache.table) == read
    tiny.train(dpo(source), Models(policy=tiny.policy(), ref_cache=cache), steps=steps)


@pytest.mark.parametrize("budget", [1, 20, 40, 8192])
def test_a_stream_of_micro_batches_is_cut_like_a_batch(tmp_path: Path, budget: int) -> None:
    groups = pairs(9)
    whole = Batch.of(groups, range(9), 9, budget=budget).micro()
    parts = list(Batch.stream(GroupFile.write(groups, tmp_path), budget=budget))
    assert [(p.groups, p.index, p.total) for p in parts] == [(p.groups, p.index, p.total) for p in whole]
    for part, other in zip(parts, whole, strict=True):
        tiny.assert_same(part.forest.ids_T, other.forest.ids_T, 0)
        tiny.assert_same(part.columns, other.columns, 0)


def test_a_micro_batch_holds_as_much_as_it_may() -> None:
    groups = pairs(9)
    budget = sum(g.tokens for g in groups[:3])  # the first three fit to the last token
    parts = list(Batch.stream(groups, budget=budget))
    assert len(parts[0].groups) == 3
    for part, after in itertools.pairwise(parts):
        assert budget >= part.forest.T or len(part.groups) == 1
        assert part.forest.T + after.groups[0].tokens > budget


# ------------------------------------------------------------------------------------------------- steps of many tokens


def drawn(source: Offline, steps: int) -> list[list[str]]:
    return [[g.prompt.id for g in source(Models(), step).groups] for step in range(steps)]


@pytest.mark.parametrize("budget", [1, 17, 40, 100])
def test_a_step_takes_what_fits_and_not_less(tmp_path: Path, budget: int) -> None:
    """The same endless order as with a number of groups, cut where the next group would be one too many."""
    groups = pairs(10)
    source = Offline(GroupFile.write(groups, tmp_path), 4, seed=5, tokens_per_step=budget)
    steps = drawn(source, 30)
    flat = [name for step in steps for name in step]
    assert flat == [name for step in drawn(Offline(groups, 1, seed=5), len(flat)) for name in step]
    size = {g.prompt.id: g.tokens for g in groups}
    for step, after in itertools.pairwise(steps):
        held = sum(size[name] for name in step)
        assert step
        assert held <= budget or len(step) == 1
        assert held + size[after[0]] > budget
    draw = source(Models(), 3)
    assert (draw.index, draw.total) == (list(range(len(steps[3]))), len(steps[3]))


def test_a_step_of_tokens_is_a_pure_function_of_its_number() -> None:
    """A resumed run asks for a late step first, in the middle of another epoch."""
    groups = pairs(10)
    steps = drawn(Offline(groups, 4, seed=5, tokens_per_step=40), 30)
    late = Offline(groups, 4, seed=5, tokens_per_step=40)
    assert [[g.prompt.id for g in late(Models(), step).groups] for step in (29, 3, 17)] == [
        steps[i] for i in (29, 3, 17)
    ]
    assert drawn(Offline(groups, 4, seed=6, tokens_per_step=40), 30) != steps


@pytest.mark.parametrize("epochs", [0.3, 1.0, 2.5])
def test_epochs_of_steps_of_tokens(epochs: float) -> None:
    groups = pairs(10)
    source = Offline(groups, 4, tokens_per_step=40)
    steps = source.steps(epochs)
    sizes = [len(step) for step in drawn(source, steps)]
    assert sum(sizes[:-1]) < 10 * epochs <= sum(sizes)
    assert source.indices_until(source.steps(1)).tolist() == list(range(10))
    assert Offline(groups, 4).steps(epochs) == max(1, round(10 * epochs / 4))
