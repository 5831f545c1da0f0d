"""State of a run folder: `config.json` of a started stage, `done.json` of a finished one, and what to do about each."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Literal

from tiltyard.config import REQUIRED, describe
from tiltyard.errors import DataError, TiltyardError
from tiltyard.files import jsonable, read_json, sync_folder, write_json
from tiltyard.pipeline.commits import commits
from tiltyard.pipeline.recipe import Step
from tiltyard.records import execution_keys, flattened
from tiltyard.runs import StageConfig, StageReader, model_card
from tiltyard.runs.reader import SCHEMA

FORMAT = "1"  # of the run folder; raised when old results cannot be trusted any more
WHOLE = 64 * 2**20  # files up to this size are compared by content, larger ones by size, time and their beginning
Action = Literal["run", "resume", "skip"]


@dataclass(frozen=True)
class Decision:
    """The decision to run, resume or skip a stage, with the reason (one clause for the user)."""

    action: Action
    why: str


@dataclass(frozen=True)
class Fingerprint:
    """Digest of everything that a stage's result depends on, and the parts of it, so that a change can be named."""

    parts: Mapping[str, Any]
    digest: str


# -------------------------------------------------------------------------------------------------------- fingerprints


def fingerprint(step: Step, earlier: Mapping[str, Fingerprint], files: FileHashes) -> Fingerprint:
    """Computes a stage's fingerprint from its kind, settings, code version, input stages and input files."""
    settings = without(step.settings.model_dump(mode="json"), step.stage.neutral)
    parts = {
        "kind": step.stage.name,
        "settings": settings,
        "version": f"{FORMAT}.{step.stage.version}",
        "files": {text: files.digest(path) for text, path in step.inputs},
    }
    whole = {**parts, "stages": {name: earlier[name].digest for name in step.uses}}
    text = json.dumps(whole, sort_keys=True, default=str)
    return Fingerprint(parts, hashlib.sha256(text.encode()).hexdigest())


