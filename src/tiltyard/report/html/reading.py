"""Tolerant reading of what a run left: what cannot be read is left out and noted, never an error of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

from tiltyard.errors import TiltyardError
from tiltyard.runs import RunReader, StageReader

T = TypeVar("T")
DIGITS = 5  # significant digits of a number in the page


@dataclass
class Source:
    """One run as the report reads it.

    Attributes:
        name: in the report; of several runs of one name, with their folder. stages: those that were started, in order.
        notes: what could not be read, or is missing, in sentences.
        several: whether the report shows other runs too; names of stages and models then begin with the run's.
    """

    folder: Path
    name: str
    stages: dict[str, StageReader]
    notes: list[str] = field(default_factory=list)
    several: bool = False

    def label(self, name: str) -> str:
        """The name of a stage or model in the report."""
        return f"{self.name}/{name}" if self.several else name

    def attempt(self, what: str, otherwise: T, read: Callable[..., T], *args: Any) -> T:
        """Returns `read(*args)`; `otherwise`, with a note, if the file is damaged or cannot be read."""
        try:
            return read(*args)
        except (TiltyardError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            self.notes.append(f"{self.label(what)} could not be read and is left out: {_reason(error)}.")
            return otherwise


def open_runs(folders: list[Path]) -> list[Source]:
    """Opens the runs; a stage whose `config.json` is damaged is noted and left out.

    Raises:
        ConfigError: a folder that does not exist.
    """
    readers = [RunReader(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    sources = []
    for reader, name in zip(readers, names, strict=True):
        twice = names.count(name) > 1
        called = "/".join(reader.folder.resolve().parts[-2:]) if twice else name
        sources.append(Source(reader.folder, called, {}, several=len(folders) > 1))
        sources[-1].stages = _stages(sources[-1])
    return sources


def _stages(source: Source) -> dict[str, StageReader]:
    found = []
    for path in sorted(source.folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            reader = StageReader(path)
            config = source.attempt(f"{path.name}/config.json", None, lambda reader: reader.config, reader)
            if config is not None:
                found.append((str(config.started), path.name, reader))
    return {name: reader for _, name, reader in sorted(found, key=lambda one: one[:2])}


def done_of(source: Source, reader: StageReader) -> tuple[dict[str, Any], float, str]:
    """Returns (result, seconds, time of the end) of a stage; ({}, 0, "") of one that did not finish."""
    done = source.attempt(f"{reader.folder.name}/done.json", None, lambda: reader.done)
    if done is None:
        return {}, 0.0, ""
    result = dict(done.result) if isinstance(done.result, Mapping) else {}
    return result, number(done.seconds) or 0.0, str(done.finished)


def json_lines(path: Path) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Yields (object, bytes) of each line; (None, bytes) of a line that is no object, e.g. half of one."""
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield (value if isinstance(value, dict) else None), len(line)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def rounded(value: Any) -> float | int | None:
    """A number with the digits that the page keeps; None for what is no finite number."""
    x = number(value)
    if x is None:
        return None
    if x == int(x) and abs(x) < 1e15:
        return int(x)
    return float(f"{x:.{DIGITS}g}")


def estimate(value: Any, interval: Any = None, n: Any = None) -> dict[str, Any] | None:
    """{v, lo, hi, n} of a number and its interval; None without a number."""
    if (v := rounded(value)) is None:
        return None
    ends = list(interval) if isinstance(interval, list | tuple) and len(interval) == 2 else [None, None]
    low, high = rounded(ends[0]), rounded(ends[1])
    found = {"v": v, **({"lo": low, "hi": high} if low is not None and high is not None else {})}
    return found | ({"n": rounded(n)} if number(n) is not None else {})


def estimate_of(row: Any) -> dict[str, Any] | None:
    """The same of {value, low, high, n}, as estimates are written to files."""
    if not isinstance(row, Mapping):
        return estimate(row)
    return estimate(row.get("value"), (row.get("low"), row.get("high")), row.get("n"))


def text_of(value: Any, limit: int = 0) -> str:
    """A text as it can be shown: lone surrogates replaced; `limit`: characters, 0 for all."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if not limit or len(text) <= limit else f"{text[:limit]}…"


def short(value: str) -> str:
    """A path of the machine as its last parts; anything else as it is."""
    path = PurePath(value)
    if not path.is_absolute() or len(path.parts) < 2:
        return value
    parts = path.parts[:-1] if path.name == "model" and len(path.parts) > 2 else path.parts
    return f"…/{'/'.join(parts[-2:])}" if len(parts) > 2 else value


def _reason(error: Exception) -> str:
    if isinstance(error, TiltyardError):
        return str(error).split("\n", 1)[0].removesuffix(".")
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"it has not the form that Tiltyard writes ({type(error).__name__}: {str(error)[:120]})"
