"""Kills that are certain to hit: a forked child dies by SIGKILL in a chosen call of a chosen function.

The child is forked after all imports, so an attempt takes the time of its work alone. Nothing of the product is
changed: the function is replaced in the child.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import tiltyard
from tiltyard.pipeline.run import _Run
from tiltyard.runs.journal import JsonlFile

Attempt = Callable[[], object]
PRODUCT = str(Path(tiltyard.__file__).parent)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(real: Any, *args: Any, **kwargs: Any) -> None:
    """Nothing of the fatal call is done."""


def after(real: Any, *args: Any, **kwargs: Any) -> None:
    """All of it is done."""
    real(*args, **kwargs)


def half_file(real: Any, tensors: Any, path: Path) -> None:
    """The first half of a file of tensors is written."""
    real(tensors, path)
    os.truncate(path, path.stat().st_size // 2)


def half_model(real: Any, model: Any, folder: Path, **how: Any) -> None:
    """A model of which only the first half of the weights is written."""
    real(model, folder, **how)
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    (folder / "config.json").unlink()


def half_row(real: Any, file: JsonlFile, rows: Any) -> None:
    """A line of a log without its end."""
    start = file.offset
    real(file, rows)
    os.truncate(file.path, max(start, file.offset - 7))


@dataclass(frozen=True)
class Place:
    """The `call`-th call of `owner.name` (of those with `when`, if given), and what is still done of it."""

    owner: Any
    name: str
    call: int = 1
    done: Callable[..., object] = before
    when: Callable[..., bool] | None = None

    def plant(self) -> None:
        real, left = getattr(self.owner, self.name), self.call

        def fatal(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= self.when is None or self.when(*args, **kwargs)
            if left:
                return real(*args, **kwargs)
            self.done(real, *args, **kwargs)
            return die()

        setattr(self.owner, self.name, fatal)


def forked(attempt: Attempt, prepare: Callable[[], object] = lambda: None) -> int:
    """The wait status of a child that makes the attempt."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        prepare()
        attempt()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def killed(attempt: Attempt, prepare: Callable[[], object]) -> None:
    """The attempt, which must die by SIGKILL and neither end nor fail by itself."""
    status = forked(attempt, prepare)
    assert os.WIFSIGNALED(status), f"it was not killed (wait status {status})"
    assert os.WTERMSIG(status) == signal.SIGKILL


@dataclass
class Calls:
    """Counts the calls of the product's functions in each stage of a recipe; at the `fatal`-th of `stage` it kills.

    The count of an uninterrupted run says how many there are: any place of the code may be chosen, and it is reached.
    """

    stage: str = ""
    fatal: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def plant(self) -> None:
        real, run = _Run.do, 0

        def seen(frame: FrameType, event: str, arg: object) -> None:  # the signature of sys.settrace
            nonlocal run
            if frame.f_code.co_filename.startswith(PRODUCT):
                run += 1
                if run == self.fatal:
                    die()

        def counted(recipe: _Run, step: Any) -> None:
            nonlocal run
            run = 0
            if self.stage in ("", step.name):
                sys.settrace(seen)
            try:
                real(recipe, step)
            finally:
                sys.settrace(None)
                self.counts[step.name] = run

        _Run.do = counted  # type: ignore[method-assign]
