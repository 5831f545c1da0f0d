"""A cache of paid answers on disk: one line each, appended and synced before it is used."""

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
    """Returns the key of a question: the hash of everything that its answer depends on."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


class AnswerCache:
    """Answers by the hash of their question.

    A kill leaves at most an incomplete last line, which is removed when the file is next opened or appended to. Several
    processes may share a file: each holds a lock while it writes, and reads the lines of the others when it opens it.

    Args:
        path: a JSONL file; None: answers stay in memory.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.answers: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as file:
                self._load(file, path)

    def get(self, key: str) -> dict[str, Any] | None:
        return self.answers.get(key)

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Stores an answer; it is synced to disk when this returns."""
        line = (json.dumps({"key": key, "answer": answer}, ensure_ascii=True) + "\n").encode()
        with self._lock:
            if self.path is not None:
                with self._locked() as file:
                    file.truncate(whole_lines(file))  # another process may have been killed while it wrote a line
                    file.seek(0, os.SEEK_END)
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            self.answers[key] = dict(answer)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
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
                    "this line is no stored answer",
                    where=f"{path.name}:{number}",
                    got=f"{type(error).__name__}: {error}",
                    expected="a line written by AnswerCache",
                    fix="delete the damaged line: its request will be sent again",
                ) from error
        file.truncate(whole)
