"""Several stages of a run at a time, each in a worker: a process with its share of the cores, or a GPU of its own.

    parent   decides what is ready, starts it, reads results         worker   does one stage after the other
             {"recipe": ..., "folder": ...}                  ---->
             {"stage": "dpo", "threads": 1, ...}             ---->
                                                             <----            {"stage": "dpo", "error": null}

The two talk in lines of JSON. What a worker prints comes out through its parent, marked with the stage's name. A worker
shares its parent's lock on the run folder and ends with it, so no stage of a dead run goes on writing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from tiltyard import allocator, errors
from tiltyard.files import jsonable
from tiltyard.pipeline.recipe import Entry, Recipe, Step

START = "import sys; from tiltyard.pipeline.jobs import serve; serve(sys.stdin, sys.stdout)"
Message = dict[str, Any]


def ancestors(steps: Sequence[Step]) -> dict[str, set[str]]:
    """All stages that each stage needs, those of its inputs included."""
    found: dict[str, set[str]] = {}
    for step in steps:
        found[step.name] = set(step.uses).union(*(found[name] for name in step.uses))
    return found


def chains(steps: Sequence[Step]) -> dict[str, int]:
    """How many stages, each needing the one before, begin with each stage: long chains are begun first."""
    found = {step.name: 1 for step in steps}
    for step in reversed(steps):  # a stage stands after those it needs
        for name in step.uses:
            found[name] = max(found[name], found[step.name] + 1)
    return found


def threads_for(steps: Sequence[Step], jobs: int, cores: int) -> dict[str, int]:
    """How many threads each stage computes with: its share, or all where no other stage could ever run beside it.

    The recipe alone says so, not what happens to run: sums in another order would make another result each time.
    """
    needs = ancestors(steps)
    share = max(1, cores // jobs)
    return {
        one: cores if all(one == other or other in needs[one] or one in needs[other] for other in needs) else share
        for one in needs
    }


# ----------------------------------------------------------------------------------------------------- the parent


class Workers:
    """Args: where the stages run, how many at a time, the file whose lock the workers share."""

    def __init__(self, recipe: Recipe, folder: Path, jobs: int, lock: IO[str], console: Console):
        self.console, self.heard = console, queue.SimpleQueue[Message]()
        self.free: list[_Worker] = []
        self.busy: dict[str, _Worker] = {}
        hello = {
            "recipe": jsonable(asdict(recipe)),
            "folder": str(folder),
            "width": console.width,
            "tune": allocator.on(),
        }
        for place in range(jobs):
            self.free.append(_Worker(hello, _environment(place), lock, self))

    def start(self, stage: str, message: Message) -> None:
        """Gives a free worker this stage."""
        worker = self.free.pop(0)
        self.busy[stage] = worker
        worker.stage = stage
        worker.send({"stage": stage, **message})

    def next_done(self) -> tuple[str, errors.TiltyardError | None]:
        """Waits for a stage to end: its name, and what went wrong if anything did."""
        message = self.heard.get()
        stage = message["stage"]
        self.free.append(self.busy.pop(stage))
        return stage, _error(message["error"]) if message["error"] else None

    def close(self) -> None:
        """Ends all workers; one that is busy is interrupted, and keeps what a Ctrl-C keeps."""
        for worker in self.busy.values():
            worker.process.send_signal(signal.SIGINT)
        for worker in (*self.busy.values(), *self.free):
            worker.close()


class _Worker:
    def __init__(self, hello: Message, environment: Mapping[str, str], lock: IO[str], owner: Workers):
        self.stage = ""
        self.owner = owner
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
            start_new_session=True,  # a Ctrl-C reaches the parent alone, which tells the workers once
        )
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._listen, self._print)]
        for thread in self._threads:
            thread.start()
        self.send(hello)

    def send(self, message: Message) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which `_listen` says
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.stage = ""
            self.owner.heard.put(json.loads(line))
        code = self.process.wait()
        if self.stage:
            what = f"the process of '{self.stage}' ended with status {code}"
            fix = "the same command goes on from its last checkpoint; status -9 is often a lack of memory: fewer --jobs"
            self.owner.heard.put({"stage": self.stage, "error": {"kind": "TiltyardError", "what": what, "fix": fix}})

    def _print(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text := line.rstrip():
                self.owner.console.print(text, markup=False, highlight=False, soft_wrap=True)

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
    """A GPU for each worker, where there are several."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return dict(os.environ)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(str(i) for i in range(count))
    gpus = seen.split(",")
    return os.environ | {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]}


