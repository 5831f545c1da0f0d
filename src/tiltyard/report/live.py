"""A running stage in the terminal: curves, alarms and samples, read from its files; nothing of the run is touched."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tiltyard.errors import ConfigError, TiltyardError, nearest
from tiltyard.records import flattened
from tiltyard.report.braille import chart
from tiltyard.report.text import plain
from tiltyard.runs import RunReader, StageReader, read_alarms
from tiltyard.training.log import duration

CURVES = (  # in the order of the screen: names of a metric, of which the first that is there is drawn; title
    (("score",), "reward"),
    (("reward/gold",), "gold reward"),
    (("kl_exact", "kl"), "KL, nats"),
    (("loss",), "loss"),
    (("held_out/loss",), "held-out loss"),
    (("accuracy",), "accuracy"),
    (("margin",), "margin"),
    (("length",), "length, tokens"),
    (("entropy",), "entropy, nats"),
    (("truncated",), "cut at the limit"),
    (("grad_norm",), "gradient norm"),
    (("mismatch/off",), "sampler off by 10%"),
)
SILENT = 8.0  # times the usual step without a new one, after which the screen says so
LEAST_SILENCE = 30.0  # seconds
TAIL = 400_000  # bytes of a file of samples that are looked at
ROWS = 4  # lines of a chart
SAMPLE = 7  # lines of a sample at most


class Follower:
    """Reads a `metrics.jsonl` as it grows: complete lines once each; the whole again after a resumed run cut it."""

    def __init__(self, path: Path):
        self.path, self.rows = path, list[dict[str, Any]]()
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Returns all rows so far."""
        try:
            size = self.path.stat().st_size
            if size < self._offset:
                self._offset, self.rows = 0, []
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return self.rows
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                self.rows.append(row)
        return self.rows


def stage_to_watch(run: RunReader, name: str = "") -> StageReader | None:
    """The stage of that name; without one the last that was started and has not finished, or the last with metrics.

    Raises:
        ConfigError: the run has no stage of that name.
    """
    stages = _started(run)
    if name:
        found = next((one for one in stages if one.folder.name == name), None)
        if found is None:
            names = [one.folder.name for one in stages]
            fix = nearest(name, names) if names else "no stage was started"
            raise ConfigError(f"the run has no stage '{name}'", where=str(run.folder), fix=fix)
        return found
    unfinished = [one for one in stages if not (one.folder / "done.json").exists()]
    measured = [one for one in stages if (one.folder / "metrics.jsonl").exists()]
    return next(iter([*reversed(unfinished), *reversed(measured), *reversed(stages)]), None)


def is_finished(run: RunReader) -> bool:
    """True if every stage that was started has finished."""
    stages = _started(run)
    return bool(stages) and all((one.folder / "done.json").exists() for one in stages)


def _started(run: RunReader) -> list[StageReader]:
    """The stages in the order of their start, read anew; without those whose `config.json` is half-written."""
    found = []
    for path in run.folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            reader = StageReader(path)
            try:
                config = reader.config
            except (TiltyardError, OSError):
                continue
            if config is not None:
                found.append((str(config.started), path.name, reader))
    return [reader for *_, reader in sorted(found, key=lambda one: one[:2])]


