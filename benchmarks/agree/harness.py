"""lm-eval on a model folder with a task of our own, whose rows are written here, and the accuracy by our log-probs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiltyard import Group, LanguageModel, Prompt, Response
from tiltyard.data.benchmarks import Item
from tiltyard.evaluation.before_after import each_logp
from tiltyard.evaluation.benchmarks import choice_columns
from tiltyard.types import MICRO_TOKENS

TASK = "tiltyard_facts"
FACTS: tuple[tuple[str, tuple[str, ...], int], ...] = (  # question, choices, index of the right one
    ("What colour is the sky on a clear day?", ("blue", "green", "black", "brown"), 0),
    ("How many legs does a spider have?", ("six", "four", "eight", "ten"), 2),
    ("Which of these is a fruit?", ("table", "apple", "river", "stone"), 1),
    ("What do bees make?", ("silk", "milk", "bread", "honey"), 3),
    ("What is the capital of France?", ("Paris", "Rome", "Oslo", "Madrid"), 0),
    ("What falls from clouds?", ("sand", "wood", "rain", "glass"), 2),
    ("What is two plus three?", ("four", "five", "seven", "nine"), 1),
    ("Which animal barks?", ("cat", "cow", "duck", "dog"), 3),
    ("Which of these is cold?", ("ice", "fire", "steam", "lava"), 0),
    ("Where do fish live?", ("in trees", "in books", "in water", "in clouds"), 2),
    ("What day comes after Monday?", ("Sunday", "Tuesday", "Friday", "Thursday"), 1),
    ("What do people read?", ("bricks", "spoons", "shoes", "books"), 3),
)


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def write_task(folder: Path) -> None:
    """The task as lm-eval reads it: a YAML file and its rows beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": q, "choices": list(choices), "answer": right} for q, choices, right in FACTS]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{TASK}.yaml").write_text(
        f"""task: {TASK}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder.resolve()}/facts.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: answer
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
    )


def run(python: Path, model: Path, work: Path, threads: int) -> float:
    """The accuracy that lm-eval finds.

    Raises:
        SystemExit: it failed; the message names the log.
    """
    write_task(work / "task")
    out, log = work / "lm-eval", work / "lm-eval.log"
    words = ["run", "--model", "hf", "--model_args", f"pretrained={model.resolve()},dtype=float32", "--tasks", TASK]
    words += ["--include_path", str((work / "task").resolve()), "--device", "cpu", "--batch_size", "4"]
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "TILTYARD_", "OMP_"))}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str((work / "datasets").resolve())}
    environment = {**own, **offline, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        command = [str(python.with_name("lm_eval")), *words, "--output_path", str(out.resolve())]
        done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    results = sorted(out.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    if done.returncode or not results:
        raise SystemExit(f"lm-eval failed with {done.returncode}: see {log}")
    found: dict[str, Any] = json.loads(results[-1].read_text())["results"][TASK]
    return float(found["acc,none"])


def accuracy(model: LanguageModel, facts: Sequence[tuple[str, tuple[str, ...], int]] = FACTS) -> float:
    """The same by our log-probs: the choice with the largest summed log-prob behind the question."""
    items = [
        Item(
            Group(Prompt(text=_asked(question)), tuple(Response(text=f" {choice}") for choice in choices)),
            one={i: i == answer for i in range(len(choices))},
        )
        for question, choices, answer in facts
    ]
    groups = model.chat.encode_continuations([item.group for item in items])
    logps = [[logp for logp, _ in of] for of in each_logp(model, groups, MICRO_TOKENS)]
    right = choice_columns(items, range(len(items)), logps)[0].values
    return sum(right) / len(right)
