"""SIGTERM and Ctrl-C: the work under way stops at its next safe point, with everything that it has made so far.

The pipeline installs the handlers (`installed`). Work that has safe points is `resumable` and asks at each of them
(`requested`): the loop of `fit` after each step, a `Journal` after each block. Elsewhere a signal stops at once,
and a second one everywhere. A run that was stopped ends with 128 + the signal: 143 for SIGTERM, 130 for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME = 0.5  # seconds in which a second signal is the same one: torchrun and `timeout` send it to us and to our group


class Stopped(SystemExit):
    """The run was stopped by a signal; a process that does not catch it ends with `status`.

    No `KeyboardInterrupt`: what reads command lines would make another status of that.
    """

    def __init__(self, number: int):
        self.number = number
        super().__init__(self.status)

    @property
    def status(self) -> int:
        """128 + the signal."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


class _State:
    """Of this process: signals are sent to processes and not to what they work on."""

    number = 0  # the signal that was received; 0: none
    when = 0.0
    depth = 0  # pieces of work with safe points that are under way


def requested() -> int:
    """Returns the number of the signal that was received and not yet obeyed; 0: none."""
    return _State.number


def stop() -> None:
    """Obeys a signal; called at safe points, where everything before is stored.

    Raises:
        Stopped: it does.
    """
    if _State.number:
        raise Stopped(_State.number)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """The work inside has safe points: a signal is kept for the next one."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1


@contextlib.contextmanager
def installed(*, say: bool = True) -> Iterator[None]:
    """Handles SIGTERM and Ctrl-C inside; signals that this process ignores stay ignored.

    Args:
        say: a line on standard error when a signal is kept for the next safe point.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - protocol
        now = time.monotonic()
        if _State.number and now - _State.when < SAME:
            return
        first = not _State.number
        _State.number, _State.when = number, now
        if not (first and _State.depth):
            raise Stopped(number)
        if say:
            name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
            os.write(2, f"\n{name}: stopping at the end of this step, with a checkpoint; again stops now\n".encode())

    taken = [number for number, old in before.items() if old != signal.SIG_IGN]
    outer = _State.number, _State.depth
    _State.number, _State.depth = 0, 0
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
        _State.number, _State.depth = outer
