"""The order of stages that run in parallel, and the number of their threads."""

from __future__ import annotations

from collections.abc import Sequence

from tiltyard.pipeline.recipe import Step


def ancestors(steps: Sequence[Step]) -> dict[str, set[str]]:
    """All stages that each stage needs, directly or through others."""
    needed: dict[str, set[str]] = {}
    for step in steps:
        needed[step.name] = set(step.uses).union(*(needed[name] for name in step.uses))
    return needed


def chain_lengths(steps: Sequence[Step]) -> dict[str, int]:
    """The length of the longest chain of dependent stages that begins with each stage; long chains start first."""
    lengths = {step.name: 1 for step in steps}
    for step in reversed(steps):  # a stage comes after those it needs
        for name in step.uses:
            lengths[name] = max(lengths[name], lengths[step.name] + 1)
    return lengths


def threads_for(steps: Sequence[Step], jobs: int, cores: int) -> dict[str, int]:
    """The number of threads of each stage: its share of the cores, or all if no other stage can run at the same time.

    It depends on the recipe alone, not on what happens to run: sums in another order would change the result.
    """
    needs = ancestors(steps)
    share = max(1, cores // jobs)
    return {
        one: cores if all(one == other or other in needs[one] or one in needs[other] for other in needs) else share
        for one in needs
    }
