"""`VllmSampler` keeps every sampler's contract, pushes weights in the right order, and never hangs or hides a fault."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.errors import CompositionError, ConfigError
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import NativeSampler, Sampler, SampleSettings, response_seeds
from tiltyard.sampling.background import Background
from tiltyard.sampling.vllm import EngineError, EngineSettings, Limits, StaleWeights, VllmSampler, disk_engine
from tiltyard.sampling.vllm.launch import start
from tiltyard.sampling.vllm.sampler import engine_dtype
from tiltyard.types import Group

from . import stubs
from .contract import CONTRACT, Case
from .engine import Engine, serving

FAMILY, DTYPE = "llama", "float64"


@pytest.fixture
def engine() -> Iterator[tuple[Engine, str]]:
    made = Engine(stubs.model(FAMILY, DTYPE))
    with serving(made) as url:
        yield made, url


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of these tests have no tokenizer that could be saved."""

    def save(model: LanguageModel, folder: Path, **_: object) -> None:
        save_file(dict(model.module.state_dict()), folder / "model.safetensors")

    monkeypatch.setattr("tiltyard.sampling.vllm.push.save_model", save)


def moved(model: LanguageModel, seed: int = 1) -> LanguageModel:
    with torch.no_grad():
        for p in model.module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype))
    return model


def sampler_at(url: str, work: Path, **settings: object) -> VllmSampler:
    return VllmSampler(work, urls=[url], bound=1e-6, **settings)  # type: ignore[arg-type]


def test_weights_are_pushed_as_wide_as_the_engine(
    engine: tuple[Engine, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrower ones lose updates below their spacing; unknown engines get the width of the model's files."""
    _, url = engine
    widths: list[str] = []

    def save(model: LanguageModel, folder: Path, *, dtype: str) -> None:
        widths.append(dtype)
        save_file(dict(model.module.state_dict()), folder / "model.safetensors")

    monkeypatch.setattr("tiltyard.sampling.vllm.push.save_model", save)
    for dtype in ("auto", "float32", "bfloat16"):
        sampler = sampler_at(url, tmp_path / dtype, dtype=dtype)
        sampler.sync(stubs.model(FAMILY, DTYPE), 0)
        sampler.close()
    assert widths == ["source", "float32", "bfloat16"]
    model = stubs.model(FAMILY, "float32")
    assert engine_dtype(model) == "float32"
    model.origin = replace(model.origin, width=torch.bfloat16)
    assert engine_dtype(model) == "bfloat16"
    assert engine_dtype(stubs.model(FAMILY, DTYPE)) == "float32"  # vLLM has no float64


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_contract(promise: Callable[[Case], None], engine: tuple[Engine, str], tmp_path: Path) -> None:
    def make() -> VllmSampler:
        sampler = sampler_at(engine[1], tmp_path)
        sampler.sync(stubs.model(FAMILY, DTYPE), 0)
        return sampler

    def logp_R(sampler: Sampler, groups: list[Group], temperature: float) -> Tensor:
        assert isinstance(sampler, VllmSampler)
        assert sampler.model is not None
        with torch.no_grad():
            return sampler.model.logp_R(pack(groups), temperature=temperature)[0]

    promise(Case(make, stubs.prompts(5, 2, 9, 4), logp_R, lambda: moved(stubs.model(FAMILY, DTYPE))))


def test_it_samples_what_the_native_sampler_samples(engine: tuple[Engine, str], tmp_path: Path) -> None:
    """With an engine of the same kernels: the same ids, log-probs, texts and ends."""
    model, prompts = moved(stubs.model(FAMILY, DTYPE), 3), stubs.prompts(5, 2, 9)
    seeds, settings = response_seeds(range(3), 2, 5), SampleSettings(temperature=0.9, top_p=0.8, top_k=9, max_tokens=7)
    sampler = sampler_at(engine[1], tmp_path)
    sampler.sync(model, 4)
    assert sampler.gap < 1e-12
    ours, theirs = (s.generate(prompts, 2, settings, seeds) for s in (sampler, NativeSampler(model)))
    for one, other in zip(ours, theirs, strict=True):
        assert one.prompt == other.prompt
        for mine, native in zip(one.responses, other.responses, strict=True):
            assert (mine.ids, mine.text, mine.finish) == (native.ids, native.text, native.finish)
            assert mine.logps == pytest.approx(native.logps, abs=1e-12)


def test_weights_are_pushed_once_a_version_in_order(engine: tuple[Engine, str], tmp_path: Path) -> None:
    made, url = engine
    model, sampler = stubs.model(FAMILY, DTYPE), sampler_at(url, tmp_path)
    sampler.sync(model, 0)
    made.asked.clear()
    sampler.sync(model, 0)
    assert made.asked == []
    sampler.sync(moved(model), 1)
    phases = ["/pause?mode=wait", "/start_weight_update", "/update_weights", "/finish_weight_update"]
    assert made.asked == [*phases, "/reset_prefix_cache", "/resume", "/inference/v1/generate"]
    assert made.version == f"1@{sampler.run}" == sampler.label
    assert [p.name for p in (tmp_path / "weights").iterdir()] == ["version-1"]


def test_in_a_thread_each_call_has_the_weights_of_its_time(engine: tuple[Engine, str], tmp_path: Path) -> None:
    """Though the model has gone on when its turn comes: what is pushed is the thread's own copy."""
    made, url = engine
    model, prompts, thread = stubs.model(FAMILY, DTYPE), stubs.prompts(5, 2), Background(sampler_at(url, tmp_path))
    seeds, settings = response_seeds(range(2), 2, 5), SampleSettings(max_tokens=5)
    waiting, expected = [], []
    for version in range(3):
        waiting.append(thread.submit(model, version, prompts, 2, settings, seeds))
        expected.append(NativeSampler(model).generate(prompts, 2, settings, seeds))
        moved(model, version)
    for future, native in zip(waiting, expected, strict=True):
        assert [r.ids for g in future.result(60) for r in g.responses] == [r.ids for g in native for r in g.responses]
    assert expected[0] != expected[2]
    made.fault = "stale"
    with pytest.raises(StaleWeights):
        thread.submit(model, 3, prompts, 2, settings, seeds).result(60)
    thread.close()


def test_the_probe_catches_weights_that_are_not_used(engine: tuple[Engine, str], tmp_path: Path) -> None:
    made, url = engine
    model, sampler = stubs.model(FAMILY, DTYPE), sampler_at(url, tmp_path)
    sampler.sync(model, 0)
    made.fault = "stale"
    with pytest.raises(StaleWeights, match="other weights than the trainer's"):
        sampler.sync(moved(model), 1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("dead", "does not answer"),
        ("hang", "nothing within 0.5 s"),
        ("500", "500: out of memory"),
        ("garbage", "lacks JSON"),
        ("short", "one log-prob a token"),
    ],
)
def test_faults_are_named_and_end_in_time(engine: tuple[Engine, str], tmp_path: Path, fault: str, message: str) -> None:
    made, url = engine
    sampler = sampler_at(url, tmp_path)
    sampler.sync(stubs.model(FAMILY, DTYPE), 0)
    made.fault = fault
    sampler.clients[0].limits = Limits(generate=0.5 if fault == "hang" else 60.0)
    with pytest.raises(EngineError, match=message):
        sampler.generate(stubs.prompts(5, 2), 2, SampleSettings(max_tokens=4), [1, 2, 3, 4])
    made.fault = ""
    made.released.set()
    sampler.clients[0].limits = Limits()
    assert len(sampler.generate(stubs.prompts(5), 1, SampleSettings(max_tokens=4), [1])) == 1


def test_a_half_written_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="half-written"):
        disk_engine.weight_files(str(tmp_path))
    (tmp_path / disk_engine.DONE).write_text("1")
    assert disk_engine.weight_files(str(tmp_path)) == [str(tmp_path / "model.safetensors")]


