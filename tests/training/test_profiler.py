"""The clock: parts add up to the whole, and every mark in the loop stands around the work that it names."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sampling.scripted import ScriptedSampler

from tiltyard import profiler
from tiltyard.methods import dpo, ppo, rft, sft
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings, sample
from tiltyard.scoring import Cost, Scale
from tiltyard.training.algorithm import Models
from tiltyard.training.fit import fit
from tiltyard.training.optimizer import make_optimizer
from tiltyard.training.rounds import Rounds
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt

from . import tiny


@dataclass
class Time:
    """A gauge that stands still unless somebody says that something took long."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += seconds


# ----------------------------------------------------------------------------------------------------------- the clock


def test_a_part_counts_for_itself_alone() -> None:
    at = Time()
    with profiler.Profiler({"seconds": at}) as watch, profiler.record(profiler.STEP):
        at.takes(1)
        with profiler.record("forward"):
            at.takes(10)
            with profiler.record("score/inner"):
                at.takes(100)
            at.takes(10)
        with profiler.record("forward"):
            at.takes(1000)
        at.takes(2)
    (step,) = watch.steps
    assert {name: part["seconds"] for name, part in step.parts.items()} == {
        "overhead": 3,
        "forward": 1020,
        "score/inner": 100,
    }
    assert step.total() == at.now


def test_several_gauges_and_counts() -> None:
    one, two = Time(), Time(5.0)
    with profiler.Profiler({"seconds": one, "flops": two}) as watch:
        for size in (2, 3):
            with profiler.record(profiler.STEP):
                two.takes(size)
                profiler.add_count("tokens", size)
                profiler.add_count("tokens", size)
    assert [step.total("flops") for step in watch.steps] == [2, 3]
    assert [step.total() for step in watch.steps] == [0, 0]
    assert [step.counts for step in watch.steps] == [{"tokens": 4.0}, {"tokens": 6.0}]


def test_nothing_is_counted_outside_of_a_step_or_without_a_clock() -> None:
    at = Time()
    with profiler.record(profiler.STEP), profiler.record("forward"):
        profiler.add_count("tokens", 1)
    with profiler.Profiler({"seconds": at}) as watch:
        with profiler.record("forward"):
            at.takes(1)
            profiler.add_count("tokens", 1)
        with profiler.record(profiler.STEP):
            at.takes(2)
    with profiler.record(profiler.STEP):
        at.takes(4)
    assert [step.parts for step in watch.steps] == [{"overhead": {"seconds": 2.0}}]
    assert [step.counts for step in watch.steps] == [{}]


def test_an_error_ends_its_spans() -> None:
    watch = profiler.Profiler({"seconds": Time()})
    with pytest.raises(KeyError), watch, profiler.record(profiler.STEP), profiler.record("forward"):
        raise KeyError
    with watch, profiler.record(profiler.STEP):
        pass
    assert [list(step.parts) for step in watch.steps] == [["overhead", "forward"], ["overhead"]]


def test_a_gpu_is_waited_for_before_the_gauges_are_read() -> None:
    at = Time()
    with profiler.Profiler({"seconds": at}, ready=lambda: at.takes(1)) as watch, profiler.record(profiler.STEP):
        pass
    assert watch.steps[0].total() == 1  # of the two waits one lies within the step


