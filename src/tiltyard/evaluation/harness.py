"""lm-eval (EleutherAI) on a saved model, in a process of its own: its scores question by question.

It is optional (`pip install 'tiltyard[harness]'`, or an environment of its own that `TILTYARD_LM_EVAL` names), reads
the model folder as transformers does, and knows nothing of Tiltyard, so its score is a check of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tiltyard.data.benchmarks import Item
from tiltyard.errors import ConfigError, ModelError
from tiltyard.evaluation.benchmarks import Column, Measure
from tiltyard.types import Group, Prompt

SCHEME = "lmeval:"  # lmeval:arc_easy, lmeval:tasks/mine.yaml
PROGRAM = "lm_eval"
VARIABLE = "TILTYARD_LM_EVAL"  # path of the program


class Harness(NamedTuple):
    """A task of lm-eval, its own or one in a YAML file, and how it is run.

    Args:
        limit: number of questions; 0: all. batch: sequences at a time.
    """

    task: str
    limit: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    batch: int = 8

    @property
    def name(self) -> str:
        """The task's name; of a file that the file has, less its suffix."""
        return Path(self.task).stem if self.task.endswith((".yaml", ".yml")) else self.task


def program() -> str:
    """Returns the path of lm-eval's program.

    Raises:
        ConfigError: it is not installed.
    """
    beside = Path(sys.executable).with_name(PROGRAM)
    found = os.environ.get(VARIABLE) or (str(beside) if beside.exists() else shutil.which(PROGRAM))
    if not found or not Path(found).exists():
        raise ConfigError(
            "lm-eval is not installed",
            where="benchmarks",
            got=found or f"no program '{PROGRAM}' beside Python or on the path",
            expected="lm-eval 0.4.13 or newer",
            fix=f"pip install 'tiltyard[harness]'; or set {VARIABLE} to the program of an environment that has it",
        )
    return found


def command(asked: Harness, model: str, out: Path) -> list[str]:
    """Returns the words of the command that scores a model, a folder or a name of the hub."""
    words = [program(), "run", "--model", "hf", "--model_args", f"pretrained={model},dtype={asked.dtype}"]
    words += ["--tasks", asked.name, "--device", asked.device, "--batch_size", str(asked.batch)]
    if asked.name != asked.task:
        words += ["--include_path", str(Path(asked.task).resolve().parent)]
    words += ["--limit", str(asked.limit)] if asked.limit else []
    return [*words, "--log_samples", "--output_path", str(out)]


def run_harness(asked: Harness, model: str, work: Path) -> tuple[list[Item], list[Column]]:
    """Scores a model; `work` gets lm-eval's own files and its log.

    Returns:
        The questions (their names alone), and a column for each of lm-eval's measures that is a number a question.

    Raises:
        ConfigError: it is not installed. ModelError: it failed; its log is named.
    """
    work.mkdir(parents=True, exist_ok=True)
    log, out = work / "lm-eval.log", work / "lm-eval"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHONPATH")}
    with log.open("w") as file:
        words = command(asked, model, out.resolve())
        done = subprocess.run(words, env=environment, stdout=file, stderr=file, check=False)
    files = sorted(out.rglob(f"samples_{asked.name}_*.jsonl"), key=lambda path: path.stat().st_mtime)
    if done.returncode or not files:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise ModelError(
            "lm-eval did not score the model",
            where=f"{SCHEME}{asked.task}",
            got=f"exit {done.returncode}: {last[0][:200] if last else 'nothing written'}",
            expected="a finished evaluation",
            fix=f"read {log}",
        )
    return read_samples(files[-1], asked.name)


def read_samples(path: Path, task: str) -> tuple[list[Item], list[Column]]:
    """Reads the scores that lm-eval logged, by question; of several filters the first."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    rows = sorted((row for row in rows if row.get("filter") == rows[0].get("filter")), key=lambda row: row["doc_id"])
    items = [
        Item(
            Group(
                Prompt(text=f"{task} {row['doc_id']} {row.get('doc_hash', '')}"), (), origin=f"{task}:{row['doc_id']}"
            )
        )
        for row in rows
    ]
    columns = []
    for name in rows[0].get("metrics", []):
        if all(isinstance(row.get(name), int | float) for row in rows):
            values = tuple(float(row[name]) for row in rows)
            unit: Any = "share" if all(0 <= value <= 1 for value in values) else "score"
            measure = Measure(name, unit, "higher" if unit == "share" else "", f"{name} of lm-eval's task {task}")
            columns.append(Column(measure, tuple(range(len(rows))), values))
    return items, columns
