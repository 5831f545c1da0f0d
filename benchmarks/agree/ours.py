"""Our side: the same rows, the same settings, through `fit`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.agree.cases import Case
from benchmarks.agree.data import Folders, Row, groups_of

from tiltyard import Algorithm, Models, Offline, Run, fit, load_language_model, load_scalar_model, reward_model, sft
from tiltyard.methods import dpo, ipo, kto, orpo, simpo

METHODS = {"sft": sft, "dpo": dpo, "ipo": ipo, "kto": kto, "orpo": orpo, "simpo": simpo, "reward_model": reward_model}
WITH_REFERENCE = ("dpo", "ipo", "kto")


class Kept:
    """A sink that keeps the metrics of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - a sink's signature
        self.steps.append(metrics)

    def close(self) -> None:
        """Nothing is held."""


def composed(case: Case, rows: list[Row], batch: int) -> Algorithm:
    """The method over the rows in their order, `batch` a step."""
    return METHODS[case.method](Offline(groups_of(rows, case.data), batch, order="file"), **case.ours)


def models_of(case: Case, folders: Folders, ref: Path) -> Models:
    """The models of the case, float32, loaded anew."""
    if case.method == "reward_model":
        model = load_scalar_model(folders.reward, device="cpu")
        model.module.requires_grad_(True)
        return Models(reward=model)
    models = Models(policy=load_language_model(folders.model, device="cpu"))
    if case.method in WITH_REFERENCE:
        models.ref = load_language_model(ref, device="cpu")
        models.ref.module.requires_grad_(False)
    return models


def run(
    case: Case,
    rows: list[Row],
    folders: Folders,
    *,
    ref: Path | None = None,
    steps: int = 1,
    batch: int = 0,
    lr: float = 1e-12,
    microbatch: int = 2048,
) -> list[dict[str, float]]:
    """The metrics of every step: plain AdamW, a constant rate, nothing clipped.

    Args:
        ref: in place of the folders' own reference. batch: rows a step; 0: all. microbatch: packed tokens of a pass.
    """
    kept = Kept()
    how = Run(
        steps=steps,
        lr=lr,
        schedule="constant",
        warmup=0.0,
        max_grad_norm=1e9,
        save_every=0,
        tokens_per_microbatch=microbatch,
    )
    fit(composed(case, rows, batch or len(rows)), models_of(case, folders, ref or folders.ref), how, sinks=[kept])
    return kept.steps
