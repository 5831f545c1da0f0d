"""Limits of requests: token buckets for each address, each session, and wrong links."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_KEYS = 10_000  # buckets in memory; the least recently used goes first


class Bucket:
    """Buckets of `burst` tokens that fill with `rate` a second."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self.burst, self.clock = rate, burst, clock
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: str, cost: float = 1.0) -> float:
        """Takes `cost` tokens and returns 0, or the seconds until they are there, and takes none."""
        with self._lock:
            at = self.clock()
            left, last = self._held.pop(key, (self.burst, at))
            left = min(self.burst, left + (at - last) * self.rate)
            enough = left >= cost
            self._held[key] = (left - cost if enough else left, at)
            while len(self._held) > MOST_KEYS:
                self._held.popitem(last=False)
            return 0.0 if enough else (cost - left) / self.rate


class Limits:
    """The most that a visitor may do.

    Args:
        session: requests a second of one session, and `burst` at once.
        address: requests a second of one network address, behind which many people may sit.
        wrong: wrong links of one address: this number at once, then one in six seconds.
    """

    def __init__(
        self,
        session: float = 20.0,
        burst: float = 100.0,
        address: float = 500.0,
        wrong: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.sessions = Bucket(session, burst, clock)
        self.addresses = Bucket(address, 4 * address, clock)
        self.wrong_links = Bucket(1 / 6, wrong, clock)

    def wait(self, address: str, session: str) -> float:
        """Returns the seconds that a request has to wait; 0: none."""
        waits = [self.addresses.wait(address)]
        if session:
            waits.append(self.sessions.wait(session))
        return max(waits)
