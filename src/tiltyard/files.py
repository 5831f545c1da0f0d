"""Files of results: written whole or not at all; JSON in and out."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under `path` complete, or not at all if anything fails (full disk, kill).

    The old content stays until the new file is complete and synced to disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)  # mkstemp makes files private; results may be read by others
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Writes `data` so that a reader, or a crash at any moment, finds the old file or the new one, never a part."""
    with atomic_write(path, "wb") as file:
        file.write(data)
    return Path(path)


def remove_partial_files(folder: Path) -> None:
    """Removes the temporary files of interrupted writes below a folder; no other process may be writing there."""
    for left in folder.rglob(".*.tmp"):
        left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Syncs a folder to disk, so that renames inside it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------------------------------------------------------- JSON


def jsonable(value: Any) -> Any:
    """Returns the plain JSON value of anything a stage may return: models, mappings, tuples, sets, arrays, paths.

    JSON has no NaN and no infinity: they become null.
    """
    if hasattr(value, "model_dump"):  # a pydantic model
        return jsonable(value.model_dump())
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if hasattr(value, "tolist"):  # an array or tensor
        return jsonable(value.tolist())
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON; after a crash at any moment the file is the old one or the new one."""
    write_atomic(path, (json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads the object in a JSON file; None if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None