def without(settings: Mapping[str, Any], neutral: Collection[str]) -> dict[str, Any]:
    """The settings without those that cannot change the result; dotted keys name settings of records."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in neutral:
            inner = [name.partition(".")[2] for name in neutral if name.startswith(f"{key}.")]
            result[key] = without(value, inner) if inner and isinstance(value, Mapping) else value
    return result


class FileHashes:
    """Digests of input files and folders, cached by path, size and modification time."""

    def __init__(self, cache: Path | None = None):
        self.cache = cache
        self.known: dict[str, Any] = (read_json(cache) if cache else None) or {}
        self.fresh = False

    def digest(self, path: Path) -> str:
        """Returns the digest of a file, or of every file below a folder (names and contents)."""
        if path.is_file():
            return self._file(path)
        whole = hashlib.sha256()
        for inner in sorted(p for p in path.rglob("*") if p.is_file()):
            digest = model_card.card_digest(inner) if inner.name == model_card.NAME else self._file(inner)
            whole.update(f"{inner.relative_to(path)}\0{digest}\n".encode())
        return whole.hexdigest()

    def _file(self, path: Path) -> str:
        stat = path.stat()
        key, state = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        known = self.known.get(key)
        if isinstance(known, list) and known[:2] == state:
            return str(known[2])
        whole = hashlib.sha256(str(stat.st_size if stat.st_size <= WHOLE else state).encode())
        with path.open("rb") as file:
            left = WHOLE
            while left and (block := file.read(min(left, 2**20))):
                whole.update(block)
                left -= len(block)
        self.known[key] = [*state, whole.hexdigest()]
        self.fresh = True
        return whole.hexdigest()

    def save(self) -> None:
        """Writes the cache for the next run."""
        if self.cache and self.fresh:
            write_json(self.cache, self.known)


# ------------------------------------------------------------------------------------------------------------ deciding


def decide(step: Step, folder: Path, new: Fingerprint, ids: Mapping[str, str | None]) -> Decision:
    """Decides whether to skip, resume or run a stage.

    Args:
        step: the stage.
        folder: its folder.
        new: its fingerprint now.
        ids: the execution of every input stage; None for one that will run (again).

    Raises:
        ConfigError: the folder was written by a newer Tiltyard.
    """
    reader = StageReader(folder)
    try:
        old = reader.config
    except DataError:
        return Decision("run", "its config.json is damaged")
    if old is None:
        return Decision("run", "not run yet")
    reasons = differences(old, new.parts, step.stage.neutral, defaults(step))
    reasons += [
        f"its input '{name}' was re-run"
        for name, execution in ids.items()
        if execution is None or (name in old.inputs and old.inputs[name] != execution)
    ]
    if reasons:
        return Decision("run", "; ".join(reasons))
    try:
        done = reader.done
    except DataError:
        return Decision("resume", "its done.json is damaged")
    if done is not None:
        return Decision("skip", f"done ({duration(done.seconds)})")
    return Decision("resume", "; ".join(["interrupted before", *execution_changes(step, old)]))


def execution_changes(step: Step, old: StageConfig) -> list[str]:
    """Returns a clause that names the changed settings of execution; no clause where none changed."""
    now = flattened(jsonable(step.settings.model_dump(mode="json")))
    before, keys = (
        flattened(old.settings),
        (set(step.stage.neutral), set(execution_keys(step.stage.settings, bits=True))),
    )
    changed = [key for key in sorted(keys[0]) if key in before and key in now and before[key] != now[key]]
    if not changed:
        return []
    bits = ", which may change the last bits of its result" if keys[1].intersection(changed) else ""
    words = ", ".join(f"{key} {shortened(before[key])} -> {shortened(now[key])}" for key in changed)
    return [f"goes on with {words}{bits}"]


def differences(
    old: StageConfig, new: Mapping[str, Any], neutral: Collection[str] = (), usual: Mapping[str, Any] | None = None
) -> list[str]:
    """Returns what changed between a stage's stored config and the parts of its fingerprint now, a clause each.

    The parts are compared and not the digest, so a config that an earlier version wrote, which counted other settings
    as neutral, is the same where its settings are. `usual`: the defaults, see `changed_settings`.
    """
    changes = []
    if old.kind != new["kind"]:
        changes.append(f"its kind changed {old.kind} -> {new['kind']}")
    changes += changed_settings(old.settings, jsonable(new["settings"]), {*neutral, *old.neutral}, usual=usual)
    if old.version != new["version"]:
        changes.append(f"its code changed (version {old.version} -> {new['version']})")
    digests = new["files"]
    changes += [f"its file {name} changed" for name, digest in digests.items() if old.files.get(name, digest) != digest]
    if not changes and old.files.keys() != digests.keys():
        changes.append(f"it reads other files ({', '.join(sorted(old.files.keys() ^ digests.keys()))})")
    return changes


def defaults(step: Step) -> dict[str, Any]:
    """The default of every setting of a stage that has one, by its dotted key."""
    return {row.key: jsonable(row.default) for row in describe(step.stage.settings) if row.default is not REQUIRED}


def changed_settings(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    neutral: Collection[str],
    record: str = "",
    usual: Mapping[str, Any] | None = None,
) -> list[str]:
    """Returns a clause for each setting that differs, those of records and mappings by themselves.

    A setting that the earlier version did not have and that is at its default (`usual`) is no change: the default is
    what was done before. Where it is not, the stage's `version` is raised.
    """
    usual = usual or {}
    changes = []
    for name in sorted({*before, *now}):
        key = f"{record}{name}"
        if key in neutral:
            continue
        if name not in now:
            changes.append(f"the setting {key} is gone")
        elif name not in before:
            if key in usual and usual[key] == now[name]:
                continue
            changes.append(f"{key} is new ({shortened(now[name])})")
        elif isinstance(before[name], Mapping) and isinstance(now[name], Mapping):
            changes += changed_settings(before[name], now[name], neutral, f"{key}.", usual)
        elif before[name] != now[name]:
            changes.append(f"{key} changed {shortened(before[name])} -> {shortened(now[name])}")
    return changes


def shortened(value: Any) -> str:
    """Formats a setting's value for one line: texts bare, the rest as JSON, long ones cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def duration(seconds: float) -> str:
    """Formats seconds as `0.4 s`, `12 s`, `3 min 5 s` or `2 h 3 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ------------------------------------------------------------------------------------------------------ the run folder


def begin(
    step: Step, folder: Path, new: Fingerprint, *, decision: Decision, inputs: Mapping[str, str], run: str
) -> str:
    """Prepares the stage's folder and writes `config.json`; returns the execution's id, which a resumed one keeps."""
    if decision.action == "run":
        archive(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = StageReader(folder).config if decision.action == "resume" else None
    raw = (read_json(folder / "config.json") or {}) if old else {}
    kept: dict[str, Any] = {key: raw[key] for key in ("backend", "backend_changes") if key in raw}  # stages.backend
    execution = (old.id if old else "") or uuid.uuid4().hex
    config = {
        "schema": SCHEMA,
        "run": run,
        "stage": step.name,
        **new.parts,
        "settings": step.settings.model_dump(mode="json"),
        "neutral": list(step.stage.neutral),
        "inputs": dict(inputs),
        "fingerprint": new.digest,
        "id": execution,
        "started": (old.started if old else "") or _now().isoformat(timespec="seconds"),
        "tiltyard": package_version(),
        "commits": commits(),
        **kept,
    }
    write_json(folder / "config.json", config)
    return execution


def finish(
    folder: Path, new: Fingerprint, *, execution: str, result: Mapping[str, Any], seconds: float, resumed: bool
) -> None:
    """Writes `done.json`: the stage is finished. `seconds`: of its last attempt alone."""
    record = {
        "schema": SCHEMA,
        "result": result,
        "seconds": round(seconds, 3),
        "resumed": resumed,
        "fingerprint": new.digest,
        "id": execution,
        "finished": _now().isoformat(timespec="seconds"),
    }
    write_json(folder / "done.json", record)


def archive(folder: Path) -> Path | None:
    """Moves a stage's folder to `.old/STAGE-<time>`: no collected data are ever deleted. None if there was nothing."""
    if not folder.exists():
        return None
    if folder.is_dir() and not any(folder.iterdir()):
        return None
    archive_folder = folder.parent / ".old"
    archive_folder.mkdir(exist_ok=True)
    stamp = f"{folder.name}-{_now():%Y%m%d-%H%M%S}"
    target, count = archive_folder / stamp, 1
    while target.exists():
        count += 1
        target = archive_folder / f"{stamp}-{count}"
    folder.rename(target)
    sync_folder(archive_folder)
    sync_folder(folder.parent)
    return target


def execution_id(folder: Path) -> str | None:
    """Returns the id of the execution whose results are in a stage's folder."""
    config = StageReader(folder).config
    return config.id or None if config else None


@contextlib.contextmanager
def locked(run_folder: Path) -> Iterator[IO[str]]:
    """Locks the run folder; the lock ends with this process and with the children that inherit the file."""
    run_folder.mkdir(parents=True, exist_ok=True)
    with (run_folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise TiltyardError(
                f"another process ({owner}) is running this run",
                where=str(run_folder),
                fix="wait for it, or give this run another name: name=...",
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield file


def package_version() -> str:
    """Returns the installed version of Tiltyard."""
    try:
        return version("tiltyard")
    except PackageNotFoundError:
        return "unknown"


def _now() -> datetime:
    return datetime.now(UTC)
