"""Append-only JSON-lines files that survive a kill at any byte.

`JsonlFile` is one such file, which is truncated to a known offset when work resumes: the offset is in a checkpoint
(training), or in the state of a `Journal` (stages that work in blocks). A file where each line stands for itself and
that several processes share (the answers of a paid judge) drops an incomplete last line instead: `whole_lines`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from tiltyard.errors import CheckpointError
from tiltyard.files import read_json, write_json
from tiltyard.stopping import resumable, stop

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    P = TypeVar("P", bound=DataclassInstance)
else:
    P = TypeVar("P")

Row = Mapping[str, Any] | bytes  # bytes: a whole line, its end included
FORMAT = 1


class JsonlFile:
    """An append-only JSONL file that can be truncated to an earlier `offset`, in bytes."""

    def __init__(self, path: Path):
        self.path = path
        with _disk_errors(self.path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)  # unbuffered: closing after a full disk must not fail again

    @property
    def offset(self) -> int:
        return self._file.tell()

    def truncate(self, offset: int) -> None:
        """Removes the lines after `offset`: they will be written again, the same.

        Raises:
            CheckpointError: the file is shorter than that, or no line ends there.
        """
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            file.seek(max(0, offset - 1))
            ends_a_line = offset == 0 or file.read(1) == b"\n"
        if size < offset or not ends_a_line:
            raise CheckpointError(
                "the file lost lines that the run counts on",
                where=str(self.path),
                got=f"{size} bytes" if size < offset else f"no line that ends at byte {offset}",
                expected=f"at least {offset} bytes, as they were written",
                fix="put the file back, or remove the stage's folder to start again",
            )
        self._file.truncate(offset)
        self._file.seek(0, os.SEEK_END)

    def write(self, rows: Iterable[Row]) -> None:
        """Appends the rows, one a line; all are encoded before the first is written."""
        left = memoryview(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
        with _disk_errors(self.path):
            while left:
                left = left[self._file.write(left) :]

    def sync(self) -> None:
        with _disk_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def length_before(path: Path, step: int) -> int:
    """Returns the length in bytes of the complete lines of earlier steps: an interrupted attempt may have left more."""
    length = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] >= step:
                break
            length += len(line)
    return length


class Journal(Generic[P]):
    """JSON-lines files that grow together, block by block, with the progress that belongs to them.

    `commit` appends a block to the files, syncs them, and then replaces `progress.json` in one atomic move: it holds
    the lengths of the files and the caller's progress. Opening truncates the files to the last commit. So a kill at
    any byte loses the block under way and nothing else, and work that is resumed leaves the bytes of work that was
    never interrupted.

    Args:
        folder: where the files are.
        files: their names; they exist, if empty, from here on.
        start: the progress before the first block, a dataclass of JSON values; `progress` is a copy that the caller
            updates before each commit.

    Raises:
        CheckpointError: the folder does not hold what its last commit says, or it is of another version.
    """

    def __init__(self, folder: Path, files: Sequence[str], start: P):
        self.state = folder / "progress.json"
        lengths, self.progress = self._read(start)
        unknown = lengths.keys() - set(files)
        if unknown:
            raise self._unfit(f"lengths of {', '.join(sorted(unknown))}", f"those of {', '.join(files)}")
        self.files = {name: JsonlFile(folder / name) for name in files}
        for name, file in self.files.items():
            file.truncate(lengths.get(name, 0))
        self.resumed = bool(lengths)
        self._safe = ExitStack()
        self._safe.enter_context(resumable())

    def commit(self, block: Mapping[str, Iterable[Row]]) -> None:
        """Appends a block's rows, by the name of their file, and makes them and `progress` permanent.

        Raises:
            CheckpointError: the disk is full. The block is not committed.
            Stopped: a signal asked for it; the block is committed.
        """
        for name, rows in block.items():
            self.files[name].write(rows)
            self.files[name].sync()
        lengths = {name: file.offset for name, file in self.files.items()}
        with _disk_errors(self.state):
            write_json(self.state, {"format": FORMAT, "files": lengths, "progress": asdict(self.progress)})
        stop()

    def _read(self, start: P) -> tuple[dict[str, int], P]:
        """(length of each file in bytes, progress) of the last commit."""
        if not self.state.exists():
            return {}, type(start)(**asdict(start))
        value = read_json(self.state) or {}
        if value.get("format") != FORMAT:
            raise self._unfit(f"format {value.get('format')}", f"format {FORMAT}")
        if value["progress"].keys() != asdict(start).keys():
            raise self._unfit(f"progress with {', '.join(value['progress'])}", ", ".join(asdict(start)))
        return value["files"], type(start)(**value["progress"])

    def _unfit(self, got: str, expected: str) -> CheckpointError:
        return CheckpointError(
            "the progress in this folder was written by another version of this stage",
            where=str(self.state),
            got=got,
            expected=expected,
            fix="remove the stage's folder to start again",
        )

    def close(self) -> None:
        self._safe.close()
        for file in self.files.values():
            file.close()

    def __enter__(self) -> Journal[P]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            "the file could not be written",
            where=str(path),
            got=str(error),
            fix="free some disk space and run the same command again: it resumes where it stopped",
        ) from error


def whole_lines(stream: IO[bytes]) -> int:
    """Returns the length in bytes of a file up to the end of its last complete line."""
    end = stream.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        stream.seek(start)
        newline = stream.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
