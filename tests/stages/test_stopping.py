"""SIGTERM to a whole run: in the loop of a method, in a stage of blocks, and under torchrun with two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import tiny
from .conftest import Whole

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
pytestmark = pytest.mark.slow


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stopped(words: list[str], begun: Path, number: int, *before: str) -> tuple[int, str]:
    """Sends the signal once `begun` has two lines; (exit status, standard error)."""
    command = [sys.executable, *before, "-m", "tiltyard.cli", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 240
    while lines(begun) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    return process.returncode, error.decode()


@pytest.mark.parametrize(
    ("before", "number", "status"), [((), signal.SIGTERM, 143), ((), signal.SIGINT, 130), (TORCHRUN, signal.SIGTERM, 1)]
)
def test_training_stops_with_a_checkpoint(
    whole: Whole, tmp_path: Path, before: tuple[str, ...], number: int, status: int
) -> None:
    words = ["train", "sft", f"model={whole.run / 'sft'}", f"data={whole.run / 'world/demonstrations_held_out.jsonl'}"]
    words += [
        "max_length=64",
        "steps=3000",
        "prompts_per_step=2",
        "save_every=0",
        "device=cpu",
        "--runs",
        str(tmp_path),
    ]
    code, error = stopped(words, tmp_path / "sft/sft/metrics.jsonl", number, *before)
    saved = sorted(p.name for p in (tmp_path / "sft/sft/checkpoints").glob("step-*"))
    assert code == status, error[-3000:]
    assert len(saved) == 1, error[-3000:]
    assert int(saved[0][5:]) == len(tiny.rows(tmp_path / "sft/sft/metrics.jsonl"))
    assert not (tmp_path / "sft/sft/done.json").exists()


def test_labels_stop_at_the_end_of_a_block(whole: Whole, tmp_path: Path) -> None:
    words = ["train", "label", f"model={whole.run / 'sft'}", f"prompts={whole.run / 'world/prompts.jsonl'}", "k=2"]
    words += ["max_tokens=10", "max_prompt=48", "device=cpu", "--runs", str(tmp_path)]
    code, error = stopped(words, tmp_path / "label/label/rankings.groups.jsonl", signal.SIGTERM)
    assert code == 143, error[-3000:]
    assert (tmp_path / "label/label/progress.json").exists()
    assert not (tmp_path / "label/label/done.json").exists()
