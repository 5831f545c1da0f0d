"""`RunReader` and `StageReader`: readers of the files of a finished or unfinished run.

    runs/demo/                    a run
      summary.json                what the stage `evaluate` measured
      ppo/                        a stage
        config.json               its settings and fingerprint, written when it starts
        done.json                 its result, written when it ends
        metrics.jsonl             one line per step
        groups.jsonl              the sampled groups, each with its step
        alarms.jsonl              the alarms that training raised
        rounds/round-0000.groups.jsonl
        checkpoints/step-00000120

A process may be killed while it writes, so every reader accepts a folder with any of these files missing, and an
incomplete last line of a file that grows. Files that are written in one piece (`config.json`, `done.json`,
`summary.json`) cannot be incomplete unless something else damaged them: that is an error which names the file.
`config.json` and `done.json` carry the version of their schema; a newer one than this code knows is an error too.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.files import read_json
from tiltyard.runs.groups import read_groups, read_step_groups
from tiltyard.runs.ref import existing_path
from tiltyard.types import Group

log = logging.getLogger(__name__)

SCHEMA = 1  # of config.json and done.json; files without a version are of version 1


@dataclass(frozen=True)
class StageConfig:
    """`config.json`: the configuration that a stage was started with.

    Attributes:
        run, stage, kind: names of the run and the stage, and the stage's kind (e.g. `ppo`).
        settings: all of them, defaults included. neutral: those that cannot change the result.
        version: of the stage's code. files: digests of its input files, by the text that names them.
        inputs: the executions of the stages it read, by name. fingerprint: digest of all that its result depends on.
        id: of this execution; it stays when the stage is resumed. started: ISO time. tiltyard: the package's version.
    """

    run: str = ""
    stage: str = ""
    kind: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    neutral: tuple[str, ...] = ()
    version: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    id: str = ""
    started: str = ""
    tiltyard: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class StageDone:
    """`done.json`: the result of a finished stage. `seconds` is the time of its last attempt, unbroken or resumed."""

    result: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: bool = False
    fingerprint: str = ""
    id: str = ""
    finished: str = ""
    schema: int = SCHEMA


Record = TypeVar("Record", StageConfig, StageDone)


class StageReader:
    """Reads the folder of one stage; each file is read when it is first asked for.

    Args:
        folder: of the stage; it need not exist.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @cached_property
    def config(self) -> StageConfig | None:
        """The configuration that the stage was started with; None if it was never started.

        Raises:
            DataError: a damaged file. ConfigError: a file of a newer Tiltyard.
        """
        value = _read_object(self.folder / "config.json")
        return None if value is None else _record(StageConfig, value, self.folder / "config.json")

    @cached_property
    def done(self) -> StageDone | None:
        """The result of the stage; None if it did not finish. Raises as `config`."""
        value = _read_object(self.folder / "done.json")
        return None if value is None else _record(StageDone, value, self.folder / "done.json")

    @property
    def status(self) -> Literal["not started", "interrupted", "finished"]:
        """The progress of the stage. Raises as `config`."""
        if self.config is None:
            return "not started"
        return "interrupted" if self.done is None else "finished"

    def metric_rows(self) -> list[dict[str, Any]]:
        """Returns the metrics of each step in order; none if the stage wrote no `metrics.jsonl`.

        Raises:
            DataError: a broken line that is not the last.
        """
        path = self.folder / "metrics.jsonl"
        return read_metric_rows(path) if path.exists() else []

    def step_groups(self) -> Iterator[tuple[int, Group]]:
        """Yields (step, group) of the groups that were sampled at each step, counted from 1.

        Raises:
            DataError: the stage stored none, or a broken line that is not the last.
        """
        return read_step_groups(self.folder / "groups.jsonl")

    @property
    def rounds(self) -> list[int]:
        """Numbers of the rounds whose groups were stored, counted from 0."""
        paths = self.folder.glob("rounds/round-*.groups.jsonl")
        return sorted(int(n) for p in paths if (n := p.name[6:].partition(".")[0]).isdigit())

    def round_groups(self, number: int) -> list[Group]:
        """Returns the groups of one round.

        Raises:
            DataError: it was not stored.
        """
        return list(read_groups(self.folder / "rounds" / f"round-{number:04d}.groups.jsonl"))

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(int(p.name[5:]) for p in self.folder.glob("checkpoints/step-*") if p.name[5:].isdigit())

    @property
    def kept_models(self) -> dict[int, Path]:
        """Folders of the models that were kept along training (`models_every`), by their steps, ascending."""
        found = {int(p.name[5:]): p for p in self.folder.glob("models/step-*") if p.name[5:].isdigit()}
        return dict(sorted(found.items()))

    @property
    def model(self) -> Path | None:
        """The folder of the trained model; None if the stage made none."""
        path = self.folder / "model"
        return path if path.is_dir() else None


