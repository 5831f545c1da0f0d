"""Time and counts of a training step by part: `with record("forward"):` marks a part, a `Profiler` sums it up.

The loop and the sources are marked once and for all. Without an active profiler `record` does nothing. Inside
`with Profiler() as profiler:` each part counts exclusively: the time of an inner part is not the outer's too, so the
parts of a step add up to the step. A part's name may have two halves, `score/RefLogp`; the first is its kind.
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

STEP = "step"  # the outermost part: nothing outside of it is counted
REST = "overhead"  # the part of a step outside of any other part
Gauge = Callable[[], float]


@dataclass
class Step:
    """The measurements of one step.

    Attributes:
        parts: part -> the increase of each gauge in it, e.g. `{"forward": {"seconds": 0.2}}`.
        counts: what was counted in the step, e.g. `{"tokens": 2048.0}`.
    """

    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def total(self, gauge: str = "seconds") -> float:
        """Returns the whole step by one gauge."""
        return sum(part.get(gauge, 0.0) for part in self.parts.values())


class Profiler:
    """Measures the parts of each step while it is active (`with Profiler() as profiler:`).

    Args:
        gauges: name -> a function that never falls, read at the beginning and end of each part; `seconds` is added.
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
        self._token: Token[Profiler | None] | None = None

    def __enter__(self) -> Profiler:
        self._token = _active.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._token is not None:
            _active.reset(self._token)

    def begin(self, name: str) -> None:
        """Begins a part; the one around it pauses."""
        if not self._open and name != STEP:
            return
        self._charge()
        self._open.append(name)

    def end(self, name: str) -> None:
        """Ends the innermost part."""
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
        """Charges the gauges' increase since they were last read to the innermost part."""
        if self.ready is not None:
            self.ready()
        now = [gauge() for gauge in self.gauges.values()]
        if self._open:
            name = REST if self._open[-1] == STEP else self._open[-1]
            part = self._step.parts.setdefault(name, dict.fromkeys(self.gauges, 0.0))
            for gauge, before, after in zip(self.gauges, self._last, now, strict=True):
                part[gauge] += after - before
        self._last = now


_active: ContextVar[Profiler | None] = ContextVar("profiler", default=None)


@contextmanager
def record(name: str) -> Iterator[None]:
    """Marks a part of a step for the active profiler, if any."""
    profiler = _active.get()
    if profiler is None:
        yield
        return
    profiler.begin(name)
    try:
        yield
    finally:
        profiler.end(name)


def add_count(name: str, amount: float) -> None:
    """Adds to a count of the step for the active profiler, if any."""
    profiler = _active.get()
    if profiler is not None:
        profiler.count(name, amount)


def peak_memory_mib() -> float:
    """Returns this process's peak memory, MiB. Not `ru_maxrss` on Linux, which includes the parent's before exec."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
