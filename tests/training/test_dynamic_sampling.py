"""Dynamic sampling: only groups whose scores differ, prompts drawn anew; a function of the seed and the step alone."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tests.sampling.scripted import ScriptedSampler
from tests.scoring.stubs import Scripted

from tiltyard.distributed import processes
from tiltyard.errors import TiltyardError
from tiltyard.methods import grpo
from tiltyard.sampling import SampleSettings, UniformStream
from tiltyard.training.algorithm import Models, StepGroups
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt, Response

from . import tiny

PROMPTS = [Prompt(id=str(i), ids=(2 + i % 7, 3)) for i in range(40)]
BATCH, N = 5, 3


def coins(model: Any, prompts: Any, n: int, settings: Any, seeds: Any) -> list[Group]:
    """Responses of one random token, from the seeds that belong to each prompt's place in the step."""
    rows = torch.arange(len(seeds))
    tokens = (UniformStream(seeds).uniform_R(rows, torch.zeros_like(rows)) * 15).long().tolist()
    return [
        Group(p, tuple(Response(ids=(2 + t, tiny.EOS), finish="stop") for t in tokens[i * n : i * n + n]))
        for i, p in enumerate(prompts)
    ]


def judge(groups: list[Group]) -> list[Group]:
    """1 for high tokens and prompts of no patience; many groups score alike."""
    return [
        Group(g.prompt, g.responses, tuple(float(r.ids[0] > 13) for r in g.responses), origin=g.origin) for g in groups
    ]


def source(tries: int, score: Any = judge) -> Online:
    return Online(
        PROMPTS, ScriptedSampler(coins), Scripted(score), BATCH, N, SampleSettings(max_tokens=2), seed=4, tries=tries
    )


def plain_models() -> Models:
    return Models(policy=tiny.policy())


def said(draw: StepGroups) -> list[tuple[int, str, list[tuple[int, ...]], Any]]:
    rows = zip(draw.index, draw.groups, strict=True)
    return [(i, g.prompt.id, [r.ids for r in g.responses], g.scores) for i, g in rows]


def test_the_batch_is_filled_with_groups_that_differ() -> None:
    found, counted = plain_models(), 0.0
    for step in range(12):
        draw = source(20)(found, step)
        assert (len(draw.groups), draw.total, draw.index) == (BATCH, BATCH, list(range(BATCH)))
        assert all(len(set(g.scores or ())) > 1 for g in draw.groups)
        assert len({g.prompt.id for g in draw.groups}) == BATCH
        dropped, sampled = draw.metrics["dropped_groups"]
        assert sampled % BATCH == 0
        assert BATCH <= sampled - dropped < 2 * BATCH  # what is over is left out, and was not dropped for its scores
        assert draw.metrics["tied_scores"][0] == 0
        assert draw.metrics["sampled_score"][1] == sampled * N
        counted += dropped
    assert counted > 20


def test_tries_end_it_and_a_batch_may_stay_short() -> None:
    sizes = [source(1)(plain_models(), step).total for step in range(12)]
    assert min(sizes) < BATCH
    assert all(0 <= size <= BATCH for size in sizes)


def test_every_step_is_a_function_of_the_seed_and_the_step() -> None:
    """Whatever was drawn before; steps differ, and without dynamic sampling nothing has changed."""
    found, used = plain_models(), source(20)
    draws = [said(used(found, step)) for step in range(6)]
    assert [said(source(20)(found, step)) for step in reversed(range(6))] == draws[::-1]
    assert len({str(d) for d in draws}) == 6
    every = source(0)(found, 3)
    assert every.total == BATCH
    assert "dropped_groups" not in every.metrics
    assert any(len(set(g.scores or ())) == 1 for s in range(5) for g in source(0)(found, s).groups)


class Team:
    """Processes played by threads: each has a rank, and what one gathers all have."""

    def __init__(self, world: int, monkeypatch: pytest.MonkeyPatch):
        self.size, self.mine = world, threading.local()
        self.barrier, self.held = threading.Barrier(world), [None] * world
        for name in ("rank", "world", "gather_objects"):
            monkeypatch.setattr(processes, name, getattr(self, name))

    def rank(self) -> int:
        return self.mine.rank

    def world(self) -> int:
        return self.size

    def gather_objects(self, own: Any) -> list[Any]:
        self.held[self.rank()] = own
        self.barrier.wait(60)
        everyone = list(self.held)
        self.barrier.wait(60)
        return everyone

    def run(self, work: Any) -> list[Any]:
        found: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            self.mine.rank = rank
            found[rank] = work()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return found


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_draw_what_one_does(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = plain_models()
    alone = [source(20)(found, step) for step in range(4)]
    parts = Team(world, monkeypatch).run(lambda: [source(20)(found, step) for step in range(4)])
    for step, whole in enumerate(alone):
        mine = [part[step] for part in parts]
        assert sorted(row for draw in mine for row in said(draw)) == said(whole)
        assert {draw.total for draw in mine} == {BATCH}
        for name in ("dropped_groups", "sampled_score"):
            sums = [sum(draw.metrics[name][i] for draw in mine) for i in (0, 1)]
            assert sums == list(whole.metrics[name])


def test_grpo_asks_for_it_and_a_step_of_ties_is_skipped() -> None:
    """The source that was given stays as it is; where every group ties for good, nothing moves and the run goes on."""
    given = source(0, lambda groups: [Group(g.prompt, g.responses, (1.0,) * N) for g in groups])
    algorithm = grpo(given, beta=0.0, dynamic_sampling=3)
    assert (algorithm.source.tries, given.tries) == (3, 0)  # type: ignore[attr-defined]
    found = plain_models()
    before = tiny.parameters(found.policy)
    record = tiny.Record()
    with pytest.raises(TiltyardError, match="no step taught anything"):
        tiny.train(algorithm, found, steps=2, sinks=[record])
    assert [row["dropped_groups"] for row in record.rows] == [1.0, 1.0]
    tiny.assert_same(tiny.parameters(found.policy), before, 0)
    assert grpo(given, beta=0.0).source is given
    taught = grpo(source(0), beta=0.0, dynamic_sampling=20)
    rows = tiny.train(taught, found, steps=2)
    assert all(0 < row["dropped_groups"] < 1 and row["grad_norm"] > 0 for row in rows)
