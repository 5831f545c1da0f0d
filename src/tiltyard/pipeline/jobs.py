"""Several stages of a run at a time, each in a worker process with its share of the cores, or with its own GPU.

    parent   starts the stages that are ready, reads results         worker   runs one stage after the other
             {"recipe": ..., "folder": ...}                  ---->
             {"stage": "dpo", "threads": 1, ...}             ---->
                                                             <----            {"stage": "dpo", "error": null}

Messages are lines of JSON. What a worker prints is printed by its parent with the stage's name before it. A worker
shares its parent's lock on the run folder and exits with it, so no stage of a dead run goes on writing.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from tiltyard import allocator, errors
from tiltyard.files import jsonable
from tiltyard.pipeline.recipe import Recipe

START = "import sys; from tiltyard.pipeline.worker import serve; serve(sys.stdin, sys.stdout)"
Message = dict[str, Any]


class WorkerPool:
    """Worker processes, each of which runs one stage at a time.

    Args:
        recipe, folder: what is run, and the run folder. jobs: how many workers. lock: the file whose lock they share.
    """

    def __init__(self, recipe: Recipe, folder: Path, jobs: int, lock: IO[str], console: Console):
        self.console, self.messages = console, queue.SimpleQueue[Message]()
        self.free: list[_Worker] = []
        self.busy: dict[str, _Worker] = {}
        init = {
            "recipe": jsonable(asdict(recipe)),
            "folder": str(folder),
            "width": console.width,
            "tune": allocator.keeps_freed_memory(),
        }
        for place in range(jobs):
            self.free.append(_Worker(init, _environment(place), lock, self))

    def start(self, stage: str, message: Message) -> None:
        """Starts a stage on a free worker."""
        worker = self.free.pop(0)
        self.busy[stage] = worker
        worker.stage = stage
        worker.send({"stage": stage, **message})

    def next_done(self) -> tuple[str, errors.TiltyardError | None]:
        """Waits for a stage to end; returns its name, and its error if it failed."""
        message = self.messages.get()
        stage = message["stage"]
        self.free.append(self.busy.pop(stage))
        return stage, _error(message["error"]) if message["error"] else None

    def close(self) -> None:
        """Ends all workers; a busy one is interrupted, and keeps what a Ctrl-C keeps."""
        for worker in self.busy.values():
            worker.process.send_signal(signal.SIGINT)
        for worker in (*self.busy.values(), *self.free):
            worker.close()


class _Worker:
    def __init__(self, init: Message, environment: Mapping[str, str], lock: IO[str], pool: WorkerPool):
        self.stage = ""
        self.pool = pool
        self.process = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=[lock.fileno()],
            start_new_session=True,  # a Ctrl-C reaches the parent alone, which interrupts each worker once
        )
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._listen, self._print)]
        for thread in self._threads:
            thread.start()
        self.send(init)

    def send(self, message: Message) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which `_listen` reports
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.stage = ""
            self.pool.messages.put(json.loads(line))
        code = self.process.wait()
        if self.stage:
            what = f"the process of '{self.stage}' ended with status {code}"
            fix = "the same command goes on from its last checkpoint; status -9 is often a lack of memory: fewer --jobs"
            self.pool.messages.put({"stage": self.stage, "error": {"kind": "TiltyardError", "what": what, "fix": fix}})

    def _print(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text := line.rstrip():
                self.pool.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        assert self.process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                if not self.stage:  # a busy worker takes the end of its input for its parent's death
                    self.process.stdin.close()
            self.process.wait()
        finally:
            self.process.kill()
        for thread in self._threads:
            thread.join(timeout=5)


def _environment(place: int) -> dict[str, str]:
    """The environment of a worker: one GPU each, where there are several."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return dict(os.environ)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(str(i) for i in range(count))
    gpus = seen.split(",")
    return os.environ | {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]}


def _error(message: Message) -> errors.TiltyardError:
    kind = getattr(errors, message.pop("kind"), errors.TiltyardError)
    error: errors.TiltyardError = kind(**message)
    return error


@contextlib.contextmanager
def worker_pool(recipe: Recipe, folder: Path, jobs: int, lock: IO[str], console: Console) -> Iterator[WorkerPool]:
    """WorkerPool that are gone at the end, however it comes."""
    pool = WorkerPool(recipe, folder, jobs, lock, console)
    try:
        yield pool
    finally:
        pool.close()
