"""Starts TRL's side and reads what it found; where its environment is not there, says so."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.agree.cases import Case
from benchmarks.agree.data import Folders, Row

SCRIPT = Path(__file__).with_name("trl_side.py")
ABSENT = "the peers' programs"


def python_of(work: Path | None, name: str = "trl") -> Path | None:
    """The Python of an environment in the peers' folder, as `make bench` sets it up; None if it is not there."""
    python = None if work is None else work / name / "bin/python"
    return python if python is not None and python.exists() else None


def peers_folder() -> Path | None:
    """The folder that PEERS_WORK names."""
    named = os.environ.get("PEERS_WORK", "")
    return Path(named) if named else None


def job(case: Case, folders: Folders, **changes: Any) -> dict[str, Any]:
    """What TRL is told to do for a case: one step over all rows, with a rate that changes nothing.

    Args:
        changes: of the job's values, such as `padding_learns` (the embedding of the padding token gets its gradient).
    """
    model = folders.reward if case.trainer == "reward" else folders.model
    told = {
        "name": case.name,
        "trainer": case.trainer,
        "settings": case.settings,
        "changed": case.changed,
        "model": str(model),
        "ref": str(folders.ref),
        "rows": "rows",
        "lr": 1e-12,
        "steps": 1,
        "padding_learns": False,
        "batch": 0,
    }
    return told | changes


def run(
    python: Path, jobs: Sequence[dict[str, Any]], data: dict[str, list[Row]], out: Path, threads: int, ids_of: str = ""
) -> dict[str, Any]:
    """Runs the jobs in one process of TRL's environment.

    Args:
        ids_of: a model folder whose ids of the conversations (`data["conversations"]`) are asked for, too.

    Raises:
        SystemExit: it failed; the message names the log.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    given, log = out.with_suffix(".work.json"), out.with_suffix(".log")
    given.write_text(json.dumps({"jobs": list(jobs), "data": data, "threads": threads, "ids_of": ids_of}))
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "TILTYARD_"))}
    environment = {**own, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    with log.open("w") as file:
        command = [str(python), str(SCRIPT), str(given), str(out)]
        done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise SystemExit(f"TRL's side failed with {done.returncode}: see {log}")
    return json.loads(out.read_text())
