"""The examples for Slurm and SkyPilot: run with stubs in place of the schedulers; their commands are run dry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from tiltyard import from_scratch, train_tokenizer
from tiltyard.models.load import save_model
from tiltyard.pipeline.recipe import check, read_recipe
from tiltyard.stages.base import load_all

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "scale"
STUBS = {
    "scontrol": 'if [[ $1 == show ]]; then printf "%s\\n" ${3//,/ }; else echo "$@" >>$LOG/scontrol; fi',
    # an engine answers once it runs
    "curl": "for _ in {1..600}; do [[ ! -s $LOG/vllm ]] || exit 0; sleep 0.05; done; exit 1",
    "vllm": 'printf "%s\\n" "$@" >$LOG/vllm; exec sleep 60',
    # options of srun up to the command, which runs once
    "srun": 'printf "%s\\n" "$*" >>$LOG/srun; while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "torchrun": 'printf "%s\\n" "$@" >$LOG/torchrun; env >$LOG/environment; [[ -z ${HANG:-} ]] || exec "$STOPS" '
    '-c "import sys,time,signal; signal.signal(15, lambda *a: sys.exit(143)); time.sleep(60)"; '
    'while [[ $1 == -* && $1 != --no-python ]]; do shift; done; shift; exec "$@"',
    "tiltyard": '[[ -z ${STATUS:-} ]] || exit $STATUS; exec "$STOPS" -m tiltyard.cli "$@" --dry-run',
}
# the keys of a task and of its resources that SkyPilot 0.14.1 takes (sky/utils/schemas.py), as far as they are used
TASK = {"name", "workdir", "num_nodes", "resources", "file_mounts", "envs", "setup", "run"}
RESOURCES = {"accelerators", "use_spot", "job_recovery"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(from_scratch("1m", train_tokenizer((f"word{i}" for i in range(500)), 400)), folder)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"word{i}"}) + "\n" for i in range(64)))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """An environment whose schedulers are stubs that keep their arguments in $LOG."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STUBS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    usual = {"PATH": path, "LOG": str(tmp_path), "STOPS": sys.executable, "PYTHONPATH": str(ROOT / "src")}
    return os.environ | usual | {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("recipe", "whose"), [(EXAMPLES / "grpo.yaml", "grpo"), (ROOT / "benchmarks/scale/together.yaml", "defaults")]
)
def test_a_recipe_of_a_laptop_runs_sharded_with_vllm_by_two_flags(recipe: Path, whose: str, model: Path) -> None:
    """`--shard` is `defaults.shard=true`; what the recipe says of the engine beside `python` stays."""
    load_all()
    words = [f"{whose}.model={model}", f"{whose}.prompts={model / 'prompts.jsonl'}"]
    laptop = check(read_recipe(recipe, words))
    there = check(read_recipe(recipe, [*words, "defaults.shard=true", "defaults.vllm.python=vllm/bin/python"]))
    for own, other in zip(laptop, there, strict=True):
        before, after = own.settings.model_dump(), other.settings.model_dump()
        assert (before["models"].pop("shard"), after["models"].pop("shard")) == (False, True)
        assert (before["vllm"].pop("python"), after["vllm"].pop("python")) == ("", "vllm/bin/python")
        assert before == after


def words_of(model: Path) -> list[str]:
    return [f"grpo.model={model}", f"grpo.prompts={model / 'prompts.jsonl'}", "grpo.device=cpu"]


def slurm(place: dict[str, str], words: list[str], **more: str) -> subprocess.Popen[str]:
    given = {"SLURM_JOB_ID": "31", "SLURM_JOB_NODELIST": "a,b,c", "SLURM_GPUS_ON_NODE": "8", "MODEL": "/shared/model"}
    command = ["bash", str(EXAMPLES / "slurm.sh"), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=place | given | more, stdout=pipe, stderr=pipe, text=True)