def test_what_cannot_be_started_is_named(tmp_path: Path) -> None:
    missing = EngineSettings(tmp_path / "bin/python")
    with pytest.raises(ConfigError, match="no Python of an environment"):
        start(missing, tmp_path, tmp_path / "work")
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 0\n")
    os.chmod(bare, 0o755)
    with pytest.raises(ConfigError, match="no vLLM in this environment"):
        start(EngineSettings(bare), tmp_path, tmp_path / "work")


def test_an_engine_that_ends_at_once_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child stands in another folder: it is given whole paths to its plugin and its model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    child = 'ls "$PYTHONPATH/tiltyard_disk_engine.py" && ls -d "$2" && echo ValueError: no such model; exit 3'
    for name, text in (("python", "echo vllm 0.32.0"), ("vllm", child)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        os.chmod(tmp_path / name, 0o755)
    with pytest.raises(EngineError, match="vLLM ended with 3") as error:
        start(EngineSettings(tmp_path / "python"), Path("model"), Path("child"))
    assert "ValueError: no such model" in str(error.value)
    log = (tmp_path / "child/vllm.log").read_text().splitlines()
    assert log[:2] == [f"{tmp_path}/child/plugin/tiltyard_disk_engine.py", f"{tmp_path}/model"]


def test_bad_use(tmp_path: Path, engine: tuple[Engine, str]) -> None:
    with pytest.raises(CompositionError, match="no model yet"):
        sampler_at("http://127.0.0.1:9", tmp_path).generate(stubs.prompts(3), 1, SampleSettings(), [0])
    with pytest.raises(ConfigError, match="either started here or runs somewhere"):
        VllmSampler(tmp_path)
    sampler = sampler_at(engine[1], tmp_path)
    sampler.sync(stubs.model(FAMILY, DTYPE), 0)
    with pytest.raises(ConfigError, match="no stop strings"):
        sampler.generate(stubs.prompts(3), 1, SampleSettings(stop=("x",)), [0])
