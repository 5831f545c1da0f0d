"""Stages at a time: what workers do beside each other is what one process does in a row."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from tiltyard.cli import main
from tiltyard.errors import ConfigError
from tiltyard.pipeline import run_recipe
from tiltyard.pipeline.recipe import Step
from tiltyard.pipeline.schedule import chain_lengths, threads_for
from tiltyard.records import Settings
from tiltyard.stages.base import Stage

from . import tiny

ENDS = ("dpo/model/model.safetensors", "ipo/model/model.safetensors", "again/model/model.safetensors")


def recipe(folder: Path, start: Path, steps: int = 6, *, evaluate: bool = True) -> Path:
    """Two methods that do not need each other, one that needs the first, and an evaluation of all."""
    pairs = f"{{model: {start}/sft, data: {start}/label/rankings.groups.jsonl, pairs: best_worst, steps: {steps}}}"
    path = folder / "fan.yaml"
    path.write_text(f"""name: fan
defaults: {{max_length: 64, device: cpu, prompts_per_step: 4, lr: 1e-3, save_every: 2}}
stages:
  - dpo: {pairs}
  - ipo: {pairs}
  - again: {{method: dpo, model: dpo, data: {start}/label/rankings.groups.jsonl, pairs: best_worst, steps: 3}}
""")
    if evaluate:
        prompts = f"prompts: {start}/world/held_out.jsonl, limit: 6, max_tokens: 8, max_prompt: 48"
        path.write_text(f"{path.read_text()}  - evaluate: {{models: [dpo, ipo, again], {prompts}}}\n")
    return path


def command(path: Path, root: Path, *words: str) -> subprocess.Popen[str]:
    go = [sys.executable, "-m", "tiltyard.cli", "run", str(path), "--runs", str(root), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # a process in the background inherits that Ctrl-C is ignored, and so would its children
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(
        go,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=listen,  # noqa: PLW1509 - no threads
    )


def done(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, out + err
    return out, err


def learnt(root: Path) -> dict[str, object]:
    run = root / "fan"
    found: dict[str, object] = {name: (run / name).read_bytes() for name in ENDS}
    for stage in ("dpo", "ipo", "again"):
        lines = tiny.rows(run / stage / "metrics.jsonl")
        found[stage] = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
    found["answers"] = tiny.rows(run / "evaluate" / "answers.jsonl")
    return found


@pytest.fixture(scope="module")
def alone(start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("alone")
    run_recipe(recipe(folder, start), runs_root=folder, console=Console(file=io.StringIO()))
    return learnt(folder)


@pytest.mark.slow
def test_together_is_one_after_the_other(
    start: Path, alone: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = done(command(recipe(tmp_path, start), tmp_path, "--jobs", "2"))
    assert learnt(tmp_path) == alone
    lines = out.splitlines()
    assert any(line.startswith("dpo | dpo: runs, not run yet") for line in lines)
    began = {name: next(i for i, line in enumerate(lines) if line.startswith(f"{name} | ")) for name in ("dpo", "ipo")}
    ended = next(i for i, line in enumerate(lines) if line.startswith("dpo | dpo: done"))
    assert began["ipo"] < ended  # they did run at the same time
    assert main(["run", str(recipe(tmp_path, start)), "--runs", str(tmp_path), "--jobs", "2", "--json"]) == 0
    assert {facts["status"] for facts in json.loads(capsys.readouterr().out)["stages"].values()} == {"skip"}


@pytest.mark.slow
def test_a_killed_run_takes_its_workers_along_and_goes_on(
    start: Path, alone: dict[str, object], tmp_path: Path
) -> None:
    process = command(recipe(tmp_path, start), tmp_path, "--jobs", "2")
    for _ in range(1200):
        if all(list((tmp_path / "fan" / name / "checkpoints").glob("*")) for name in ("dpo", "ipo")):
            break
        time.sleep(0.05)
    process.kill()
    process.communicate()
    for _ in range(100):  # the lock is the workers' too: when it can be had, they are gone
        again = command(recipe(tmp_path, start), tmp_path, "--jobs", "2")
        out, err = again.communicate(timeout=240)
        if again.returncode == 0:
            break
        assert "is running this run" in err
    assert "resumes" in out
    assert learnt(tmp_path) == alone


@pytest.mark.slow
def test_one_fails_the_other_ends_and_none_begins(start: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, start, evaluate=False)
    path.write_text(path.read_text().replace("pairs: best_worst", "pairs: given", 1))  # rankings of 3 are no pairs
    _, err = done(command(path, tmp_path, "--jobs", "2"), status=2)
    assert "error: " in err
    assert "to do:" in err
    assert (tmp_path / "fan" / "ipo" / "done.json").exists()
    assert (tmp_path / "fan" / "dpo" / "error.txt").exists()
    assert not (tmp_path / "fan" / "again").exists()
    out, _ = done(command(recipe(tmp_path, start, evaluate=False), tmp_path, "--jobs", "2"))
    assert "ipo: done" in out
    assert "again | again: done" in out.replace(" (dpo)", "")


@pytest.mark.slow
def test_an_interrupt_reaches_the_workers_once(start: Path, tmp_path: Path) -> None:
    process = command(recipe(tmp_path, start, steps=400, evaluate=False), tmp_path, "--jobs", "2")
    for _ in range(1200):
        if all(list((tmp_path / "fan" / name / "checkpoints").glob("*")) for name in ("dpo", "ipo")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = done(process, status=130)
    assert "dpo stopped by SIGINT; the same command goes on" in out
    assert "ipo stopped by SIGINT; the same command goes on" in out


def step(name: str, *uses: str) -> Step:
    return Step(name, Stage("toy", lambda *_: {}, Settings), Settings(), frozenset(), uses, ())


def test_a_stage_that_nothing_can_run_beside_has_all_cores() -> None:
    chain = [step("world"), step("pretrain", "world"), step("dpo", "pretrain"), step("ppo", "pretrain")]
    both = [*chain, step("evaluate", "dpo", "ppo")]
    assert threads_for(both, 2, 8) == {"world": 8, "pretrain": 8, "dpo": 4, "ppo": 4, "evaluate": 8}
    assert threads_for(both, 3, 2)["dpo"] == 1
    # something that needs nothing may run beside everything
    assert set(threads_for([*both, step("other")], 2, 8).values()) == {4}


def test_long_chains_are_begun_first() -> None:
    steps = [
        step("sft"),
        step("dpo", "sft"),
        step("judge", "sft"),
        step("judging", "judge"),
        step("end", "dpo", "judging"),
    ]
    assert chain_lengths(steps) == {"sft": 4, "dpo": 2, "judge": 3, "judging": 2, "end": 1}


def test_jobs_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="number of parallel stages"):
        run_recipe(tiny.write(tmp_path), runs_root=tmp_path, jobs=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        run_recipe(tiny.write(tmp_path), runs_root=tmp_path, jobs=2)
