"""A run that is interrupted and resumed gives the bits of one that was not, with torch's deterministic algorithms."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from benchmarks.gpu.report import Bench, Result
from benchmarks.gpu.shapes import SMALL, TINY, groups, language, relative
from benchmarks.gpu.steps import variety
from torch import Tensor

from tiltyard import (
    Algorithm,
    FunctionScorer,
    Models,
    NativeSampler,
    Offline,
    Online,
    Run,
    SampleSettings,
    fit,
    frozen_copy,
)
from tiltyard.methods import dpo, grpo
from tiltyard.models.backbone import DType

STEPS, CUT = 4, 2
PARTED = "interrupted"


class Interrupted(Exception):
    """Raised after the step whose checkpoint was written."""


class Cut:
    """A sink that ends the run."""

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - a sink's signature
        if step == CUT + 1:
            raise Interrupted

    def close(self) -> None:
        """Nothing is held."""


def resumed(bench: Bench) -> Iterator[Result]:
    """The check for a method that reads a file and one that samples, in both types."""
    for method in ("dpo", "grpo"):
        for dtype in ("float32", "bfloat16"):
            yield compared(bench, method, dtype)


def compared(bench: Bench, method: str, dtype: DType) -> Result:
    """Three runs: whole, whole again, interrupted and resumed.

    Where an operation has no deterministic algorithm (running sums on CUDA), torch only warns, and the bits decide.
    """
    try:
        runs, note = three_runs(bench, method, dtype, warn_only=False), ""
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        runs = three_runs(bench, method, dtype, warn_only=True)
        note = f"; torch has no deterministic algorithm: {str(error)[:60]}"
    whole, again, parted = runs
    numbers = {"again": relative(again, whole), "resumed": relative(parted, whole)}
    same = [all(torch.equal(a, b) for a, b in zip(one, whole, strict=True)) for one in (again, parted)]
    words = [
        "equal to the last bit" if fine else f"differs by {gap:.1e} of the norm"
        for fine, gap in zip(same, numbers.values(), strict=True)
    ]
    text = f"run again: {words[0]}; interrupted and resumed: {words[1]}{note}"
    return Result("resume", f"{method}, {dtype}", "ok" if all(same) else "FAIL", text, numbers)


def three_runs(bench: Bench, method: str, dtype: DType, *, warn_only: bool) -> list[list[Tensor]]:
    """The weights after a run, after the same again, and after one that was interrupted."""
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    mark = "warned" if warn_only else "strict"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [trained(bench, method, dtype, f"{how}-{mark}") for how in ("whole", "again", PARTED)]
    finally:
        torch.use_deterministic_algorithms(False)


def trained(bench: Bench, method: str, dtype: DType, how: str) -> list[Tensor]:
    """The weights after all steps."""
    folder = bench.folder / f"{method}-{dtype}-{how}"
    if how.startswith(PARTED):
        with suppress(Interrupted):
            run_once(bench, method, dtype, folder, [Cut()])
    return run_once(bench, method, dtype, folder, [])


def run_once(bench: Bench, method: str, dtype: DType, folder: Path, sinks: list[Cut]) -> list[Tensor]:
    """A run in a folder, from its checkpoint if it has one."""
    shape = TINY if bench.tiny else SMALL
    algorithm, models = composed(bench, method, dtype, shape)
    run = Run(steps=STEPS, lr=1e-3, schedule="constant", warmup=0.0, save_every=1, tokens_per_microbatch=512)
    fit(algorithm, models, run, folder=folder, sinks=sinks)
    return [p.detach().cpu() for p in models["policy"].module.parameters()]


def composed(bench: Bench, method: str, dtype: DType, shape: tuple[int, ...]) -> tuple[Algorithm, Models]:
    """A method with micro-batches, responses of unlike lengths and a reference."""
    made = groups([(20, (12, 30)), (40, (9, 17)), (7, (25, 25)), (64, (60, 31))] * 4, shape[-1])
    policy = language("Llama", shape, bench.device, dtype)
    models = Models(policy=policy, ref=frozen_copy(policy))
    if method == "dpo":
        return dpo(Offline(made, 8), beta=0.1), models
    settings = SampleSettings(max_tokens=12)
    source = Online([g.prompt for g in made], NativeSampler(), FunctionScorer(variety), 4, 4, settings)
    return grpo(source, beta=0.05), models
