"""The stages of a run as the report draws them: what each read and made, its settings, its time and its cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any

from tiltyard.files import read_json
from tiltyard.records import flattened
from tiltyard.report.html.island import size
from tiltyard.report.html.reading import Source, done_of, number, rounded, short, text_of
from tiltyard.runs import StageConfig, StageReader

Defaults = Callable[[str], Mapping[str, Any]]

MADE = (  # key of a stage's result, (one, many)
    ("samples", ("response", "responses")),
    ("candidates", ("response", "responses")),
    ("rankings", ("ranking", "rankings")),
    ("pairs", ("pair", "pairs")),
    ("rows", ("row", "rows")),
    ("train", ("training row", "training rows")),
    ("held_out", ("held-out row", "held-out rows")),
    ("judge_calls", ("score", "scores")),
    ("calls", ("judge call", "judge calls")),
)
LONGEST = 400  # characters of a setting's value
KEPT = ("model", "data", "prompts", "reward")  # settings that are shown of every stage
SETTINGS = 800_000  # bytes of the stages' facts in the page


def stage_facts(source: Source, defaults: Defaults | None) -> list[dict[str, Any]]:
    """The stages of a run, in the order of their start, ready for the page."""
    return [
        source.attempt(name, {"name": text_of(name)}, _facts, source, name, reader, defaults)
        for name, reader in source.stages.items()
    ]


def _facts(source: Source, name: str, reader: StageReader, defaults: Defaults | None) -> dict[str, Any]:
    config = reader.config
    assert config is not None
    result, seconds, finished = done_of(source, reader)
    steps = last_step(reader)
    wanted = number(flattened(dict(config.settings)).get("steps")) or number(result.get("steps"))
    reads = list(_reads(config, source.stages))
    return {
        "name": text_of(name),
        "kind": text_of(short(config.kind)),
        "status": "finished" if finished else "unfinished",
        "seconds": rounded(seconds or _elapsed(reader)),
        "started": text_of(config.started),
        "finished": text_of(finished),
        "steps": steps,
        "of": rounded(wanted) if wanted else None,
        "reads": reads,
        "made": _made(reader, result),
        "seed": rounded(config.settings.get("seed")) if isinstance(config.settings, Mapping) else None,
        "figures": [[text_of(key), value] for key, value in _figures(result)],
        "settings": _settings(config, defaults),
        "tiltyard": text_of(config.tiltyard),
        "id": text_of(config.id),
        "fingerprint": text_of(config.fingerprint),
        **_machine(reader),
    }


def within(runs: Sequence[Mapping[str, Any]], budget: int = SETTINGS) -> tuple[list[dict[str, Any]], list[str]]:
    """Limits the facts of all stages to `budget` bytes, settings at their defaults first; returns runs and notes."""
    found = [{**run, "stages": [dict(stage) for stage in run["stages"]]} for run in runs]
    stages = [stage for run in found for stage in run["stages"] if stage.get("settings")]
    if size(found) <= budget:
        return found, []
    for stage in stages:
        stage["settings"] = [row for row in stage["settings"] if row[2] is not None or row[0] in KEPT]
    if size(found) <= budget:
        return found, ["The stages are many: of their settings those that differ from the defaults are shown."]
    for place, stage in enumerate(stages):
        stage["settings"], stage["figures"] = [], []
        if place % 16 == 15 and size(found) <= budget:
            break
    return found, ["The stages are too many for one page: settings are shown of some of them, where they differ."]


def last_step(reader: StageReader) -> int:
    """The number of the last complete line of the metrics; 0 without any."""
    path = reader.folder / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 65_536))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            step = json.loads(line).get("step")
        except (ValueError, AttributeError):
            continue
        if number(step):
            return int(step)
    return 0


def _elapsed(reader: StageReader) -> float:
    """Seconds that the steps of an unfinished stage took, by its metrics."""
    try:
        return sum(number(row.get("time/seconds")) or 0.0 for row in reader.metric_rows())
    except Exception:  # half-written; the curves note it
        return 0.0


def _reads(config: StageConfig, stages: Mapping[str, StageReader]) -> Iterator[dict[str, Any]]:
    """Yields the references of the settings: stages of the run, files and models from elsewhere."""
    files = config.files if isinstance(config.files, Mapping) else {}
    inputs = [name for name in config.inputs if name in stages] if isinstance(config.inputs, Mapping) else []
    seen = set()
    for key, value in flattened(dict(config.settings)).items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str) or not text:
                continue
            head, _, rest = text.partition("/")
            stage = head if head in inputs else ""
            if not stage and text not in files:
                continue
            mark = (stage or text, rest)
            if mark in seen:
                continue
            seen.add(mark)
            what = PurePath(rest).name if rest and stage else "" if stage else _called(text)
            yield {"stage": text_of(stage), "what": text_of(what, 80), "key": text_of(key), "sha": _digest(files, text)}


def _called(text: str) -> str:
    """The last part of a path or of a function's module."""
    name = PurePath(short(text)).name
    module, colon, function = name.partition(":")
    return f"{module.rpartition('.')[2] if not module.endswith('.py') else module}:{function}" if colon else name