def test_peak_memory_is_the_process_s_own() -> None:
    """It rises with what is held, and a child of a process that held much says what it held itself."""
    held = torch.ones(int(profiler.peak_memory_mib() * 2**20) // 4 + (64 << 18))
    assert profiler.peak_memory_mib() >= held.nbytes / 2**20
    code = "from tiltyard.profiler import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 < float(child.stdout) < 150


# ------------------------------------------------------------------------------------------------------------ the loop


class Slow:
    """A callable that takes its time before it does its work."""

    def __init__(self, work: Any, at: Time, seconds: float):
        self.work, self.at, self.seconds = work, at, seconds

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.at.takes(self.seconds)
        return self.work(*args, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)


def native(model: LanguageModel, prompts: Any, n: int, settings: SampleSettings, seeds: Any) -> list[Group]:
    return sample(model, prompts, n, settings, seeds=seeds)


class ByLength:
    """Scores by length, which take 10."""

    name, scale = "length", Scale(comparable=True, moving=False)

    def __init__(self, at: Time):
        self.at = at

    def score(self, groups: Sequence[Group]) -> list[Group]:
        self.at.takes(10)
        return [replace(g, scores=tuple(float(len(r.ids)) for r in g.responses)) for g in groups]

    def take_cost(self) -> Cost:
        return Cost()


def online(at: Time) -> Online:
    prompts = [Prompt(id=str(i), ids=g.prompt.ids) for i, g in enumerate(tiny.demonstrations(4))]
    law = SampleSettings(max_tokens=6)
    return Online(prompts, ScriptedSampler(Slow(native, at, 1)), ByLength(at), 4, settings=law)


def timed(algorithm: Any, models: Models, at: Time, **settings: Any) -> list[profiler.Step]:
    """Runs the loop where forward takes 100, backward 1,000 and the optimiser 10,000; one microbatch an update."""
    algorithm = replace(algorithm, loss=Slow(algorithm.loss, at, 100))
    output = {key: settings.pop(key) for key in tiny.OUTPUT if key in settings}
    run = tiny.run(steps=2, lr=1e-3, **settings)
    optimizer = make_optimizer(models, algorithm.trains, run)
    optimizer.register_step_pre_hook(lambda *_: at.takes(10_000))
    first = models.get(algorithm.trains[0]).parameters()[0]
    first.register_hook(lambda grad: at.takes(1_000))  # type: ignore[arg-type]
    with profiler.Profiler({"seconds": at}) as watch:
        fit(algorithm, models, run, optimizer, **output)
    return watch.steps


def seconds(step: profiler.Step) -> dict[str, float]:
    return {name: part["seconds"] for name, part in step.parts.items() if part["seconds"]}


def test_every_mark_of_ppo_stands_where_the_work_is() -> None:
    """One step: sampling and scoring once, each prepare step once, then two passes."""
    at = Time()
    models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar())
    algorithm = ppo(online(at), beta=0.05, ppo_epochs=2)
    slow = tuple(Slow(p, at, 100_000 * 2**i) for i, p in enumerate(algorithm.prepare))
    names = [f"score/{type(p).__name__}" for p in slow]
    assert set(names) == {"score/Slow"}
    steps = timed(replace(algorithm, prepare=slow), models, at)
    prepared = 100_000 * (2 ** len(slow) - 1)
    wanted = {
        "sample": 1,
        "score/ByLength": 10,
        "score/Slow": prepared,
        "forward": 200,
        "backward": 2_000,
        "optimiser": 20_000,
    }
    assert [seconds(step) for step in steps] == [wanted, wanted]
    assert {"overhead", "overhead/data"} <= set(steps[0].parts)


def test_prepare_steps_are_named() -> None:
    at = Time()
    models = Models(policy=tiny.policy(), ref=tiny.frozen())
    pairs = [g for g in tiny.rankings(30) if len(g.responses) == 2]
    steps = timed(dpo(tiny.Given([pairs])), models, at)
    assert {"score/PairLabels", "score/RefLogp"} <= set(steps[0].parts)


def test_rounds_are_on_the_clock_too() -> None:
    at = Time()
    prompts = online(at)
    law = SampleSettings(max_tokens=6)
    rounds = Rounds(prompts.prompts, prompts.sampler, prompts.scorer, 4, 2, 1, 2, law)
    steps = timed(rft(rounds), Models(policy=tiny.policy(), ref=tiny.frozen()), at)
    assert [seconds(step) for step in steps] == [
        {"sample": 1, "score/ByLength": 10, "forward": 100, "backward": 1_000, "optimiser": 10_000}
    ] * 2


def test_saving_and_measuring_are_parts_of_their_own(tmp_path: Path) -> None:
    at = Time()

    def evaluate(models: Models, step: int) -> dict[str, float]:
        at.takes(7)
        return {}

    algorithm = sft(tiny.Given([tiny.demonstrations(4)]))
    steps = timed(algorithm, Models(policy=tiny.policy()), at, folder=tmp_path, evaluate=evaluate)
    assert ["evaluate" in seconds(step) for step in steps] == [False, True]
    assert ["save" in step.parts for step in steps] == [False, True]


def test_micro_batches_are_all_counted() -> None:
    """Tokens are those of the packed trees, however they were cut."""
    at = Time()
    groups = tiny.demonstrations(6)
    algorithm = sft(tiny.Given([groups]))
    steps = timed(algorithm, Models(policy=tiny.policy()), at, tokens_per_microbatch=1)
    assert steps[0].counts == {"tokens": float(sum(g.tokens for g in groups))}
    assert seconds(steps[0]) == {"forward": 600, "backward": 6_000, "optimiser": 10_000}


def test_the_parts_add_up_to_the_wall_clock_and_change_nothing() -> None:
    """Real time: no step has less than the loop itself reports, and all together no more than the run took."""

    def run(watch: profiler.Profiler | None) -> tuple[Any, list[float], float]:
        models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar())
        algorithm, times = ppo(online(Time()), beta=0.05), []

        class Times(tiny.Record):
            def log(self, step: int, metrics: dict[str, float]) -> None:
                times.append(metrics["time/seconds"])

        began = time.perf_counter()
        if watch is None:
            tiny.fit(algorithm, models, steps=3, sinks=[Times()])
        else:
            with watch:
                tiny.fit(algorithm, models, steps=3, sinks=[Times()])
        return tiny.parameters(models.policy), times, time.perf_counter() - began

    plain, _, _ = run(None)
    watch = profiler.Profiler()
    watched, times, whole = run(watch)
    tiny.assert_same(plain, watched, 0)
    totals = [step.total() for step in watch.steps]
    assert len(totals) == 3
    assert all(total >= reported for total, reported in zip(totals, times, strict=True))
    assert sum(totals) <= whole
    sampled = [step.counts["sampled"] for step in watch.steps]
    assert all(4 <= n <= 24 for n in sampled)
