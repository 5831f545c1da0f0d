"""A sharded run whose responses a real vLLM engine samples, by the command line: its faults, and sampling ahead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from models import tiny

PYTHON = os.environ.get("TILTYARD_VLLM_PYTHON", "")
ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STEPS = 8
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not PYTHON, reason="TILTYARD_VLLM_PYTHON names no vLLM (`make vllm`)"),
]
REWARD = """
def thirds(prompt, response):
    return sum(token % 3 == 0 for token in response.ids) / len(response.ids)
"""
Fault = Callable[[psutil.Process], None]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tied Llama, prompts and a reward."""
    folder = tmp_path_factory.mktemp("work")
    chat = tiny.chat()
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    made = tiny.causal("llama", vocab_size=len(chat.tokenizer), tie_word_embeddings=True, **shape)
    made.save_pretrained(folder / "model")
    chat.tokenizer.save_pretrained(folder / "model")
    texts = ("the cat", "what is", "yes it is", "on the mat", "the land", "the capital")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    (folder / "reward.py").write_text(REWARD)
    return folder


def command(name: str, *more: str) -> list[str]:
    """`tiltyard train grpo ... --shard vllm.python=...` by two processes."""
    words = ["train", "grpo", "model=model", "prompts=prompts.jsonl", "reward=reward.py:thirds", f"name={name}"]
    words += [
        f"steps={STEPS}",
        "prompts_per_step=6",
        "samples_per_prompt=4",
        "max_tokens=12",
        "lr=1e-3",
        "save_every=1",
    ]
    words += [f"vllm.python={PYTHON}", "vllm.memory_gb=0.07", "vllm.threads=1", "--shard", *more]
    return [sys.executable, *TORCHRUN, "-m", "tiltyard.cli", *words]


def run(work: Path, name: str, *more: str, fault: Fault | None = None, after: int = 0) -> str:
    """Runs a command until it ends, with a fault once `after` steps are written; returns what it printed."""
    words, metrics = command(name, *more), work / "runs" / name / "grpo/metrics.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with (work / "output.txt").open("w+") as output:
        program = subprocess.Popen(words, cwd=work, env=environment, stdout=output, stderr=output)
        try:
            while fault is not None and program.poll() is None:
                if metrics.exists() and len(metrics.read_text().splitlines()) >= after:
                    fault(psutil.Process(program.pid))
                    fault = None
                time.sleep(0.05)
            status = program.wait(600)
        finally:
            program.kill()
        output.seek(0)
        printed = output.read()
    assert (status == 0) == (after == 0), printed[-4000:]
    return printed


def rank_1(torchrun: psutil.Process) -> None:
    """Kills the second process by SIGKILL, as a machine does that runs out of memory."""
    (found,) = (child for child in torchrun.children() if child.environ().get("RANK") == "1")
    found.kill()


def engine(torchrun: psutil.Process) -> None:
    """Kills vLLM with its workers."""
    found = [child for child in torchrun.children(recursive=True) if "serve" in child.cmdline()]
    os.killpg(found[0].pid, signal.SIGKILL)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.read_text().splitlines()]


def engines_of(work: Path) -> list[int]:
    """Engines of this test that still run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        found += [process.pid] if "serve" in words and any(str(work) in word for word in words) else []
    return found


def test_a_killed_rank_and_a_killed_engine_cost_nothing_that_was_learnt(work: Path) -> None:
    """Each ends the run with a sentence and no process behind; the same command goes on from the last checkpoint."""
    stage = work / "runs/killed/grpo"
    printed = run(work, "killed", fault=rank_1, after=3)
    # torchrun stops the others too, and a process that waits for the engine hears of that first
    assert "another process of this run has ended" in printed or "grpo stopped by SIGTERM" in printed, printed[-4000:]
    assert "the same command goes on" in printed
    wait_until(lambda: not engines_of(work))
    first = rows_of(stage / "metrics.jsonl")
    printed = run(work, "killed", fault=engine, after=len(first) + 2)
    assert "vLLM has ended with -9" in printed, printed[-4000:]
    assert "the same command goes on" in printed
    second = rows_of(stage / "metrics.jsonl")
    assert second[: len(first) - 1] == first[:-1]  # the last step that was written may have had no checkpoint yet
    run(work, "killed")
    third = rows_of(stage / "metrics.jsonl")
    assert third[: len(second) - 1] == second[:-1]
    assert [row["step"] for row in third] == list(range(1, STEPS + 1))
    steps = Counter(row["step"] for row in rows_of(stage / "groups.jsonl"))
    assert steps == dict.fromkeys(range(1, STEPS + 1), 6)
    assert max(row["sampler_gap"] for row in third) < 1e-4
    assert (stage / "model/model.safetensors").exists()
    wait_until(lambda: not engines_of(work))


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "an engine outlived its run"
        time.sleep(0.2)


def test_an_engine_samples_one_step_ahead_of_sharded_trainers(work: Path) -> None:
    """Weights of each version are pushed by the sampling thread while the trainers gather and learn."""
    run(work, "ahead", "max_staleness=1")
    rows = rows_of(work / "runs/ahead/grpo/metrics.jsonl")
    assert [row["staleness"] for row in rows] == [0.0] + [1.0] * (STEPS - 1)
    groups = rows_of(work / "runs/ahead/grpo/groups.jsonl")
    versions = {(row["step"], one["policy_version"]) for row in groups for one in row["responses"]}
    assert versions == {(step, max(0, step - 2)) for step in range(1, STEPS + 1)}
    assert rows[0]["sampler_gap"] < 1e-4 < rows[-1]["sampler_gap"]  # rounding, then the age
    assert all(row["mismatch/weight"] == pytest.approx(1, abs=0.2) for row in rows)
