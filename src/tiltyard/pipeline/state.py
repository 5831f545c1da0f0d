"""What a run folder remembers: `config.json` when a stage starts, `done.json` when it ends, and what that implies."""

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

from tiltyard.errors import TiltyardError
from tiltyard.files import jsonable, read_json, sync_folder, write_json
from tiltyard.pipeline.recipe import Step

FORMAT = "1"  # of the run folder; raised when old results cannot be trusted any more
WHOLE = 64 * 2**20  # files up to this size are compared by content, larger ones by size, time and their beginning
Action = Literal["run", "resume", "skip"]


@dataclass(frozen=True)
class Decision:
    """What happens to a stage, and why (one clause for the user)."""

    action: Action
    why: str


@dataclass(frozen=True)
class Print:
    """A fingerprint and its parts, so that a change can be named."""

    parts: Mapping[str, Any]
    digest: str


# -------------------------------------------------------------------------------------------------------- fingerprints


def fingerprint(step: Step, earlier: Mapping[str, Print], files: FileHashes) -> Print:
    """Everything a stage's result depends on: kind, settings, code version, input stages and files."""
    settings = {k: v for k, v in step.settings.model_dump(mode="json").items() if k not in step.stage.neutral}
    parts = {
        "kind": step.stage.name,
        "settings": settings,
        "version": f"{FORMAT}.{step.stage.version}",
        "files": {text: files.digest(path) for text, path in step.inputs},
    }
    whole = {**parts, "stages": {name: earlier[name].digest for name in step.uses}}
    text = json.dumps(whole, sort_keys=True, default=str)
    return Print(parts, hashlib.sha256(text.encode()).hexdigest())


class FileHashes:
    """Digests of input files and folders, remembered by path, size and time of change."""

    def __init__(self, cache: Path | None = None):
        self.cache = cache
        self.known: dict[str, Any] = (read_json(cache) if cache else None) or {}
        self.fresh = False

    def digest(self, path: Path) -> str:
        """The digest of a file, or of every file below a folder (names and contents)."""
        if path.is_file():
            return self._file(path)
        whole = hashlib.sha256()
        for inner in sorted(p for p in path.rglob("*") if p.is_file()):
            whole.update(f"{inner.relative_to(path)}\0{self._file(inner)}\n".encode())
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
        """Keep the digests for the next run."""
        if self.cache and self.fresh:
            write_json(self.cache, self.known)


# ------------------------------------------------------------------------------------------------------------ deciding


def decide(step: Step, folder: Path, new: Print, ids: Mapping[str, str | None]) -> Decision:
    """Skip, resume or run a stage.

    Args:
        step: the stage.
        folder: where it keeps its things.
        new: its fingerprint now.
        ids: the execution of every input stage; None for one that will run (again).
    """
    old = read_json(folder / "config.json")
    if old is None:
        return Decision("run", "not run yet")
    done = read_json(folder / "done.json")
    reasons = differences(old, new.parts, step.stage.neutral)
    was = old.get("inputs") or {}
    reasons += [f"its input '{n}' was re-run" for n, i in ids.items() if i is None or (n in was and was[n] != i)]
    if not reasons and old.get("fingerprint") != new.digest:
        reasons = ["what it depends on changed"]
    if reasons:
        return Decision("run", "; ".join(reasons))
    if done is None:
        return Decision("resume", "interrupted before")
    return Decision("skip", f"done ({duration(done.get('seconds', 0.0))})")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], neutral: Collection[str] = ()) -> list[str]:
    """What changed between a stage's stored config and the parts of its fingerprint now, in words."""
    found = []
    if old.get("kind") != new["kind"]:
        found.append(f"its kind changed {old.get('kind')} -> {new['kind']}")
    before, now = old.get("settings") or {}, jsonable(new["settings"])
    for key in sorted({*before, *now} - {*neutral, *(old.get("neutral") or ())}):
        if key not in now:
            found.append(f"the setting {key} is gone")
        elif key not in before:
            found.append(f"{key} is new ({shortened(now[key])})")
        elif before[key] != now[key]:
            found.append(f"{key} changed {shortened(before[key])} -> {shortened(now[key])}")
    if old.get("version") != new["version"]:
        found.append(f"its code changed (version {old.get('version')} -> {new['version']})")
    files = old.get("files") or {}
    found += [f"its file {name} changed" for name, d in new["files"].items() if name in files and files[name] != d]
    return found


def shortened(value: Any) -> str:
    """A setting's value on a line: texts bare, the rest as JSON, long ones cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 5 s`, `2 h 3 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ------------------------------------------------------------------------------------------------------ the run folder


def begin(step: Step, folder: Path, new: Print, *, decision: Decision, inputs: Mapping[str, str], run: str) -> str:
    """Make the stage's folder ready and write `config.json`; the id of this execution (kept when it resumes)."""
    if decision.action == "run":
        retire(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = read_json(folder / "config.json") if decision.action == "resume" else None
    execution = str((old or {}).get("id") or uuid.uuid4().hex)
    config = {
        "run": run,
        "stage": step.name,
        **new.parts,
        "settings": step.settings.model_dump(mode="json"),
        "neutral": list(step.stage.neutral),
        "inputs": dict(inputs),
        "fingerprint": new.digest,
        "id": execution,
        "started": (old or {}).get("started") or _now().isoformat(timespec="seconds"),
        "tiltyard": package_version(),
    }
    write_json(folder / "config.json", config)
    return execution


def finish(
    folder: Path, new: Print, *, execution: str, result: Mapping[str, Any], seconds: float, resumed: bool
) -> None:
    """Write `done.json`: from now on the stage is skipped. `seconds` are those of the last, unbroken attempt."""
    record = {
        "result": result,
        "seconds": round(seconds, 3),
        "resumed": resumed,
        "fingerprint": new.digest,
        "id": execution,
        "finished": _now().isoformat(timespec="seconds"),
    }
    write_json(folder / "done.json", record)


def retire(folder: Path) -> Path | None:
    """Move what a stage left to `.old/STAGE-<time>`: nothing that was collected is ever deleted."""
    if not folder.exists():
        return None
    if folder.is_dir() and not any(folder.iterdir()):
        return None
    attic = folder.parent / ".old"
    attic.mkdir(exist_ok=True)
    stamp = f"{folder.name}-{_now():%Y%m%d-%H%M%S}"
    target, count = attic / stamp, 1
    while target.exists():
        count += 1
        target = attic / f"{stamp}-{count}"
    folder.rename(target)
    sync_folder(attic)
    sync_folder(folder.parent)
    return target


def execution_id(folder: Path) -> str | None:
    """The id of the execution whose results stand in a stage's folder."""
    identity = (read_json(folder / "config.json") or {}).get("id")
    return str(identity) if identity else None


@contextlib.contextmanager
def locked(run_folder: Path) -> Iterator[IO[str]]:
    """Hold the run folder for this process alone; the lock dies with the process, and those it gave the file to."""
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
    """The installed version of Tiltyard."""
    try:
        return version("tiltyard")
    except PackageNotFoundError:
        return "unknown"


def _now() -> datetime:
    return datetime.now(UTC)
