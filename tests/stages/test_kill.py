"""`kill -9` at random moments of every stage: what is finished later is what was never interrupted, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import tiny
from .conftest import Whole

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_is_uninterrupted(whole: Whole, tmp_path: Path, seed: int) -> None:
    seconds = tmp_path / "seconds.json"
    seconds.write_text(json.dumps(whole.seconds))
    command = [
        sys.executable,
        "-m",
        "tests.stages.killer",
        str(whole.recipe),
        str(tmp_path),
        str(seed),
        "2",
        str(seconds),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    hits = json.loads(done.stdout)
    print(hits)
    assert sum(hits.values()) >= len(tiny.STAGES)
    assert all(hits[name] for name in ("pretrain", "sft", "reward", "ppo"))
    ours, theirs = tiny.results(tmp_path / "tiny"), tiny.results(whole.run)
    assert ours.keys() == theirs.keys()
    assert {"ppo/model/model.safetensors", "ppo/value/model.safetensors", "ppo/groups.jsonl"} < ours.keys()
    different = [name for name in theirs if ours[name] != theirs[name]]
    assert not different
    for name in ("pretrain", "sft", "reward", "ppo"):
        left = [p.name for p in (tmp_path / "tiny" / name / "checkpoints").iterdir()]
        assert all(p.startswith("step-") for p in left), left