def _error(told: Message) -> errors.TiltyardError:
    kind = getattr(errors, told.pop("kind"), errors.TiltyardError)
    made: errors.TiltyardError = kind(**told)
    return made


@contextlib.contextmanager
def workers(recipe: Recipe, folder: Path, jobs: int, lock: IO[str], console: Console) -> Iterator[Workers]:
    """Workers that are gone at the end, however it comes."""
    made = Workers(recipe, folder, jobs, lock, console)
    try:
        yield made
    finally:
        made.close()


# ------------------------------------------------------------------------------------------------------ the worker


def serve(orders: IO[str], answers: IO[str]) -> None:
    """A worker's life: stages until its parent has no more; it ends at once if the parent dies."""
    from tiltyard.pipeline.run import do_stage

    # answers have a channel of their own: whatever is printed by the way must not come between them
    channel = os.fdopen(os.dup(answers.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), answers.fileno())
    waiting, busy = queue.SimpleQueue[Message | None](), threading.Event()
    threading.Thread(target=_orders, args=(orders, waiting, busy), daemon=True).start()
    hello = waiting.get()
    if hello is None:
        return
    if hello["tune"]:
        allocator.tune()
    recipe, folder = _recipe(hello["recipe"]), Path(hello["folder"])
    while message := waiting.get():
        busy.set()
        console = Console(file=_Marked(message["stage"]), force_terminal=False, width=hello["width"])
        error = None
        try:
            do_stage(recipe, folder, console, message)
        except KeyboardInterrupt:
            return  # the parent has sent it, and waits for this process to end
        except Exception as problem:
            error = _told(problem, message["stage"], folder)
        busy.clear()
        channel.write(json.dumps({"stage": message["stage"], "error": error}) + "\n")
        channel.flush()


class _Marked(io.StringIO):
    """Standard error with a stage's name before each line."""

    def __init__(self, stage: str):
        super().__init__()
        self.stage, self.begun = stage, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        sys.stderr.write("".join(f"{self.stage} | {line}\n" for line in lines if line.strip()))
        sys.stderr.flush()
        return len(text)


def _orders(orders: IO[str], waiting: queue.SimpleQueue[Message | None], busy: threading.Event) -> None:
    for line in orders:
        waiting.put(json.loads(line))
    if busy.is_set():  # the parent is dead, and what would be written now would be nobody's
        os._exit(1)
    waiting.put(None)


def _recipe(told: Message) -> Recipe:
    entries = tuple(Entry(**entry) for entry in told.pop("entries"))
    folder = told.pop("folder")
    return Recipe(**told, entries=entries, folder=Path(folder) if folder else None)


def _told(error: Exception, stage: str, folder: Path) -> Message:
    """An error in words, to be raised again by the parent."""
    if not isinstance(error, errors.TiltyardError):
        what = f"{type(error).__name__}: {error}"
        fix = f"the traceback is in {folder / stage / 'error.txt'}"
        return {"kind": "TiltyardError", "what": what, "where": stage, "fix": fix}
    words = {"what": error.what, "where": error.where, "fix": error.fix}
    for key in ("got", "expected"):
        if getattr(error, key) is not None:
            words[key] = str(getattr(error, key))
    return {"kind": type(error).__name__, **words}
