"""The process that runs stages for a parent (`jobs`): requests and results are lines of JSON."""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from tiltyard import allocator, errors
from tiltyard.pipeline.recipe import Entry, Recipe
from tiltyard.pipeline.run import do_stage
from tiltyard.stopping import Stopped

Message = dict[str, Any]


def serve(requests: IO[str], results: IO[str]) -> None:
    """Runs the requested stages until the parent has no more; exits at once if the parent dies."""
    # results have a channel of their own: printed text must not come between them
    channel = os.fdopen(os.dup(results.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), results.fileno())
    waiting, busy = queue.SimpleQueue[Message | None](), threading.Event()
    threading.Thread(target=_read_requests, args=(requests, waiting, busy), daemon=True).start()
    init = waiting.get()
    if init is None:
        return
    if init["tune"]:
        allocator.keep_freed_memory()
    recipe, folder = _recipe(init["recipe"]), Path(init["folder"])
    while message := waiting.get():
        busy.set()
        console = Console(file=_Prefixed(message["stage"]), force_terminal=False, width=init["width"])
        error = None
        try:
            do_stage(recipe, folder, console, message)
        except (KeyboardInterrupt, Stopped):
            return  # sent by the parent, which waits for this process to exit
        except Exception as problem:
            error = _error_message(problem, message["stage"], folder)
        busy.clear()
        channel.write(json.dumps({"stage": message["stage"], "error": error}) + "\n")
        channel.flush()


class _Prefixed(io.StringIO):
    """Standard error with a stage's name before each line."""

    def __init__(self, stage: str):
        super().__init__()
        self.stage, self.begun = stage, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        sys.stderr.write("".join(f"{self.stage} | {line}\n" for line in lines if line.strip()))
        sys.stderr.flush()
        return len(text)


def _read_requests(requests: IO[str], waiting: queue.SimpleQueue[Message | None], busy: threading.Event) -> None:
    for line in requests:
        waiting.put(json.loads(line))
    if busy.is_set():  # the parent is dead: stop before anything more is written
        os._exit(1)
    waiting.put(None)


def _recipe(fields: Message) -> Recipe:
    entries = tuple(Entry(**entry) for entry in fields.pop("entries"))
    folder = fields.pop("folder")
    return Recipe(**fields, entries=entries, folder=Path(folder) if folder else None)


def _error_message(error: Exception, stage: str, folder: Path) -> Message:
    """The fields of an error, which the parent raises again."""
    if not isinstance(error, errors.TiltyardError):
        what = f"{type(error).__name__}: {error}"
        fix = f"the traceback is in {folder / stage / 'error.txt'}"
        return {"kind": "TiltyardError", "what": what, "where": stage, "fix": fix}
    words = {"what": error.what, "where": error.where, "fix": error.fix}
    for key in ("got", "expected"):
        if getattr(error, key) is not None:
            words[key] = str(getattr(error, key))
    return {"kind": type(error).__name__, **words}
