"""Hidden states kept by the sampler: what they take, when they are kept, and that results differ by rounding only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sampling.scripted import ScriptedSampler
from tests.training import round_runs as runs
from tests.training import tiny

from tiltyard.methods import ppo
from tiltyard.sampling import NativeSampler, SampleSettings, hidden
from tiltyard.scoring import FunctionScorer
from tiltyard.training import source as source_module
from tiltyard.training.algorithm import Models
from tiltyard.training.source import Online


def online(**changes: Any) -> Online:
    law = SampleSettings(max_tokens=6)
    return Online(runs.prompts(), NativeSampler(), FunctionScorer(runs.score), 5, 2, law, seed=2, **changes)


def models(dtype: str = "float64") -> Models:
    return Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar(3))


def test_bytes_are_responses_times_tokens_times_width() -> None:
    """Measured: what 6 responses of 9 tokens keep is half of the plan, the rest is the copy of the sort."""
    policy = tiny.policy()
    policy.chat = tiny.chat(stop_ids=frozenset())
    width = policy.module.config.hidden_size
    settings = SampleSettings(max_tokens=9, keep_hidden=True)
    groups = NativeSampler(policy).generate(runs.prompts(3), 2, settings, range(6))
    kept = sum(r.hidden.nbytes for g in groups for r in g.responses)
    assert 2 * kept == hidden.hidden_state_bytes(6, 9, width, policy.dtype)
    assert hidden.hidden_state_bytes(4, 10, 32) == 2 * 4 * 10 * 32 * 4


@pytest.mark.parametrize(("free", "keep"), [(10**12, True), (10**4, False)])
def test_they_are_kept_where_they_fit(free: int, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "free_memory", lambda device: free)
    plan = online().hidden_plan(models())
    assert (plan.keep, plan.free) == (keep, free)
    assert plan.bytes == hidden.hidden_state_bytes(10, 6, tiny.policy().module.config.hidden_size, "float64")
    assert "MiB" in str(plan)
    source = online()
    for response in (r for g in source(models(), 0).groups for r in g.responses):
        assert (response.hidden is not None) == keep
    assert source.keep_hidden is keep


def test_a_sampler_without_them_keeps_none() -> None:
    plan = replace(online(), sampler=ScriptedSampler(lambda *_: [])).hidden_plan(models())
    assert not plan.keep
    assert "the sampler cannot keep them" in str(plan)


def test_the_choice_is_made_once_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that grows scarce during a run, or between its parts, changes nothing."""
    monkeypatch.setattr(source_module, "free_memory", lambda device: 10**12)
    source = online()
    runs.run(ppo(source), models(), tmp_path, steps=2)
    monkeypatch.setattr(source_module, "free_memory", lambda device: 1)
    assert all(r.hidden is not None for g in source(models(), 5).groups for r in g.responses)
    resumed = online()
    runs.run(ppo(resumed), models(), tmp_path, steps=2)
    assert resumed.keep_hidden is True
    assert online().hidden_plan(models()).keep is False


def test_with_and_without_differ_by_rounding() -> None:
    ended = []
    for keep in (True, False):
        given = models()
        runs.run(ppo(online(keep_hidden=keep)), given, None, steps=3)
        ended.append({n: tiny.parameters(given[n]) for n in ("policy", "value")})
    tiny.assert_same(ended[0], ended[1], 1e-10)
    assert not all(torch.equal(p, tiny.parameters(tiny.policy())[n]) for n, p in ended[0]["policy"].items())
