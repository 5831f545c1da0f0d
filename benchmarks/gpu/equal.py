"""Packed forests against padded batches: log-probs and gradients, in float32 and in bfloat16.

In float32 both must agree to rounding. In bfloat16 each has rounding of its own: packed must be about as near to the
padded float32 numbers as padded is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from benchmarks.gpu.report import Bench, Result
from benchmarks.gpu.shapes import FAMILIES, SMALL, TINY, groups, language, relative
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.models.backbone import DType
from tiltyard.types import Group

FLOAT32 = {"log-probs": 1e-4, "gradients": 1e-3}  # the largest gap in nats; norm of the gap in that of the gradient
WORSE = 1.5  # times padded's own distance from float32 that packed may have in bfloat16


class Pass(NamedTuple):
    """Log-probs [R] of a pass, and its gradients by parameter."""

    logp_R: Tensor
    gradients: list[Tensor]


def pairs_equal(bench: Bench) -> Iterator[Result]:
    """The check of every family and type."""
    shape = TINY if bench.tiny else SMALL
    sizes = (
        [(9, (5, 14)), (30, (7,)), (3, (40, 2, 11))]
        if bench.tiny
        else [
            *((128, (64, 96, 33)), (40, (200, 150)), (300, (20,))),
            *((17, (90, 70, 80, 60)), (64, (256, 31))),
        ]
    )
    trees = groups(sizes, shape[-1])
    for family in FAMILIES:
        exact = one_pass(family, shape, bench, "float32", trees, padded=True)
        yield near(family, one_pass(family, shape, bench, "float32", trees, padded=False), exact)
        packed, padded = (one_pass(family, shape, bench, "bfloat16", trees, padded=p) for p in (False, True))
        yield as_near(family, packed, padded, exact)


def one_pass(
    family: str, shape: tuple[int, ...], bench: Bench, dtype: DType, trees: list[Group], *, padded: bool
) -> Pass:
    """The same model's log-probs of the same trees and the gradient of a weighted sum of them."""
    model = language(family, shape, bench.device, dtype)
    if not model.packed:
        raise RuntimeError(f"{family} in {dtype} is not packed: {model.padded_reason}")
    if padded:
        model.force_padded("to compare")
    forest = pack(trees, bench.device)
    logp_R, _ = model.logp_R(forest)
    weight_R = torch.randn(forest.R, generator=torch.Generator().manual_seed(1)).to(logp_R)
    (weight_R @ logp_R / forest.R).backward()
    return Pass(logp_R.detach().cpu(), [p.grad.cpu() for p in model.module.parameters() if p.grad is not None])


def near(family: str, packed: Pass, padded: Pass) -> Result:
    """The result in float32: both are the same up to rounding."""
    gaps = {
        "log-probs": float((packed.logp_R - padded.logp_R).abs().max()),
        "gradients": relative(packed.gradients, padded.gradients),
    }
    good = all(gaps[name] <= limit for name, limit in FLOAT32.items())
    text = ", ".join(f"{name} differ by {gaps[name]:.1e} (at most {limit:g})" for name, limit in FLOAT32.items())
    return Result("equal", f"{family}, float32", "ok" if good else "FAIL", text, gaps)


def as_near(family: str, packed: Pass, padded: Pass, exact: Pass) -> Result:
    """The result in bfloat16: packed is about as far from float32 as padded is."""
    gaps: dict[str, float] = {}
    for name, one in (("packed", packed), ("padded", padded)):
        gaps[f"{name} log-probs"] = relative([one.logp_R], [exact.logp_R])
        gaps[f"{name} gradients"] = relative(one.gradients, exact.gradients)
    kinds = ("log-probs", "gradients")
    good = all(gaps[f"packed {kind}"] <= WORSE * gaps[f"padded {kind}"] + 1e-6 for kind in kinds)
    text = "from float32: " + ", ".join(
        f"{kind} {gaps[f'packed {kind}']:.1e} packed, {gaps[f'padded {kind}']:.1e} padded" for kind in kinds
    )
    return Result("equal", f"{family}, bfloat16", "ok" if good else "FAIL", text, gaps)
