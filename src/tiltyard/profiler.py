"""What a step takes: `with span("forward"):` says what is being done, a `Clock` adds it up part by part.

The loop and the sources are marked with spans once and for all. Where no clock runs a span does nothing. Inside
`with Clock() as clock:` each span counts for itself alone: what an inner span takes is not the outer's too, so the
parts of a step add up to the step. A part's name may have two halves, `score/RefLogp`; the first says of which kind.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

STEP = "step"  # the outermost span: nothing outside of it is counted
REST = "overhead"  # what a step does outside of any other span
Gauge = Callable[[], float]


@dataclass
class Step:
    """What one step took.

    Attributes:
        parts: part -> what each gauge rose by in it, e.g. `{"forward": {"seconds": 0.2}}`.
        counts: whatever was counted meanwhile, e.g. `{"tokens": 2048.0}`.
    """

    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def total(self, gauge: str = "seconds") -> float:
        """The whole step by one gauge."""
        return sum(part.get(gauge, 0.0) for part in self.parts.values())


class Clock:
    """Adds up what spans take, step by step, while it is the one that runs (`with Clock() as clock:`).

    Args:
        gauges: name -> what never falls, read where a span begins and ends; `seconds` is among them unless given.
        ready: called before the gauges are read, e.g. to wait for a GPU.

    Attributes:
        steps: one record for each whole step.
    """

    def __init__(self, gauges: Mapping[str, Gauge] | None = None, ready: Callable[[], None] | None = None):
        self.gauges: dict[str, Gauge] = {"seconds": time.perf_counter, **(gauges or {})}
        self.ready = ready
        self.steps: list[Step] = []
        self._open: list[str] = []
        self._last: list[float] = []
        self._step = Step()
        self._token: Token[Clock | None] | None = None

    def __enter__(self) -> Clock:
        self._token = _running.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._token is not None:
            _running.reset(self._token)

    def begin(self, name: str) -> None:
        """A span begins; the one around it pauses."""
        if not self._open and name != STEP:
            return
        self._charge()
        self._open.append(name)

    def end(self, name: str) -> None:
        """The innermost span ends."""
        if not self._open:
            return
        self._charge()
        self._open.pop()
        if name == STEP and not self._open:
            self.steps.append(self._step)
            self._step = Step()

    def count(self, name: str, amount: float) -> None:
        """Adds to a count of the step."""
        if self._open:
            self._step.counts[name] = self._step.counts.get(name, 0.0) + amount

    def _charge(self) -> None:
        """What the gauges rose by since they were last read is the innermost span's."""
        if self.ready is not None:
            self.ready()
        now = [gauge() for gauge in self.gauges.values()]
        if self._open:
            name = REST if self._open[-1] == STEP else self._open[-1]
            part = self._step.parts.setdefault(name, dict.fromkeys(self.gauges, 0.0))
            for gauge, before, after in zip(self.gauges, self._last, now, strict=True):
                part[gauge] += after - before
        self._last = now


_running: ContextVar[Clock | None] = ContextVar("clock", default=None)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Marks what is being done, for the clock that runs, if any."""
    clock = _running.get()
    if clock is None:
        yield
        return
    clock.begin(name)
    try:
        yield
    finally:
        clock.end(name)


def tally(name: str, amount: float) -> None:
    """Counts something of the step, for the clock that runs, if any."""
    clock = _running.get()
    if clock is not None:
        clock.count(name, amount)


def peak_memory_mib() -> float:
    """Most memory that this process ever held, MiB. On Linux not `ru_maxrss`: that one remembers the parent's, too."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 1024