def _digest(files: Mapping[str, Any], text: str) -> str:
    return str(files.get(text, ""))[:12]


def _made(reader: StageReader, result: Mapping[str, Any]) -> list[str]:
    made = []
    if reader.model is not None:
        made += ["a model", *(["an adapter"] if (reader.folder / "adapter").is_dir() else [])]
    for key, (one, many) in MADE:
        if (count := number(result.get(key))) is not None and (count or key == "pairs"):
            made.append(f"{count:,.0f} {one if count == 1 else many}")
    if (reader.folder / "summary.json").exists():
        made.append("a comparison")
    if (reader.folder / "reward_report.json").exists():
        made.append("a report")
    if (reader.folder / "before_after.json").exists():
        made.append("a comparison")
    return list(dict.fromkeys(made))


def _figures(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Numbers and short texts of a result, nested ones by dotted keys."""
    for key, value in flattened(dict(result)).items():
        if isinstance(value, bool):
            yield key, "yes" if value else "no"
        elif isinstance(value, int | float):
            yield key, rounded(value)
        elif isinstance(value, str) and len(value) <= 120:
            yield key, text_of(short(value))


def _settings(config: StageConfig, defaults: Defaults | None) -> list[list[Any]]:
    """[key, value, default or None where it is equal or unknown] of every setting."""
    usual: Mapping[str, Any] = {}
    if defaults is not None:
        try:
            usual = defaults(config.kind)
        except Exception:  # a method of a file that is not here: its values are shown without defaults
            usual = {}
    rows = []
    for key, value in flattened(dict(config.settings)).items():
        known = key in usual
        rows.append([text_of(key), shown(value), shown(usual[key]) if known and usual[key] != value else None])
    return rows


def shown(value: Any) -> str:
    """A setting's value in one line."""
    if value is None or value in ("", [], {}):
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return text_of(", ".join(shown(one) for one in value), LONGEST)
    if isinstance(value, Mapping):
        return text_of(", ".join(f"{key}: {shown(one)}" for key, one in value.items()), LONGEST)
    return text_of(short(value) if isinstance(value, str) else value, LONGEST)


def _machine(reader: StageReader) -> dict[str, Any]:
    """Facts about the machine and the code that `config.json` keeps, as far as they are there."""
    raw = read_json(reader.folder / "config.json") or {}
    backend, commits = (one if isinstance(one := raw.get(key), dict) else {} for key in ("backend", "commits"))
    return {
        "threads": rounded(backend.get("threads")),
        "device": text_of(backend.get("device") or ("cuda" if backend.get("ops") == "cuda" else "cpu")),
        "torch": text_of(backend.get("torch")),
        "backend": text_of(", ".join(str(backend[key]) for key in ("ops", "linear", "decoder") if backend.get(key))),
        "commits": {text_of(key): text_of(value) for key, value in commits.items()},
    }


def wall_time(stages: list[dict[str, Any]]) -> float | None:
    """Seconds from the first start to the last end; None where that is unknown. Stages may have run side by side."""
    try:
        starts = [datetime.fromisoformat(s["started"]) for s in stages if s.get("started")]
        ends = [datetime.fromisoformat(s["finished"]) for s in stages if s.get("finished")]
        return (max(ends) - min(starts)).total_seconds() if starts and ends else None
    except (ValueError, TypeError):
        return None
