"""The backend of a stage: in its plan, in config.json, the same after an interruption, and said where it is another."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tiltyard.distributed import processes
from tiltyard.kernels import backend, library, measure
from tiltyard.kernels.base import Backend
from tiltyard.pipeline import run_stage
from tiltyard.training import fit

needed = pytest.mark.skipif(library.load().handle is None, reason=f"the kernels are not compiled: {library.load().why}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [
        {"text": f"the {name} met a {other} and greeted it"} for name in ["fox", "cat", "dog"] for other in "abcdefgh"
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(data: Path, **more: Any) -> tuple[dict[str, Any], str]:
    out = io.StringIO()
    settings = {"data": str(data), "arch": {"preset": "1m", "vocab": 300, "context": 64}, "max_length": 64, "lr": 1e-3}
    settings |= {"steps": 4, "save_every": 1, "prompts_per_step": 4, "device": "cpu"}
    outcome = run_stage("pretrain", settings, runs_root=data.parent, console=Console(file=out, width=200), **more)
    return outcome["stages"]["pretrain"], out.getvalue()


def config(data: Path) -> dict[str, Any]:
    return json.loads((data.parent / "pretrain/pretrain/config.json").read_text())


def interrupted(data: Path, monkeypatch: pytest.MonkeyPatch, after: int = 2) -> None:
    class Interrupted(Exception):
        pass

    real = fit._Loop._step

    def step(loop: Any, number: int) -> None:
        if number == after:
            raise Interrupted
        real(loop, number)

    with monkeypatch.context() as patch:
        patch.setattr(fit._Loop, "_step", step)
        with pytest.raises(Interrupted):
            run(data)


@pytest.fixture
def kernels_off(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Something to switch them off with; afterwards they are loaded anew."""
    yield monkeypatch
    monkeypatch.undo()
    library.load.cache_clear()


def test_the_plan_prints_it_and_config_keeps_it(data: Path) -> None:
    plan = run(data, dry_run=True)[0]["plan"]
    (line,) = [line for line in plan if line.startswith("backend: ")]
    assert "linear layers by" in line
    stage, text = run(data)
    assert stage["status"] == "run"
    assert "backend: " in text
    kept = config(data)
    assert set(kept["backend"]) == {"ops", "linear", "decoder", "why", "processor", "torch", "threads"}
    assert "backend_changes" not in kept
    assert run(data)[0]["status"] == "skip"


@needed
def test_an_unfinished_stage_on_another_backend_says_so_and_goes_on(
    data: Path, kernels_off: pytest.MonkeyPatch
) -> None:
    interrupted(data, kernels_off)
    assert config(data)["backend"]["ops"] == "cpu_c"
    kernels_off.setenv("TILTYARD_KERNELS", "off")
    library.load.cache_clear()
    stage, text = run(data)
    assert stage["status"] == "resume"
    assert "resumed on another one (ops cpu_c -> torch, decoder native -> fused)" in text
    assert "may differ in the last bits" in text
    kept = config(data)
    assert kept["backend"]["ops"] == "torch"
    assert kept["backend_changes"][0]["changes"] == ["ops cpu_c -> torch", "decoder native -> fused"]
    kernels_off.delenv("TILTYARD_KERNELS")
    library.load.cache_clear()
    assert run(data)[0]["status"] == "skip", "a finished stage is not run again"


@needed
def test_an_unfinished_stage_keeps_the_backend_it_was_started_with(data: Path, kernels_off: pytest.MonkeyPatch) -> None:
    kernels_off.setenv("TILTYARD_KERNELS", "off")
    library.load.cache_clear()
    interrupted(data, kernels_off)
    began = config(data)["backend"]
    kernels_off.delenv("TILTYARD_KERNELS")
    library.load.cache_clear()
    kernels_off.setattr(measure, "_known", {})
    kernels_off.setattr(measure, "onednn_speedup", lambda shapes: 0.1 if began["linear"] == "onednn" else 9.0)
    text = run(data)[1]
    assert "resumed on another one" not in text
    kept = config(data)
    assert [kept["backend"][key] for key in ("ops", "linear", "decoder")] == ["torch", began["linear"], "fused"]
    assert "as this stage was started" in kept["backend"]["why"]
    assert "backend_changes" not in kept


def test_rank_0_decides_for_all_processes(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    """What another process has measured does not count: its models take over rank 0's library."""
    from models import tiny
    from tiltyard.stages.backend import settle
    from tiltyard.stages.base import StageContext

    model = tiny.language("llama")
    other = {"mkl": "onednn", "onednn": "mkl", "blas": "blas"}[model.backend.linear]
    theirs = Backend(model.backend.ops, other, model.backend.decoder, "cc", "measured by rank 0")
    monkeypatch.setattr(processes, "broadcast_object", lambda item: theirs)
    monkeypatch.setattr(processes, "is_main", lambda: False)
    with backend.preferred(None):
        settle(StageContext("run", "stage", data.parent, data.parent), model)
        assert model.backend.linear == other
        assert tiny.language("llama").backend.linear == other
