"""Whole files or no files: the one way to write a result."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under `path` whole, or not at all if anything fails (a full disk, a kill).

    What stood there before stays until the new file is complete and on the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)  # mkstemp makes files private; results are for sharing
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)  # the rename itself must survive a power cut


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Writes `data` so that a reader, or a crash, sees the old file or the new one and never a part."""
    with atomic_write(path, "wb") as file:
        file.write(data)
    return Path(path)


def sweep(folder: Path) -> None:
    """Removes what killed writes left below a folder; nobody else may be writing there."""
    for left in folder.rglob(".*.tmp"):
        left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
