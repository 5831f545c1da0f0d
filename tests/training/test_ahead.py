"""Sampling ahead: what a step learns from depends on the numbers of the steps alone, and is never too old."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sampling.scripted import ScriptedSampler
from tests.scoring.stubs import Scripted

from table import ROWS
from tiltyard import stopping
from tiltyard.config import parse_settings
from tiltyard.errors import ConfigError, DataError
from tiltyard.methods import a2c, dpg, f_dpg, gdc, grpo, kl_dpg, online_dpo, ppo, reinforce, reinforce_pp, rloo, vbon
from tiltyard.models.adapters import adapt
from tiltyard.models.lora import Lora
from tiltyard.sampling import NativeSampler, SampleSettings, sample
from tiltyard.sampling.background import Background, twin_of
from tiltyard.scoring import FunctionScorer
from tiltyard.stages.base import get_stage
from tiltyard.training.ahead import Ahead, ahead
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.prepare import Correction
from tiltyard.training.replay import replayed
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt, Response

from . import tiny

STEPS, BATCH, N = 7, 3, 2
PROMPTS = [Prompt(id=str(i), ids=(2 + i % 7, 3)) for i in range(10)]
LAW = SampleSettings(max_tokens=5)
SAMPLED = [name for name, row in ROWS.items() if row.live is not None and type(row.live()) is Online]


def score(prompt: Prompt, response: Response) -> float:
    return float(sum(response.ids) % 5)


def source(k: int, **changes: Any) -> Ahead:
    made: dict[str, Any] = {"sampler": NativeSampler(), "scorer": FunctionScorer(score)} | changes
    sampler, scorer = made.pop("sampler"), made.pop("scorer")
    return Ahead(PROMPTS, sampler, scorer, BATCH, N, LAW, seed=2, max_staleness=k, **made)


def models() -> Models:
    return Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar(3))


METHODS: dict[str, Callable[[Online], Algorithm]] = {
    "ppo": lambda given: ppo(given, ppo_epochs=2, minibatches=2),
    "grpo": grpo,
    "dynamic": lambda given: grpo(given, dynamic_sampling=3),
    "online_dpo": online_dpo,
    "rloo": rloo,
}
WEIGHTED: dict[str, Any] = {"a2c": a2c, "reinforce": reinforce, "rloo": rloo}
OWN_RESPONSES: dict[str, Any] = {"dpg": dpg, "f_dpg": f_dpg, "gdc": gdc, "kl_dpg": kl_dpg, "vbon": vbon}


def trained(algorithm: Algorithm, given: Models | None = None, *, until: int = 0, **changes: Any) -> tuple[Any, Any]:
    """(every metric of every step, all trained parameters; None where it was cut off)."""
    held, record = given or models(), tiny.CutAt(until)
    usual: dict[str, Any] = {"steps": STEPS, "lr": 1e-2, "sinks": [record]}
    try:
        tiny.fit(algorithm, held, **(usual | changes))
    except tiny.Cut:
        return record.rows, None
    return record.rows, {name: tiny.parameters(held[name]) for name in algorithm.trains}


# ------------------------------------------------------------------------------------------------ what is learnt from


def told(model: Any, prompts: Any, n: int, sampling: Any, seeds: Any) -> list[Group]:
    """Responses that say by which weights and from which seeds they were made."""
    weight = float(next(model.module.parameters()).detach().sum())
    return [
        Group(
            p,
            tuple(
                Response(ids=(2 + s % 13, tiny.EOS), logps=(-1.0, weight), finish="stop")
                for s in seeds[i * n : i * n + n]
            ),
        )
        for i, p in enumerate(prompts)
    ]


def drawn(k: int, wait: Callable[[int], float] = lambda step: 0.0, steps: int = STEPS, **changes: Any) -> list[Any]:
    """(prompts, responses, version) of every step, each of which changes the weights; `wait`: a call's seconds."""
    calls = iter(range(1000))

    def slow(*request: Any) -> list[Group]:
        time.sleep(wait(next(calls)))
        return told(*request)

    held, found = models(), []
    made = source(k, sampler=ScriptedSampler(slow), steps=steps, **changes)
    for step in range(steps):
        draw = made(held, step)
        rows = [(g.prompt.id, [(r.ids, r.logps, r.policy_version) for r in g.responses]) for g in draw.groups]
        found.append((rows, {name: value for name, value in draw.metrics.items() if not name.startswith("time/")}))
        with torch.no_grad():
            next(held["policy"].module.parameters()).add_(1.0)
        held.version += 1
    made.sampler.close()
    return found


