"""Passes over micro-batches: where parameters are spread over processes, each runs as many of them as the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from tiltyard.batch.batch import Batch
from tiltyard.distributed import processes
from tiltyard.distributed.parts import in_pass, spread

if TYPE_CHECKING:
    import torch

    from tiltyard.models.backbone import Backbone

Result = TypeVar("Result")


def each_micro(batch: Batch, compute: Callable[[Batch], Result], *models: Backbone) -> list[Result]:
    """Computes something of each micro-batch, without gradient: one pass each, so that memory is bounded.

    Args:
        compute: calls these models, equally often for every micro-batch, and no others whose parameters are spread.
            Every process calls this function together, also one without groups.
    """
    parts, modules = (batch.micro() if batch.groups else []), [model.module for model in models]
    passes = same_passes(parts, batch.packing.device) if spread(*modules) else [(part, True) for part in parts]
    found = []
    for part, counts in passes:
        result = in_pass(lambda part=part: compute(part), *modules)  # type: ignore[misc]
        if counts:
            found.append(result)
    return found


def same_passes(parts: Sequence[Batch], device: torch.device) -> list[tuple[Batch, bool]]:
    """This process's micro-batches, and whether each counts: as many as the process with the most of them has.

    Those with fewer run their smallest one again, or that of another process; its result is dropped.
    """
    counts = processes.gather_objects(len(parts))
    smallest = min(parts, key=lambda part: part.forest.T, default=None)
    if 0 in counts:
        lender = counts.index(max(counts))
        lent = smallest.portable() if smallest is not None and processes.rank() == lender else None
        borrowed = processes.gather_objects(lent)[lender]
        smallest = smallest or (None if borrowed is None else borrowed.on(device))
    passes = [(part, True) for part in parts]
    return passes + [(smallest, False)] * (max(counts) - len(parts)) if smallest is not None else passes
