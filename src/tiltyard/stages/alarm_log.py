"""The sink that raises the alarms of a training stage: a line on the console, a row with samples in `alarms.jsonl`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from tiltyard.inputs.scores import ScoreSettings
from tiltyard.inputs.settings import PromptSettings, StageSettings
from tiltyard.runs.journal import JsonlFile, length_before
from tiltyard.runs.reader import read_metric_rows
from tiltyard.stats.alarms import Alarm, AlarmWatch
from tiltyard.stats.refusals import begins_with_refusal
from tiltyard.stats.text import repeated_pairs

SAMPLES = 3  # responses that are kept with an alarm
TAIL = 4_000_000  # bytes of groups.jsonl in which the groups of a step are looked for
Sample = dict[str, Any]  # prompt, response, score, tokens; ids while it is chosen


def trained_rewards(settings: StageSettings) -> Collection[str]:
    """The names of the `reward/NAME` metrics that are parts of the trained reward, not monitors."""
    return settings.parts().keys() if isinstance(settings, ScoreSettings) else ()


class AlarmLog:
    """Raises the alarms of `stats.alarms` during training.

    The state follows from the metrics alone: a resumed run reads the earlier ones and raises what an uninterrupted one
    would have raised.

    Args:
        folder: of the stage, with its metrics.jsonl and groups.jsonl.
    """

    def __init__(self, console: Console, name: str, folder: Path, settings: PromptSettings):
        self.console, self.name, self.folder = console, name, folder
        self._settings, self._watch = settings, AlarmWatch(settings.alarms, frozenset(trained_rewards(settings)))
        self._file: JsonlFile | None = None
        self._begun = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step; writes and prints the alarms that they raise."""
        if not self._settings.alarms.alarm_window:
            return
        if not self._begun:
            self._begin(step)
        for alarm in self._watch.add(step, metrics):
            self._file = self._file or JsonlFile(self.folder / "alarms.jsonl")
            self._file.write([{**asdict(alarm), "samples": samples_of(self.folder / "groups.jsonl", alarm)}])
            line = f"! alarm, {self.name} step {step}: {alarm.text}"
            self.console.print(line, style="bold yellow", markup=False, highlight=False, soft_wrap=True)

    def _begin(self, step: int) -> None:
        """Reads the metrics of earlier steps; drops alarms of a later one, which an interrupted attempt left."""
        self._begun = True
        path, metrics = self.folder / "alarms.jsonl", self.folder / "metrics.jsonl"
        for row in read_metric_rows(metrics) if metrics.exists() else ():
            if row["step"] < step:
                self._watch.add(row["step"], row)
        if path.exists():
            self._file = JsonlFile(path)
            self._file.truncate(length_before(path, step))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def samples_of(path: Path, alarm: Alarm) -> list[Sample]:
    """Returns some responses of the alarm's step that show what it is about; none where the stage keeps no groups."""
    found = [sample for group in _groups(path, alarm.step) for sample in _samples(group)]
    counts = Counter(sample["response"] for sample in found)
    rising = alarm.now > alarm.before
    order: dict[str, Callable[[Sample], float]] = {
        "length": lambda one: one["tokens"] if rising else -one["tokens"],
        "repetition": lambda one: repeated_pairs(one["ids"]),
        "refusals": lambda one: begins_with_refusal(one["response"]) == rising,
        "unique": lambda one: counts[one["response"]],
    }
    key = order.get(alarm.kind, order["unique"] if alarm.kind == "collapse" else _score)
    found.sort(key=key, reverse=True)  # stable: equal ones in the order of the file
    return [{name: value for name, value in one.items() if name != "ids"} for one in found[:SAMPLES]]


def _score(sample: Sample) -> float:
    return sample["score"] if sample["score"] is not None else 0.0


def _groups(path: Path, step: int) -> list[dict[str, Any]]:
    """The groups of a step, which are the last of the file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        lines = file.read().splitlines()
    rows = map(json.loads, lines[1:] if size > TAIL else lines)
    return [row for row in rows if row["step"] == step]


def _samples(group: dict[str, Any]) -> list[Sample]:
    prompt = group["prompt"]
    messages = prompt.get("messages")
    text = messages[-1][1] if messages else prompt.get("text") or ""
    responses = group["responses"]
    scores: Sequence[float | None] = group.get("scores") or [None] * len(responses)
    return [
        {
            "prompt": text,
            "response": response.get("text", ""),
            "score": score,
            "tokens": len(response.get("ids", ())),
            "ids": response.get("ids", ()),
        }
        for response, score in zip(responses, scores, strict=True)
    ]
