"""Groups of a file, from memory or from disk: the same steps bit for bit, and what they read is known before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tiltyard.algorithms import dpo, sft
from tiltyard.data import Spool
from tiltyard.training.algorithm import Models
from tiltyard.training.batch import Batch
from tiltyard.training.refcache import cache_ref_logps
from tiltyard.training.source import Offline
from tiltyard.types import Group

from . import tiny


def pairs(n: int) -> list[Group]:
    return [replace(g, responses=g.responses[:2], ranks=(1, 2), scores=None) for g in tiny.rankings(n)]


def test_training_from_disk_is_training_from_memory(tmp_path: Path) -> None:
    groups = tiny.demonstrations(11)
    ends = []
    for source in (groups, Spool.of(groups, tmp_path)):
        models = Models(policy=tiny.policy())
        rows = tiny.train(sft(Offline(source, 4, seed=3)), models, steps=7)
        ends.append((rows, tiny.parameters(models.policy)))
    tiny.assert_same(ends[0], ends[1], 0)


def test_a_reference_on_disk_for_groups_on_disk(tmp_path: Path) -> None:
    groups = pairs(9)
    ends = []
    for source in (groups, Spool.of(groups, tmp_path)):
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
    places = source.read_in(steps).tolist()
    assert places == sorted({groups.index(g) for step in range(steps) for g in source(Models(), step).groups})
    assert len(places) == read
    cache = cache_ref_logps(tiny.frozen(), Spool.of(groups, tmp_path).pick(places), tmp_path)
    assert len(cache.table) == read
    tiny.train(dpo(source), Models(policy=tiny.policy(), ref_cache=cache), steps=steps)


@pytest.mark.parametrize("budget", [1, 20, 40, 8192])
def test_a_stream_of_micro_batches_is_cut_like_a_batch(tmp_path: Path, budget: int) -> None:
    groups = pairs(9)
    whole = Batch.of(groups, range(9), 9, budget=budget).micro()
    parts = list(Batch.stream(Spool.of(groups, tmp_path), budget=budget))
    assert [(p.groups, p.index, p.total) for p in parts] == [(p.groups, p.index, p.total) for p in whole]
    for part, other in zip(parts, whole, strict=True):
        tiny.assert_same(part.forest.ids_T, other.forest.ids_T, 0)
        tiny.assert_same(part.columns, other.columns, 0)
