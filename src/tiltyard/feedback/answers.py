"""Answers that were paid for, kept on disk: one line each, appended and synced before anybody uses it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tiltyard.errors import DataError
from tiltyard.runs.journal import whole_lines


def content_key(*parts: Any) -> str:
    """A name for a question: the hash of all that the answer depends on."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


class AnswerCache:
    """Answers by the hash of their question.

    A kill leaves at most a torn last line, which whoever opens the file or adds to it next cuts off. Several processes
    may share a file: each holds a lock while it writes; what others add is read when the file is opened.

    Args:
        path: a JSONL file; None keeps answers in memory alone.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.answers: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._held() as file:
                self._load(file, path)

    def get(self, key: str) -> dict[str, Any] | None:
        return self.answers.get(key)

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keeps an answer; when this returns it is on the disk."""
        line = (json.dumps({"key": key, "answer": answer}, ensure_ascii=True) + "\n").encode()
        with self._lock:
            if self.path is not None:
                with self._held() as file:
                    file.truncate(whole_lines(file))  # another process may have died in the middle of its line
                    file.seek(0, os.SEEK_END)
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            self.answers[key] = dict(answer)

    @contextlib.contextmanager
    def _held(self) -> Iterator[IO[bytes]]:
        assert self.path is not None
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            yield file

    def _load(self, file: IO[bytes], path: Path) -> None:
        file.seek(0)
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                row = json.loads(line)
                self.answers[str(row["key"])] = dict(row["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    "this line is no kept answer",
                    where=f"{path.name}:{number}",
                    got=f"{type(error).__name__}: {error}",
                    expected="a line that a judge wrote",
                    fix="delete the damaged line: its question will be asked again",
                ) from error
        file.truncate(whole)
