"""The sizes of a run's steps, counted from the rows that were read, whose order is known before it starts."""

from __future__ import annotations

from typing import NamedTuple

from tiltyard.inputs.base import Opened
from tiltyard.training.source import Offline, Online

LOOK = 2000  # steps that are counted at most


class Lengths(NamedTuple):
    """Packed tokens of the largest step and of the largest micro-batch, the most micro-batches of a step, and the
    longest prompt where responses are sampled (0: none are)."""

    step: int
    microbatch: int
    parts: int
    prompt: int = 0


def lengths_of(opened: Opened, budget: int) -> Lengths | None:
    """Counts the sizes of the steps of a source; None for sources whose steps are not known before they run.

    Args:
        budget: tokens of a micro-batch at most; a group with more is alone.
    """
    source = opened.source
    if not isinstance(source, Offline | Online) or (isinstance(source, Online) and source.tries):
        return None
    step = largest = most = 0
    for number in range(min(opened.steps, LOOK)):
        parts: list[int] = []
        tokens = source.tokens_of(number)
        for count in tokens:
            if parts and parts[-1] + count <= budget:
                parts[-1] += count
            else:
                parts.append(count)
        step, largest, most = max(step, sum(tokens)), max(largest, *parts), max(most, len(parts))
    prompt = max(len(p.ids) for p in source.prompts) if isinstance(source, Online) else 0
    return Lengths(step, largest, most, prompt)