def launched(place: dict[str, str]) -> Any:
    """The arguments of torchrun, read by torchrun's own parser."""
    return get_args_parser().parse_args((Path(place["LOG"]) / "torchrun").read_text().splitlines())


@pytest.mark.slow
def test_slurm_starts_an_engine_and_trains_on_the_other_nodes(place: dict[str, str], model: Path) -> None:
    out, err = (job := slurm(place, words_of(model))).communicate(timeout=240)
    assert job.returncode == 0, out + err
    found, log = launched(place), Path(place["LOG"])
    assert (found.nnodes, found.nproc_per_node, found.rdzv_endpoint, found.rdzv_id) == ("2", "8", "b:20031", "31")
    assert found.training_script == "tiltyard"
    assert found.no_python
    assert "grpo.vllm.url=http://a:8000" in found.training_script_args
    engine, train = (log / "srun").read_text().splitlines()
    assert "--nodelist=a " in engine
    assert "VLLM_SERVER_DEV_MODE=1" in engine
    assert "--nodelist=b,c " in train
    assert "--ntasks=2" in train
    assert (log / "vllm").read_text().splitlines()[:2] == ["serve", "/shared/model"]
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150" in (log / "environment").read_text()
    assert "vLLM's engine, beside them" in out
    assert "each process" in out
    assert not (log / "scontrol").exists()


def test_the_engine_in_the_example_is_the_one_of_the_page(place: dict[str, str]) -> None:
    """Every option that the server needs stands in both."""
    page = (ROOT / "docs" / "scale.md").read_text()
    served = (EXAMPLES / "slurm.sh").read_text()
    for option in ("--enable-scale-out", "--skip-tokenizer-init", "--logprobs-mode processed_logprobs"):
        assert option in page
        assert option in served
    assert "--generation-config vllm" in served
    assert '{"backend": "tiltyard_disk"}' in served


def test_slurm_without_an_engine_trains_on_every_node(place: dict[str, str]) -> None:
    out, err = (job := slurm(place, ["grpo.steps=3"], ENGINE="none", STATUS="0")).communicate(timeout=120)
    assert job.returncode == 0, out + err
    assert launched(place).nnodes == "3"
    assert launched(place).training_script_args == ["run", "examples/scale/grpo.yaml", "grpo.steps=3"]


def test_an_error_of_the_recipe_ends_the_job_and_is_not_queued_again(place: dict[str, str]) -> None:
    job = slurm(place, [], ENGINE="none", STATUS="2")
    job.communicate(timeout=120)
    assert job.returncode == 2
    assert not (Path(place["LOG"]) / "scontrol").exists()


def test_a_preempted_job_is_queued_again(place: dict[str, str]) -> None:
    job = slurm(place, [], ENGINE="none", HANG="1")
    for _ in range(600):
        if (Path(place["LOG"]) / "environment").exists():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 0
    assert "the same command goes on" in out
    assert (Path(place["LOG"]) / "scontrol").read_text() == "requeue 31\n"


@pytest.mark.slow
def test_the_task_of_skypilot(place: dict[str, str], model: Path, tmp_path: Path) -> None:
    task = yaml.safe_load((EXAMPLES / "sky.yaml").read_text())
    assert set(task) <= TASK
    assert set(task["resources"]) <= RESOURCES
    given = task["envs"] | {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "MODEL": str(model),
        "WORDS": " ".join(words_of(model)[1:]),
        "RUNS": str(tmp_path / "runs"),
    }
    done = subprocess.run(
        ["bash", "-c", task["run"]], cwd=ROOT, env=place | given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = launched(place)
    assert (found.nnodes, found.nproc_per_node, found.rdzv_endpoint) == ("2", "8", "10.0.0.1:29500")
    assert found.training_script_args[:2] == ["run", "examples/scale/grpo.yaml"]


def test_the_scripts_are_bash() -> None:
    task = yaml.safe_load((EXAMPLES / "sky.yaml").read_text())
    for text in ((EXAMPLES / "slurm.sh").read_text(), task["setup"], task["run"]):
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
