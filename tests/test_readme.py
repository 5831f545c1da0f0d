"""The example of the README runs as it stands there, and does what the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_runs(tmp_path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    statements = re.sub(r"\n +", " ", code)
    assert len([line for line in statements.splitlines() if line.strip()]) <= 18, "the example should stay short"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores = {name: float(score) for name, score in (line.split() for line in done.stdout.splitlines())}
    assert scores.keys() == {"sft", "ppo"}
    assert scores["ppo"] > scores["sft"] + 0.2