class RunReader:
    """Reads the folder of a run.

    Args:
        folder: of the run.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise _no_such_run(str(folder), self.folder.parent)

    @cached_property
    def stages(self) -> dict[str, StageReader]:
        """The stages that were started, in the order of their start. Raises as `StageReader.config`."""
        readers = [StageReader(p) for p in sorted(self.folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
        started = [(reader.config.started, reader) for reader in readers if reader.config is not None]
        return {reader.folder.name: reader for _, reader in sorted(started, key=lambda pair: pair[0])}

    def stage(self, name: str) -> StageReader:
        """Returns the reader of one stage.

        Raises:
            ConfigError: the run has none of that name.
        """
        if name not in self.stages:
            fix = nearest(name, self.stages) if self.stages else "no stage was started"
            raise ConfigError(f"the run has no stage '{name}'", where=str(self.folder), fix=fix)
        return self.stages[name]

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The summary that `evaluate` wrote; None if it has not finished.

        Raises:
            DataError: a damaged file.
        """
        return _read_object(self.folder / "summary.json")


def find_run(name: str, runs: Path = Path("runs")) -> Path:
    """Resolves a run's folder: a path, or a name below `runs`.

    Raises:
        ConfigError: there is none, or it is a stage of one.
    """
    for candidate in (name, str(runs / name)):
        path = existing_path(candidate)
        if path is None or not path.is_dir():
            continue
        if isinstance((read_json(path / "config.json") or {}).get("stage"), str):
            raise ConfigError(
                "this is one stage of a run", where=name, fix=f"name the run: {path.resolve().parent.name}"
            )
        return path
    raise _no_such_run(name, runs)


def _no_such_run(name: str, runs: Path) -> ConfigError:
    there = [p.name for p in sorted(runs.glob("[!.]*")) if p.is_dir()]
    fix = nearest(Path(name).name, there) if there else f"no run is in {runs} yet: run a recipe first"
    return ConfigError("there is no such run", where=name, expected="a folder like runs/NAME", fix=fix)


def read_metric_rows(path: str | Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics.jsonl.

    An incomplete last line (the run was killed, or is still writing) is skipped with a warning.

    Raises:
        DataError: an unreadable file, or a broken line that is not the last, with its `file:line`.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError("the metrics cannot be read", where=str(path), got=error.strerror) from error
    lines = text.split("\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                log.warning("%s:%d: the last line is incomplete and was skipped", path, number)
                break
            raise DataError("this is not a JSON object", where=f"{path}:{number}", got=line[:80]) from error
        if not isinstance(row, dict):
            raise DataError("this is not a JSON object", where=f"{path}:{number}", got=line[:80])
        rows.append(row)
    return rows


def read_alarms(path: str | Path) -> list[dict[str, Any]]:
    """Reads the alarms of a stage ({step, kind, text, ...} a line) in order; none if it raised none.

    Lines that are damaged or half-written are left out.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError:
        return []
    found = []
    for line in filter(None, lines):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("text"), str):
                found.append(row)
    return found


def read_metrics(path: str | Path) -> dict[str, list[Any]]:
    """Reads the columns of a metrics.jsonl, aligned by line (None where a line lacks the key).

    Raises:
        DataError: as `read_metric_rows`.
    """
    rows = read_metric_rows(path)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in keys}


def _read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file that is written in one piece; None if there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise _damaged(path, f"{type(value).__name__} in place of an object")
    return value


def _damaged(path: Path, got: object) -> DataError:
    return DataError(
        "the file is damaged",
        where=str(path),
        got=got,
        expected="a JSON object, as it was written",
        fix="restore the file, or remove the stage's folder to run the stage again",
    )


def _record(kind: type[Record], value: dict[str, Any], path: Path) -> Record:
    schema = value.get("schema", 1)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ConfigError(
            "this run was written by a newer Tiltyard",
            where=str(path),
            got=f"schema version {schema} (Tiltyard {value.get('tiltyard', 'unknown')})",
            expected=f"schema version {SCHEMA} or older",
            fix="upgrade Tiltyard, or use another folder for this run",
        )
    known = {name: value[name] for name in kind.__dataclass_fields__ if value.get(name) is not None}
    if isinstance(known.get("neutral"), list):
        known["neutral"] = tuple(known["neutral"])
    return kind(**known)
