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
    """Answers by the hash of their question, and what replies without a verdict cost (`spent`), which are no answers.

    `attempts` has what requests cost to which no completion came, refusals and lost connections
    included. `failed` has the keys of the questions without a verdict, those without a reply too: they are
    asked again.

    A kill leaves at most an incomplete last line, which is removed when the file is next opened or appended to. Several
    processes may share a file: each holds a lock while it writes, and reads the lines of the others when it opens it.

    Args:
        path: a JSONL file; None: answers stay in memory.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.answers: dict[str, dict[str, Any]] = {}
        self.spent: list[dict[str, Any]] = []
        self.attempts: list[dict[str, Any]] = []
        self.failed: set[str] = set()
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as file:
                self._load(file, path)

    def get(self, key: str) -> dict[str, Any] | None:
        return self.answers.get(key)

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Stores an answer; it is synced to disk when this returns."""
        with self._lock:
            self._append({"key": key, "answer": answer})
            self.answers[key] = dict(answer)

    def spend(self, key: str, costs: Mapping[str, Any]) -> None:
        """Stores what a question without a verdict cost: limits on the cost count it."""
        with self._lock:
            self._append({"key": key, "spent": costs})
            self.spent.append(dict(costs))
            self.failed.add(key)

    def attempt(self, key: str, costs: Mapping[str, Any]) -> None:
        """Stores what a request without a completion cost."""
        with self._lock:
            self._append({"key": key, "attempt": costs})
            self.attempts.append(dict(costs))

    def _append(self, row: Mapping[str, Any]) -> None:
        line = (json.dumps(row, ensure_ascii=True) + "\n").encode()
        if self.path is not None:
            with self._locked() as file:
                file.truncate(whole_lines(file))  # another process may have been killed while it wrote a line
                file.seek(0, os.SEEK_END)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())

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
                key = str(row["key"])
                if "answer" in row:
                    self.answers[key] = dict(row["answer"])
                elif "attempt" in row:
                    self.attempts.append(dict(row["attempt"]))
                else:
                    self.spent.append(dict(row["spent"]))
                    self.failed.add(key)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    "this line is no stored answer",
                    where=f"{path.name}:{number}",
                    got=f"{type(error).__name__}: {error}",
                    expected="a line written by AnswerCache",
                    fix="delete the damaged line: its request will be sent again",
                ) from error
        file.truncate(whole)
