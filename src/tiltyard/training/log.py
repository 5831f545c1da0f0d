"""Sinks for metrics: a live line on the terminal, TensorBoard and W&B."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tiltyard.errors import MissingDependency

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes one step's metrics, already averaged."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Scalars for TensorBoard, in `folder`."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependency(
                "TensorBoard is not installed", where="log_to", fix="pip install 'tiltyard[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Scalars for Weights & Biases; nothing is sent unless the user adds this sink.

    Args:
        run_id: of W&B's run, which one with the same id goes on with.
    """

    def __init__(self, project: str, name: str, config: dict[str, Any], run_id: str = ""):
        self.failed = False
        try:
            import wandb
        except ImportError as error:
            raise MissingDependency(
                "W&B is not installed", where="log_to", fix="pip install 'tiltyard[wandb]'"
            ) from error
        resumed: dict[str, Any] = {"id": run_id, "resume": "allow"} if run_id else {}
        self._run = wandb.init(project=project, name=name, config=config, **resumed)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish(exit_code=int(self.failed))


@contextlib.contextmanager
def closing(sinks: Sequence[Sink]) -> Iterator[Sequence[Sink]]:
    """Closes all sinks at the end, also after an error, and also where closing one of them fails."""
    try:
        yield sinks
    except BaseException:
        for sink in sinks:
            if isinstance(sink, Wandb):
                sink.failed = True
        raise
    finally:
        for sink in sinks:
            try:
                sink.close()
            except Exception as error:
                log.warning("%s could not be closed: %s", type(sink).__name__, error)


SHOWN = (  # metrics of the live line, where a method has them: name, label, format
    ("loss", "loss", "{:.3f}"),
    ("accuracy", "acc", "{:.2f}"),
    ("score", "reward", "{:+.2f}"),
    ("kl_exact", "KL", "{:z.2f}"),  # z: no -0.00
    ("kl", "KL", "{:z.2f}"),  # where the exact one is not measured
    ("length", "len", "{:.0f}"),
)


T = TypeVar("T")
SILENT = 10.0  # seconds without a line on a pipe, where a step is shorter
LEAST = 2  # steps after the first one, which warms up, before the rest is estimated


class TimeLeft:
    """Estimates the time that the rest of some work takes, from the mean time of what was done since the first report.

    Args:
        total: units of the whole work. clock: in seconds.
        least: units after the first report before anything is estimated.
    """

    def __init__(self, total: int, least: int = LEAST, clock: Callable[[], float] = time.monotonic):
        self.total, self._least, self._clock = total, least, clock
        self._first: tuple[int, float] | None = None

    def after(self, done: int) -> str:
        """Returns the time left after `done` units ("12 min left"); "" where it is not known yet, and at the end."""
        now = self._clock()
        if self._first is None:
            self._first = (done, now)
        units, seconds = done - self._first[0], now - self._first[1]
        if units < self._least or done >= self.total:
            return ""
        return f"{duration(seconds / units * (self.total - done))} left"


def duration(seconds: float) -> str:
    """Formats a time for people: `40 s`, `12 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Tally:
    """Reports the progress of work that is done in pieces, a line every `every` seconds.

    Args:
        total: units of the whole work. tell: takes a line with the number of units so far and the time left.
    """

    def __init__(self, total: int, tell: Callable[[str], None], *, every: float = SILENT):
        self.total, self._tell, self._every = total, tell, every
        self._left, self._last, self._done = TimeLeft(total), time.monotonic(), 0

    def add(self, units: int = 1) -> None:
        """Counts units that are done."""
        self._done = min(self.total, self._done + units)
        now, rest = time.monotonic(), self._left.after(self._done)
        if now - self._last >= self._every and self._done < self.total:
            self._last = now
            self._tell(", ".join(filter(None, (f"{self._done:,} of {self.total:,}", rest))))


def told(items: Iterable[T], total: int, tell: Callable[[str], None], *, every: float = SILENT) -> Iterator[T]:
    """Yields the items and reports the progress (`Tally`)."""
    progress = Tally(total, tell, every=every)
    for item in items:
        yield item
        progress.add()


class LiveLine:
    """One live line: stage, step, tokens a second, loss, reward, KL, time left.

    On a pipe: every tenth of the steps, and every 10 s.
    """

    def __init__(self, console: Console, stage: str, steps: int):
        self.console, self.stage, self.steps = console, stage, steps
        self._every, self._left = max(1, steps // 10), TimeLeft(steps)
        self._told = False  # the time left, on a pipe
        self._last = time.monotonic()  # line on a pipe
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(stage, total=steps, facts="")

    def __enter__(self) -> LiveLine:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        facts = [f"{metrics.get('time/tokens_per_second', 0):,.0f} tok/s"]
        shown = [(label, form.format(metrics[name])) for name, label, form in SHOWN if name in metrics]
        facts += [f"{label} {text}" for i, (label, text) in enumerate(shown) if label not in dict(shown[:i])]
        left = self._left.after(step)
        line = "  ".join(filter(None, (*facts, left)))
        first, self._told = bool(left) and not self._told, self._told or bool(left)
        self._progress.update(self._task, completed=step, facts=line)
        silent = time.monotonic() - self._last >= SILENT
        if not self.console.is_terminal and (first or silent or step % self._every == 0 or step == self.steps):
            self._last = time.monotonic()
            self.console.print(f"{self.stage} {step}/{self.steps}  {line}", markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a metric that is not finite is written as null."""
    return {k: (v if math.isfinite(v) else None) for k, v in metrics.items()}
