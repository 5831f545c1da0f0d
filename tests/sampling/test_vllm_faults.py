"""What happens to an engine in the middle of a run: a sentence each, nothing lost, and the same command goes on.

The engine is scripted; `tests/real/test_vllm.py` kills a real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training import tiny

from tiltyard.errors import ConfigError, TiltyardError
from tiltyard.methods import grpo, online_dpo, ppo, rloo
from tiltyard.models.adapters import adapt
from tiltyard.models.language import LanguageModel
from tiltyard.models.lora import Lora
from tiltyard.sampling import NativeSampler, Sampler, SampleSettings
from tiltyard.sampling.vllm import EngineError, EngineSettings, Limits, VllmSampler, disk_engine, launch
from tiltyard.sampling.vllm.checks import check_version
from tiltyard.sampling.vllm.push import adapter_rank
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.source import Online
from tiltyard.types import Prompt

from . import stubs
from .engine import Engine, serving

FAMILY, DTYPE, STEPS = "llama", "float64", 3
SAMPLE, PUSH = "/inference/v1/generate", "/update_weights"


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The models of these tests have no tokenizer that could be saved; after `room` models the disk is full."""
    left = {"room": 1000}

    def save(model: LanguageModel, folder: Path, **_: object) -> None:
        left["room"] -= 1
        if left["room"] < 0:
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(dict(model.module.state_dict()), folder / "model.safetensors")

    monkeypatch.setattr("tiltyard.sampling.vllm.push.save_model", save)
    return left


@pytest.fixture
def engines() -> Iterator[list[tuple[Engine, str]]]:
    with ExitStack() as stack:
        made = [Engine(stubs.model(FAMILY, DTYPE)) for _ in range(2)]
        yield [(engine, stack.enter_context(serving(engine))) for engine in made]


def run(folder: Path, *urls: str, limits: Limits | None = None) -> dict[str, torch.Tensor]:
    """The command: three steps with a checkpoint after each; a folder that has some goes on from the last."""
    models = Models(policy=stubs.model(FAMILY, DTYPE))
    rule = FunctionScorer(lambda prompt, response: float(sum(response.ids) % 5))
    sampler = VllmSampler(folder / "vllm", urls=urls, bound=1e-6, limits=limits)
    source = Online(stubs.prompts(5, 2, 9), sampler, rule, 3, 2, SampleSettings(max_tokens=4), seed=1)
    tiny.train(rloo(source, beta=0.0), models, steps=STEPS, save_every=1, folder=folder)
    return tiny.parameters(models["policy"])


def requests(steps: int, more: int) -> int:
    """Number of a request in the step after `steps`: each has a probe and 6 responses, the first a check besides."""
    return 1 + 7 * steps + 1 + more


@pytest.mark.parametrize(
    ("where", "number", "fault", "message"),
    [
        (SAMPLE, requests(2, 2), "dead", "does not answer"),
        (SAMPLE, requests(2, 2), "hang", "nothing within 5 s"),
        (SAMPLE, requests(2, 2), "500", "500: out of memory"),
        (SAMPLE, requests(2, 2), "restart", r"weights than those that were pushed[\s\S]*default[\s\S]*restarted"),
        (PUSH, 3, "cut", "the worker has ended"),
        (PUSH, 3, "stale", "other weights than the trainer"),
    ],
)
def test_the_same_command_goes_on(
    engines: list[tuple[Engine, str]], tmp_path: Path, where: str, number: int, fault: str, message: str
) -> None:
    (made, url), (_, undisturbed) = engines
    whole = run(tmp_path / "whole", undisturbed)
    made.events[where, number] = fault
    with pytest.raises(TiltyardError, match=message):
        run(tmp_path / "run", url, limits=Limits(generate=5.0) if fault == "hang" else None)
    assert not made.events
    rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]  # both steps stand
    made.fault = ""
    made.released.set()
    tiny.assert_same(run(tmp_path / "run", url), whole, 0)


def test_a_full_disk_stops_a_push_before_the_engine_pauses(
    engines: list[tuple[Engine, str]], tmp_path: Path, disk: dict[str, int]
) -> None:
    (made, url), (_, undisturbed) = engines
    whole = run(tmp_path / "whole", undisturbed)
    disk["room"] = 2
    with pytest.raises(TiltyardError, match=r"could not be written[\s\S]*No space left[\s\S]*free some disk space"):
        run(tmp_path / "run", url)
    assert not made.paused
    assert [p.name for p in (tmp_path / "run/vllm/weights").iterdir()] == [".unfinished-2"]
    disk["room"] = 1000
    tiny.assert_same(run(tmp_path / "run", url), whole, 0)
    assert [p.name for p in (tmp_path / "run/vllm/weights").iterdir()] == ["version-2"]


def sampler_at(work: Path, *urls: str) -> VllmSampler:
    return VllmSampler(work, urls=urls, bound=1e-6)


def test_a_second_trainer_is_refused(engines: list[tuple[Engine, str]], tmp_path: Path) -> None:
    (made, url), _ = engines
    model = stubs.model(FAMILY, DTYPE)
    first, second = sampler_at(tmp_path / "one/vllm", url), sampler_at(tmp_path / "two/vllm", url)
    first.sync(model, 0)
    with pytest.raises(EngineError, match=r"another trainer has this engine[\s\S]*one on .*, since"):
        second.sync(model, 0)
    settings = SampleSettings(max_tokens=4)
    assert len(first.generate(stubs.prompts(5), 1, settings, [1])) == 1
    again = sampler_at(tmp_path / "one/vllm", url)  # the same command, after a kill that released nothing
    again.sync(model, 0)
    with pytest.raises(EngineError, match="other weights than those that were pushed"):
        first.generate(stubs.prompts(5), 1, settings, [1])
    again.close()
    second.sync(model, 0)
    assert made.owner["name"] == second.owner


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raw", r"not those of the distribution[\s\S]*top_p=0.6[\s\S]*whole one[\s\S]*processed_logprobs"),
        ("bare", r"refuses[\s\S]*404[\s\S]*VLLM_SERVER_DEV_MODE=1"),
        ("old", r"too old[\s\S]*0\.19\.1[\s\S]*0\.32 or newer"),
        ("nothing", "no vLLM that serves a model"),
    ],
)
def test_what_no_engine_may_be(engines: list[tuple[Engine, str]], tmp_path: Path, fault: str, message: str) -> None:
    (made, url), _ = engines
    made.fault = fault
    with pytest.raises(TiltyardError, match=message):
        sampler_at(tmp_path, url).sync(stubs.model(FAMILY, DTYPE), 0)