def screen(stage: StageReader, rows: Sequence[Mapping[str, Any]], console: Console) -> RenderableType:
    """The view of a stage for the console's width and height."""
    utf = console.encoding.lower().startswith("utf")
    parts: list[RenderableType] = [_head(stage, rows, " · " if utf else ", ")]
    parts += [Text(line, "bold yellow") for line in alarms(stage, rows)]
    available = max(1, (console.height - 1 - len(parts) - SAMPLE) // (ROWS + 2))
    drawn = [(names, title) for names, title in CURVES if any(name in row for row in rows for name in names)]
    if rows:
        parts.append(_charts(rows, drawn[: 2 * min(available, 4)], console.width, utf))
    parts += _samples(stage, console)
    return Group(*parts)


def _head(stage: StageReader, rows: Sequence[Mapping[str, Any]], dot: str) -> Text:
    config = stage.config
    kind = config.kind if config else ""
    facts = [
        f"{config.run if config else ''}/{stage.folder.name}" + (f" ({kind})" if kind != stage.folder.name else "")
    ]
    steps = _steps(stage)
    last = int(rows[-1]["step"]) if rows else 0
    facts.append(f"step {last:,} of {steps:,}" if steps else f"step {last:,}" if rows else "no step yet")
    seconds = [float(row["time/seconds"]) for row in rows if _finite(row.get("time/seconds"))]
    if seconds:
        facts.append(f"{duration(sum(seconds))} of steps")
    if (stage.folder / "done.json").exists():
        facts.append("finished")
    elif seconds and steps and steps > last:
        recent = seconds[-20:]
        facts.append(f"about {duration(sum(recent) / len(recent) * (steps - last))} left")
    speed = rows[-1].get("time/tokens_per_second") if rows else None
    if _finite(speed):
        facts.append(f"{speed:,.0f} tokens/s")
    return Text(plain(dot.join(facts)), "bold")


def _steps(stage: StageReader) -> int:
    """The steps that the stage will take; 0 where its settings do not have them (epochs)."""
    settings = flattened(dict(stage.config.settings)) if stage.config else {}
    steps = settings.get("steps")
    if not isinstance(steps, int) and (stage.folder / "done.json").exists() and stage.done is not None:
        steps = stage.done.result.get("steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) else 0


def alarms(stage: StageReader, rows: Sequence[Mapping[str, Any]], now: float | None = None) -> list[str]:
    """Lines about what needs a look: the stage's own alarms, a loss that is not finite, no step for long."""
    raised = read_alarms(stage.folder / "alarms.jsonl")
    found = [plain(f"! step {row['step']}: {row['text']}") for row in raised[-3:]]
    lost = [row["step"] for row in rows if "loss" in row and not _finite(row["loss"])]
    if lost:
        found.append(f"! the loss was not finite at step {lost[-1]:,}")
    if rows and not (stage.folder / "done.json").exists():
        seconds = sorted(float(row["time/seconds"]) for row in rows if _finite(row.get("time/seconds")))
        usual = seconds[len(seconds) // 2] if seconds else 0.0
        try:
            since = (time.time() if now is None else now) - (stage.folder / "metrics.jsonl").stat().st_mtime
        except OSError:
            since = 0.0
        if since > max(LEAST_SILENCE, SILENT * usual):
            found.append(f"! no step for {duration(since)}; a step usually takes {duration(usual)}: was it stopped?")
    return found


def _charts(
    rows: Sequence[Mapping[str, Any]], drawn: Sequence[tuple[Sequence[str], str]], width: int, utf: bool
) -> Table:
    across = 2 if width >= 60 else 1
    size = max(16, width // across - 3)
    grid = Table.grid(padding=(0, 3, 0, 0))
    cells = [_chart(rows, names, title, size, utf) for names, title in drawn]
    for start in range(0, len(cells), across):
        grid.add_row(*cells[start : start + across])
        grid.add_row("")
    return grid


def _chart(rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str, size: int, utf: bool) -> Group:
    name = next(name for name in names if any(name in row for row in rows))
    values = [float(row[name]) if _finite(row.get(name)) else None for row in rows if name in row]
    known = [value for value in values if value is not None]
    now = f"{known[-1]:.4g}" if known else "none"
    ends = f"{min(known):.3g} to {max(known):.3g}" if known else ""
    head = Text.assemble((f"{title} ", "bold"), (now, "cyan bold"), (f"  {ends}", "dim"))
    head.truncate(size)
    return Group(head, *(Text(line, "cyan") for line in chart(values, size, ROWS, braille=utf)))


def _samples(stage: StageReader, console: Console) -> list[RenderableType]:
    """The last prompt that the stage sampled, with its best and its worst response."""
    shown: list[tuple[str, str]] = []
    rows = _tail(stage.folder / "groups.jsonl")
    if rows:
        group = rows[-1]
        prompt = group.get("prompt") or {}
        messages = prompt.get("messages")
        shown.append(("prompt", str(messages[-1][1] if messages else prompt.get("text") or "")))
        pairs = zip(group.get("responses", []), group.get("scores") or [], strict=False)
        scored = sorted(((s, r) for r, s in pairs if _finite(s)), key=lambda one: -one[0])
        for score, response in scored[:1] + (scored[-1:] if len(scored) > 1 else []):
            shown.append((f"{score:+.2f}", str(response.get("text", ""))))
        step = group.get("step")
    else:
        logged = _tail(stage.folder / "samples.jsonl")
        if not logged:
            return []
        step = logged[-1].get("step")
        shown = [("prompt", str(logged[-1].get("prompt", ""))), ("answer", str(logged[-1].get("answer", "")))]
    utf = console.encoding.lower().startswith("utf")
    lines: list[RenderableType] = [Rule(f"sample, step {step}", align="left", characters="─" if utf else "-")]
    for label, text in shown:
        line = Text.assemble((f"{label:>7}  ", "dim"), plain(" ".join(text.split()) or "(empty)"))
        line.truncate(2 * console.width - 2, overflow="ellipsis" if utf else "crop")
        lines.append(line)
    return lines


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last complete rows of a file of JSON lines; [] without one."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            data = file.read()
    except OSError:
        return []
    rows = []
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    for line in (lines if len(data) == size else lines[1:])[-20:]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