def weight_of(version: int) -> float:
    held = models()
    with torch.no_grad():
        for _ in range(version):
            next(held["policy"].module.parameters()).add_(1.0)
    return float(next(held["policy"].module.parameters()).sum())


@pytest.mark.parametrize("k", [0, 1, 2, 4])
def test_each_step_has_the_version_that_its_number_says(k: int) -> None:
    """Weights and versions agree, prompts and seeds are those of the synchronous run, metrics tell the age."""
    now = drawn(0)
    for step, (rows, metrics) in enumerate(drawn(k)):
        version = max(0, step - k)
        assert [row[0] for row in rows] == [row[0] for row in now[step][0]]
        for (_, responses), (_, fresh) in zip(rows, now[step][0], strict=True):
            assert [r[0] for r in responses] == [r[0] for r in fresh]
            assert {r[2] for r in responses} == {version}
            assert {r[1][1] for r in responses} == {weight_of(version)}
        age = step - version
        assert metrics["staleness"] == (age * BATCH * N, BATCH * N)
        assert metrics["staleness_max"] == (age, 1.0)
        assert metrics["queue"][0] == (0 if step == 0 else min(k, STEPS - step))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(k=st.integers(0, 3), waits=st.lists(st.sampled_from([0.0, 0.01]), min_size=1, max_size=5))
def test_time_changes_nothing(k: int, waits: list[float]) -> None:
    assert drawn(k, lambda call: waits[call % len(waits)], 5) == drawn(k, steps=5)


def test_what_would_be_too_old_is_sampled_anew() -> None:
    """A run whose policy has gone further than the step's number, as after a change of the setting."""
    made, held = source(2, sampler=ScriptedSampler(told)), models()
    made(held, 0)
    held.version = 5
    draw = made(held, 1)
    assert {r.policy_version for g in draw.groups for r in g.responses} == {5}
    assert draw.metrics["staleness"][0] == 0
    made.sampler.close()


def test_nothing_is_sampled_for_steps_that_do_not_come() -> None:
    calls = []

    def counted(*request: Any) -> list[Group]:
        calls.append(request)
        return told(*request)

    made = source(3, sampler=ScriptedSampler(counted), steps=4)
    for step in range(4):
        made(models(), step)
    made.sampler.close()
    assert len(calls) == 4


# -------------------------------------------------------------------------------------------------------- bit for bit


@pytest.mark.parametrize("name", SAMPLED)
def test_staleness_0_is_the_synchronous_run(name: str) -> None:
    """Through the thread and its own weights: every metric, and every parameter, of each method that samples."""
    row = ROWS[name]
    usual = {"steps": 3, "lr": 1e-3}
    live = row.live() if row.live else None
    assert isinstance(live, Online)
    rows, found = trained(row.build(ahead(live, 0)), row.models(0), **usual)
    synchronous, whole = trained(row.build(row.live()), row.models(0), **usual)  # type: ignore[misc]
    extra = {"queue", "staleness", "staleness_max"}
    assert [{k: v for k, v in one.items() if k not in extra} for one in rows] == synchronous
    assert all(one["staleness"] == 0 for one in rows)
    tiny.assert_same(found, whole, 0)


def test_another_age_is_another_run() -> None:
    runs = [trained(grpo(source(k)))[1] for k in (0, 1, 2)]
    assert not any(same(runs[i], runs[j]) for i, j in ((0, 1), (1, 2)))


def same(one: Any, two: Any) -> bool:
    return all(torch.equal(one[role][name], two[role][name]) for role in one for name in one[role])


