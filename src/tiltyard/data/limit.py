"""Limits on the rows of a source: the first ones, or a sample of all.

A sample is the rows with the smallest keys, where a row's key is a digest of the seed and its place in the source. So
it depends on nothing that a row says, is the same in every process and version of Python, and a sample of 200 rows is
part of that of 400. The source is read twice, and memory grows with the sample alone.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar

T = TypeVar("T")
LimitBy = Literal["first", "sample"]


class Sample(NamedTuple):
    """A number of rows of the whole source, drawn with a seed."""

    rows: int
    seed: int

    def of(self, total: int) -> set[int]:
        """Returns the places of the rows drawn, counted from 0."""
        return set(heapq.nsmallest(self.rows, range(total), key=self._key))

    def _key(self, place: int) -> bytes:
        return hashlib.blake2b(f"{self.seed} {place}".encode(), digest_size=16).digest()


Limit = int | Sample | None  # the first rows, rows drawn from all, all


def limit_of(rows: int, by: LimitBy, seed: int) -> Limit:
    """Returns the limit that settings ask for; 0 rows are all."""
    if not rows:
        return None
    return Sample(rows, seed) if by == "sample" else rows


def limited(
    every: Callable[[], Iterable[T]], limit: Limit, told: Callable[[str], None] = lambda _: None
) -> Iterator[T]:
    """Returns the items that a limit selects, in their order.

    Args:
        every: opens the source; called a second time for a sample.
        told: takes a sentence on what was drawn, before the first item.
    """
    items = every()
    if isinstance(limit, Sample):
        return _drawn(items, every, limit, told)
    return iter(items) if limit is None else itertools.islice(items, limit)


def _drawn(
    items: Iterable[T], every: Callable[[], Iterable[T]], sample: Sample, told: Callable[[str], None]
) -> Iterator[T]:
    total = sum(1 for _ in items)
    chosen = sample.of(total)
    if len(chosen) < total:
        told(f"a sample of {len(chosen):,} of {total:,} rows, drawn with seed {sample.seed}")
    for place, item in enumerate(every()):
        if place in chosen:
            yield item
