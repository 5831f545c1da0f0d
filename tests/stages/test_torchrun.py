"""The whole recipe under torchrun: two processes give every stage's loss curve of one, and write everything once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import tiny

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def go(folder: Path, *before: str) -> Path:
    """Without dropout, whose streams are each process's own; in float64, so that sums in another order show late."""
    command = [sys.executable, *before, "-m", "tiltyard.cli", "run", str(tiny.write(folder)), "--runs"]
    command += [str(folder / ("two" if before else "one")), "defaults.dtype=float64", "sft.dropout=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return Path(command[-3]) / "tiny"


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    one, two = go(tmp_path), go(tmp_path, *TORCHRUN)
    for stage in ("pretrain", "sft", "reward", "ppo"):
        ours, theirs = tiny.rows(two / stage / "metrics.jsonl"), tiny.rows(one / stage / "metrics.jsonl")
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.keys() == other.keys()
            for key in mine:
                if not key.startswith("time/"):
                    assert mine[key] == pytest.approx(other[key], abs=1e-5), (stage, mine["step"], key)
    answers = [
        [(a["prompt_id"], a["text"]) for a in tiny.rows(run / "evaluate" / "answers.jsonl")] for run in (one, two)
    ]
    assert answers[0] == answers[1]
    assert [g["responses"][0]["ids"] for g in tiny.rows(two / "ppo" / "groups.jsonl")] == [
        g["responses"][0]["ids"] for g in tiny.rows(one / "ppo" / "groups.jsonl")
    ]