def written(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return found


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_resumed_is_uninterrupted(name: str, k: int, tmp_path: Path) -> None:
    """The batches that were sampled ahead, by weights that are gone, are in the checkpoint."""
    usual: dict[str, Any] = {"save_every": 2, "keep_groups": True}
    rows, whole = trained(METHODS[name](source(k, steps=STEPS)), folder=tmp_path / "whole", **usual)
    for cut in (3, 5):
        trained(METHODS[name](source(k, steps=STEPS)), folder=tmp_path / "cut", until=cut, **usual)
    _, found = trained(METHODS[name](source(k, steps=STEPS)), folder=tmp_path / "cut", **usual)
    tiny.assert_same(found, whole, 0)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")
    assert {row["staleness_max"] for row in rows} == set(range(k + 1))
    versions = {r["policy_version"] for row in written(tmp_path / "cut")["groups.jsonl"] for r in row["responses"]}
    assert versions <= set(range(STEPS))


def test_a_replay_is_the_run(tmp_path: Path) -> None:
    rows, whole = trained(ppo(source(2)), folder=tmp_path, keep_groups=True)
    again, found = trained(ppo(replayed(source(2), tmp_path / "groups.jsonl")))
    tiny.assert_same(found, whole, 0)
    own = {"queue", "sampled", "staleness", "staleness_max"}
    assert again == [{k: v for k, v in row.items() if k not in own} for row in rows]


# ------------------------------------------------------------------------------------------------------ its own weights


@pytest.mark.parametrize("lora", [False, True])
def test_a_twin_keeps_the_weights_that_it_has(lora: bool) -> None:
    model = tiny.policy()
    if lora:
        adapt(model, Lora(rank=2))
    twin, prompts = twin_of(model), PROMPTS[:2]
    before = sample(model, prompts, 2, LAW)
    assert sample(twin, prompts, 2, LAW) == before
    frozen = {p.data_ptr() for p in model.module.parameters() if not p.requires_grad}
    own = {p.data_ptr() for p in twin.module.parameters() if p.requires_grad}
    assert bool(frozen) == lora
    assert frozen <= {p.data_ptr() for p in twin.module.parameters()}
    assert not own & {p.data_ptr() for p in model.module.parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    assert sample(model, prompts, 2, LAW) != before
    assert sample(twin, prompts, 2, LAW) == before


def test_stale_hidden_states_are_not_kept() -> None:
    assert not Background(NativeSampler()).capabilities.hidden
    assert Background(NativeSampler(), stale=False).capabilities.hidden


def test_threads_are_shared_and_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    seen = []

    class Seen(NativeSampler):
        def generate(self, *request: Any) -> list[Group]:
            seen.append((torch.get_num_threads(), threading.current_thread().name))
            return super().generate(*request)

    try:
        made = source(1, sampler=Seen())
        made(models(), 0)
        assert torch.get_num_threads() == 2
        assert set(seen) == {(2, "sampler")}
        made.sampler.close()
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------- the end


def test_an_error_of_the_thread_ends_the_run_and_the_checkpoint_stands(tmp_path: Path) -> None:
    """The sampler fails at the batch of the fifth step: the run learns what it has, then ends with that sentence."""
    calls = []

    def failing(*request: Any) -> list[Group]:
        calls.append(request)
        if len(calls) == 5:
            raise DataError("the engine is gone", fix="start it again")
        return told(*request)

    usual: dict[str, Any] = {"folder": tmp_path, "save_every": 2}
    algorithm = grpo(source(2, sampler=ScriptedSampler(failing)))
    with pytest.raises(DataError, match="the engine is gone"):
        trained(algorithm, **usual)
    assert (tmp_path / "checkpoints" / "step-00000004").is_dir()
    rows, found = trained(grpo(source(2, sampler=ScriptedSampler(told))), **usual)
    assert found is not None
    assert [row["step"] for row in written(tmp_path)["metrics.jsonl"]] == list(range(1, STEPS + 1))
    assert rows[0]["staleness"] == 0  # what could not be sampled was asked for again


def test_an_error_of_the_trainer_breaks_the_sampler_off() -> None:
    """The call under way is not waited for to its end."""
    started = threading.Event()

    class Long(NativeSampler):
        def generate(self, prompts: Any, n: int, sampling: Any, seeds: Any) -> list[Group]:
            if self.model is not None and len(began) > 0:
                started.set()
                while True:  # a batch that never ends, one after another
                    super().generate(prompts, n, sampling, seeds)
            began.append(1)
            return super().generate(prompts, n, sampling, seeds)

    began: list[int] = []

    def judged(groups: list[Group]) -> list[Group]:
        started.wait(10)
        raise DataError("the judge is gone")

    begin = time.monotonic()
    with pytest.raises(DataError, match="judge is gone"):
        trained(grpo(source(1, sampler=Long(), scorer=Scripted(judged))))
    assert time.monotonic() - begin < 8
    assert not [t for t in threading.enumerate() if t.name == "sampler"]


def test_a_signal_while_it_waits_stops_after_the_step(tmp_path: Path) -> None:
    """With a checkpoint that holds what was sampled ahead; the same command goes on as if nothing had been."""
    usual: dict[str, Any] = {"save_every": 0, "keep_groups": True}
    calls = []

    def signalling(*request: Any) -> list[Group]:
        calls.append(request)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return told(*request)

    _, whole = trained(grpo(source(1, sampler=ScriptedSampler(told))), folder=tmp_path / "whole", **usual)
    with stopping.installed(say=False), pytest.raises(stopping.Stopped) as stopped:
        trained(grpo(source(1, sampler=ScriptedSampler(signalling))), folder=tmp_path / "cut", **usual)
    assert stopped.value.status == 130
    _, found = trained(grpo(source(1, sampler=ScriptedSampler(told))), folder=tmp_path / "cut", **usual)
    tiny.assert_same(found, whole, 0)


def test_a_second_signal_does_not_wait_for_the_sampler() -> None:
    hanging = threading.Event()

    class Hanging(ScriptedSampler):
        def close(self) -> None:
            hanging.set()

    def hang(*request: Any) -> list[Group]:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            while not stopping.requested():  # a busy machine handles a signal later than it is sent
                time.sleep(0.01)
            time.sleep(stopping.SAME + 0.1)
        hanging.wait(60)
        return told(*request)

    begin = time.monotonic()
    with stopping.installed(say=False), pytest.raises(stopping.Stopped):
        trained(grpo(source(1, sampler=Hanging(hang))))
    assert time.monotonic() - begin < 10


# ------------------------------------------------------------------------------------------------ which methods take it


@pytest.mark.parametrize("name", OWN_RESPONSES)
def test_methods_of_the_policys_own_responses_refuse_it(name: str) -> None:
    OWN_RESPONSES[name](source(0))
    with pytest.raises(ConfigError, match=rf"{name}\.max_staleness: .* would be older"):
        OWN_RESPONSES[name](source(1))


@pytest.mark.parametrize("name", [*WEIGHTED, "ppo", "grpo", "reinforce_pp"])
def test_policy_gradients_weigh_what_is_stale(name: str) -> None:
    """Nothing while nothing is; then each token by the ratio of the policy now and then, at most by the cap."""
    build = (METHODS | WEIGHTED | {"reinforce_pp": reinforce_pp})[name]
    rows, _ = trained(build(source(2)), lr=5e-2)
    assert all("mismatch/weight" in row for row in rows)
    assert rows[0]["mismatch/weight"] == pytest.approx(1, abs=1e-9)
    assert rows[0]["sampler_gap"] < 1e-9 < 1e-4 < rows[-1]["sampler_gap"]
    assert "mismatch/weight" not in trained(build(source(0)), steps=1)[0][0]


def test_without_weights_only_ratios_see_the_age() -> None:
    plain = source(1, correction=Correction("none"))
    for name, build in WEIGHTED.items():
        with pytest.raises(ConfigError, match=name):
            build(plain)
    rows, _ = trained(ppo(plain, ppo_epochs=1, clip=1e9), lr=5e-2)
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-9)
    assert abs(rows[-1]["ratio"] - 1) > 1e-4


def test_settings_of_offline_methods_and_rounds_do_not_know_it() -> None:
    for name in ("dpo", "sft", "spin", "iterative_dpo", "rest"):
        with pytest.raises(ConfigError, match="max_staleness"):
            parse_settings(get_stage(name).settings, {"max_staleness": 1}, where=name)


def test_a_bound_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_staleness"):
        source(-1)
    assert replace(source(2), tries=2).max_staleness == 2
