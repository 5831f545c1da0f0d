"""Files: results are written whole or not at all; what a user brings is read with errors that name the file."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tiltyard.errors import DataError, TiltyardError


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under `path` complete, or not at all if anything fails (full disk, kill).

    The old content stays until the new file is complete and synced to disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        os.fchmod(handle, _usual_mode())  # mkstemp makes files private; results may be read by others
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk is told by the stream, which has no name
        raise
    sync_folder(path.parent)


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Writes `data` so that a reader, or a crash at any moment, finds the old file or the new one, never a part."""
    with atomic_write(path, "wb") as file:
        file.write(data)
    return Path(path)


def _usual_mode() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def give_usual_mode(folder: Path) -> None:
    """Sets the mode of a folder's files by the user's umask; safetensors writes them for their owner alone."""
    mode = _usual_mode()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def cache_home() -> Path:
    """The folder for what may be made again: TILTYARD_CACHE, or `tiltyard` in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("TILTYARD_CACHE", ""):
        return user_path(own).absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (user_path(shared) if shared else user_path("~/.cache")).absolute() / "tiltyard"


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


# ------------------------------------------------------------------------------------------------- what a user brings

HEAD = 512  # bytes that tell what a file is
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed data", "give its name the ending .gz, or unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed data", "unpack it: zstd -d FILE"),
    (b"\xfd7zXZ\0", "xz-compressed data", "unpack it: unxz FILE"),
    (b"BZh91AY&SY", "bzip2-compressed data", "unpack it: bunzip2 FILE"),
    (b"PK\3\4", "a ZIP archive", "unpack it: unzip FILE"),
    (b"PAR1", "a Parquet file", "give its name the ending .parquet"),
    (b"ARROW1", "an Arrow file", "load it with the package datasets and save it as Parquet or JSON lines"),
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
)


def foreign_format(head: bytes) -> tuple[str, str] | None:
    """Names what a file is whose first bytes are those of no UTF-8 text, and what to do; None if they may be one."""
    if _is_pointer(head):
        return "a Git LFS pointer: the file itself was not downloaded", "run `git lfs pull` in its repository"
    for signature, name, fix in _SIGNATURES:
        if head.startswith(signature):
            return name, fix
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page", "download the file itself (its raw link), not the page that shows it"
    start = head[:32]
    for low, order in ((1, "LE"), (0, "BE")):  # ASCII in 16 bits, without a byte-order mark
        if len(start) >= 4 and not any(start[low::2]) and all(start[1 - low :: 2]):
            return "UTF-16 text", f"convert it: iconv -f UTF-16{order} -t UTF-8"
    return None


def is_lfs_pointer(path: Path) -> bool:
    """True for a small text that stands for a file which Git LFS did not download."""
    try:
        with path.open("rb") as file:
            return _is_pointer(file.read(HEAD))
    except OSError:
        return False


def _is_pointer(head: bytes) -> bool:
    return head.startswith(b"version ") and b"git-lfs" in head.partition(b"\n")[0]


def user_path(text: str | Path) -> Path:
    """Returns a path that a user wrote, `~` resolved; one that no system can have (too long) stays as it is."""
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # a home that is not known
        path = path.expanduser()
    return path


def exists(path: Path) -> bool:
    """True for an existing file or folder; a text that can be no path (too long, a NUL character) is none.

    Raises:
        DataError: a folder on the way to it may not be searched.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as problem:
        if problem.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
            return False
        with reading(path):
            raise
    return True


@contextlib.contextmanager
def reading(path: str | Path, error: type[TiltyardError] = DataError) -> Iterator[None]:
    """Context: a file that the system refuses to read (no permission, a folder, a broken disk) is an `error`."""
    try:
        yield
    except OSError as problem:
        if isinstance(problem, TiltyardError):
            raise
        fixes: dict[type[OSError], str] = {
            PermissionError: f"give yourself the right to read it: chmod u+r {path}",
            IsADirectoryError: "name a file in this folder",
            FileNotFoundError: "check the path",
        }
        raise error(
            "the file cannot be read",
            where=str(path),
            got=problem.strerror or str(problem),
            expected="a file that you may read",
            fix=fixes.get(type(problem), "check the disk or the network share that it lies on"),
        ) from problem


def read_text(path: str | Path, error: type[TiltyardError] = DataError) -> str:
    """Reads a text that a user wrote, in UTF-8; a byte-order mark in front is left out.

    Raises:
        TiltyardError: of class `error`, if the file cannot be read or holds no UTF-8; it names the line.
    """
    with reading(path, error):
        data = Path(path).read_bytes()
    foreign = foreign_format(data[:HEAD])
    if foreign is not None:
        raise error("this is no text in UTF-8", where=str(path), got=foreign[0], expected="UTF-8", fix=foreign[1])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise not_utf8(data, problem, f"{path}:{line}", error) from problem


def not_utf8(
    data: bytes, problem: UnicodeDecodeError, where: str, error: type[TiltyardError] = DataError
) -> TiltyardError:
    """Returns the error for bytes that are not UTF-8; the column counts bytes of the line from 1."""
    column = problem.start - data.rfind(b"\n", 0, problem.start)
    return error(
        "the text is not UTF-8",
        where=where,
        got=f"byte {data[problem.start]:#04x} at column {column}",
        expected="UTF-8",
        fix="convert it: iconv -f latin1 -t utf-8",
    )


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