def test_another_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    class Config:
        model_type, vocab_size, hidden_size = "llama", 64, 32

    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"model_type": "llama", "vocab_size": 64}}))
    disk_engine.check_shape(str(tmp_path), Config())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 80, "hidden_size": 16}))
    with pytest.raises(ValueError, match="vocab_size 80, here 64; hidden_size 16, here 32"):
        disk_engine.check_shape(str(tmp_path), Config())


def test_versions() -> None:
    for version in ("0.32.0", "0.32.1rc1+cpu", "1.0", "dev"):
        check_version(version, "here")
    with pytest.raises(ConfigError, match="too old"):
        check_version("0.31.2", "here")


def test_a_port_that_was_taken_meanwhile_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = '[ "$6" = 1 ] && echo "OSError: [Errno 98] Address already in use" || echo "ValueError: no model"; exit 1'
    for name, text in (("python", "echo vllm 0.32.0"), ("vllm", child)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    ports = iter((1, 2, 3))
    monkeypatch.setattr(launch, "_free_port", lambda: next(ports))
    with pytest.raises(EngineError, match="ValueError: no model"):
        launch.start(EngineSettings(tmp_path / "python"), tmp_path, tmp_path / "work")
    assert next(ports) == 3


def test_ranks_that_vllm_knows() -> None:
    assert adapter_rank(stubs.model(FAMILY, DTYPE)) == 0
    for rank, known in ((4, 8), (8, 8), (9, 16), (600, 0)):
        assert adapter_rank(adapt(stubs.model(FAMILY, DTYPE), Lora(rank=rank))) == known


# ----------------------------------------------------------------------------------------------------- several engines


def test_several_engines_share_the_prompts(engines: list[tuple[Engine, str]], tmp_path: Path) -> None:
    """Responses are those of one engine; each has its part, and a prompt's responses come from one."""
    (one, first), (two, second) = engines
    whole = run(tmp_path / "whole", first)
    alone = one.counts[SAMPLE]
    one.counts.clear()
    tiny.assert_same(run(tmp_path / "run", first, second), whole, 0)
    assert one.counts[SAMPLE] + two.counts[SAMPLE] == alone + STEPS + 1  # another engine's probes and its check
    assert (one.counts[SAMPLE], two.counts[SAMPLE]) == (1 + STEPS * 5, 1 + STEPS * 3)
    assert one.counts[PUSH] == two.counts[PUSH] == STEPS


def test_a_dead_one_of_several_is_named(engines: list[tuple[Engine, str]], tmp_path: Path) -> None:
    (_, first), (two, second) = engines
    two.events[SAMPLE, 6] = "dead"
    with pytest.raises(EngineError, match=f"{second}[\\s\\S]*does not answer"):
        run(tmp_path, first, second)


def test_an_engine_that_is_named_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        sampler_at(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["grpo", "ppo", "online_dpo"])
def test_a_method_ends_where_the_toolkits_sampler_ends(name: str, tmp_path: Path) -> None:
    """The same seeds, an engine of the same kernels: the same responses, importance weights of 1, the same model."""

    def trained(sampler: Sampler) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        models = Models(policy=tiny.policy(1), ref=tiny.frozen(2), value=tiny.scalar(3))
        rule = FunctionScorer(lambda prompt, response: float(sum(response.ids) % 5))
        prompts = [Prompt(id=str(i), ids=(2, 3 + i, 4)) for i in range(3)]
        source = Online(prompts, sampler, rule, 3, 2, SampleSettings(max_tokens=4), seed=1)
        build = {"grpo": grpo, "ppo": ppo, "online_dpo": online_dpo}[name]
        rows = tiny.train(build(source), models, steps=STEPS, lr=1e-2)
        return tiny.parameters(models["policy"]), rows

    own, _ = trained(NativeSampler())
    with serving(Engine(tiny.policy())) as url:
        theirs, rows = trained(sampler_at(tmp_path, url))
    tiny.assert_same(theirs, own, 1e-7)
    assert all(row["sampler_gap"] < 1e-12 for row in rows)
    weights = [row["mismatch/weight"] for row in rows if "mismatch/weight" in row]
    assert weights == pytest.approx([1.0] * (STEPS if name != "online_dpo" else 0))


@pytest.mark.slow
def test_two_processes_sample_by_two_engines(engines: list[tuple[Engine, str]], tmp_path: Path) -> None:
    """The first process pushes, both sample by both engines; the model is that of one process and one engine."""
    (one, first), (two, second) = engines
    whole = run(tmp_path / "whole", first)
    before = one.counts[PUSH]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["tests.sampling.ranks", str(tmp_path / "two"), first, second]
    paths = os.pathsep.join((str(root / "src"), str(root), str(root / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert one.counts[PUSH] - before == two.counts[PUSH] == STEPS
    for rank in range(2):
        tiny.assert_same(load_file(tmp_path / f"two/rank{rank}.safetensors"), whole, 1e-9)
