"""Calls of a user's function with a time limit: one after the other, or concurrently on an event loop.

The calls run in a daemon thread. One that hangs is left behind there: it can be named, and it cannot hang the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

GRACE = 2.0  # seconds beyond the limit in which an event loop may cancel a call


class Outcome(NamedTuple):
    """The end of a call: its value, or the exception, or neither in time. `call`: its index."""

    call: int
    value: Any = None
    error: BaseException | None = None
    timed_out: bool = False


def run_calls(
    calls: Sequence[Callable[[], Any]], *, is_async: bool, time_limit: float | None, max_concurrent: int
) -> Generator[Outcome, None, None]:
    """The outcome of each call, in the order in which they end; a call that hangs is the last outcome.

    Args:
        calls: functions without arguments. is_async: they return awaitables.
        time_limit: seconds a call may take; None: no limit, and plain functions run in the caller's thread.
        max_concurrent: awaitables that are awaited at the same time.
    """
    if time_limit is None and not is_async:
        for index, call in enumerate(calls):
            try:
                yield Outcome(index, call())
            except Exception as error:
                yield Outcome(index, error=error)
        return
    worker = _Worker(calls, is_async, time_limit, max_concurrent) if calls else None
    try:
        for _ in calls if worker else ():
            yield worker.next_outcome()  # type: ignore[union-attr]
    finally:
        if worker:
            worker.stop()


class _Worker:
    """The thread in which the calls run."""

    def __init__(
        self, calls: Sequence[Callable[[], Any]], is_async: bool, time_limit: float | None, max_concurrent: int
    ):
        self.calls, self.is_async, self.time_limit, self.max_concurrent = calls, is_async, time_limit, max_concurrent
        self.outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.last_begun = 0  # index of the call that began last
        self.stopped = threading.Event()
        self.cancel: Callable[[], object] = lambda: None
        run = contextvars.copy_context().run
        target = self._run_async if is_async else self._run_plain
        threading.Thread(target=run, args=(target,), daemon=True, name="tiltyard-calls").start()

    def next_outcome(self) -> Outcome:
        """The next call that ends; where none does, the one that began last has timed out."""
        # awaitables have a deadline each (`_awaited`); beyond it the loop itself is blocked
        wait = None if self.time_limit is None else self.time_limit + (GRACE if self.is_async else 0.0)
        try:
            return self.outcomes.get(timeout=wait)
        except queue.Empty:
            return Outcome(self.last_begun, timed_out=True)

    def stop(self) -> None:
        """No further call begins; awaitables are cancelled, a call that blocks is left to end by itself."""
        self.stopped.set()
        self.cancel()

    def _run_plain(self) -> None:
        for index, call in enumerate(self.calls):
            if self.stopped.is_set():
                return
            self.last_begun = index
            try:
                outcome = Outcome(index, call())
            except BaseException as error:
                outcome = Outcome(index, error=error)
            self.outcomes.put(outcome)

    def _run_async(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._gather())

    async def _gather(self) -> None:
        slots = asyncio.Semaphore(self.max_concurrent)

        async def one(index: int) -> None:
            async with slots:
                if not self.stopped.is_set():
                    self.last_begun = index
                    self.outcomes.put(await self._awaited(index))

        tasks = [asyncio.ensure_future(one(index)) for index in range(len(self.calls))]
        self.cancel = functools.partial(_cancel, asyncio.get_running_loop(), tasks)
        await asyncio.gather(*tasks)

    async def _awaited(self, index: int) -> Outcome:
        deadline = asyncio.timeout(self.time_limit)
        try:
            async with deadline:
                return Outcome(index, await self.calls[index]())
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return Outcome(index, timed_out=True) if deadline.expired() else Outcome(index, error=error)


def _cancel(loop: asyncio.AbstractEventLoop, tasks: Sequence[asyncio.Future[None]]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
