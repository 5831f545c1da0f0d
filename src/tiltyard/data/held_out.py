"""Held-out prompts: which prompts of a data set are kept from training, and which rows stand for them."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

_ROUNDS = 2  # a data set of fewer prompts cannot be parted


class Parts(NamedTuple):
    """Places of the rows of each part, in the order of the file, and the first row of each held-out prompt."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    prompts: tuple[int, ...]


def part_by_prompt(
    keys: Sequence[Hashable], share: float, most_prompts: int, most_rows: int, limit: int, seed: int
) -> Parts:
    """Parts rows so that no prompt is in both parts.

    Held-out prompts are drawn with the seed by their order of first appearance; of their rows the first of every prompt
    is taken, then the second of every one, and so on, so that a limit keeps as many prompts as it can.

    Args:
        keys: of each row, equal for rows of one prompt.
        share: of the prompts that is held out; at least one is, and at least one is left.
        most_prompts, most_rows: held-out prompts and rows at most; 0: no limit.
        limit: training rows, a sample of all; 0: all.
    """
    number: dict[Hashable, int] = {}
    rows: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        rows.setdefault(number.setdefault(key, len(number)), []).append(place)
    if len(number) < _ROUNDS:
        return Parts(tuple(range(len(keys))), (), ())
    count = min(max(1, round(share * len(number))), len(number) - 1)
    count = min(count, most_prompts) if most_prompts else count
    chosen = sorted(sorted(rows, key=lambda n: _draw(seed, "prompt", n))[:count])
    queues = [sorted(rows[n], key=lambda place: _draw(seed, "row", place)) for n in chosen]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    held = set(turns[: most_rows or len(turns)])
    out = {place for queue in queues for place in queue}
    left = [place for place in range(len(keys)) if place not in out]
    if limit and limit < len(left):
        left = sorted(sorted(left, key=lambda place: _draw(seed, "train", place))[:limit])
    return Parts(tuple(left), tuple(sorted(held)), tuple(min(rows[n]) for n in chosen))


def _draw(seed: int, what: str, number: int) -> bytes:
    return hashlib.blake2b(f"{seed} {what} {number}".encode(), digest_size=16).digest()
