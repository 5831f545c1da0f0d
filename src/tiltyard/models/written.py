"""Comparison of a saved folder with the model that it was saved from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiltyard.batch.forest import Forest
from tiltyard.distributed import processes
from tiltyard.distributed.parts import in_pass
from tiltyard.errors import ModelError
from tiltyard.models.backbone import Backbone
from tiltyard.models.encoder import Encoder
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.load import load_language_model, load_scalar_model


@torch.no_grad()
def check_written(model: Backbone, folder: Path, width: torch.dtype) -> float | None:
    """Loads a model's folder and computes two small trees by it and by the model; the largest difference.

    Of a model that is spread every process computes its part, and rank 0 reads the folder; the others return None. It
    reads one block at a time.

    It is in nats a token, of a scalar model in units of the score; None for an encoder, which is not compared.

    Args:
        width: of the numbers in the folder. A difference of 1e-3 is allowed in float32, of 0.25 where it is narrower.

    Raises:
        ModelError: they differ by more.
    """
    if isinstance(model, Encoder) or not isinstance(model, LanguageModel | ScalarModel):
        return None
    forest, training = model.probe_forest(), model.module.training
    model.module.eval()
    own = _by_blocks(model, forest)
    model.module.train(training)
    if not processes.is_main():
        return None
    how: dict[str, Any] = {"device": str(model.device), "dtype": model.dtype, "blocks": "files"}
    written = isinstance(model, LanguageModel)
    again: Backbone = load_language_model(folder, **how) if written else load_scalar_model(folder, **how)
    gap = float((_numbers(again, forest) - own).abs().max())
    bound = 0.25 if torch.finfo(width).bits < 32 or model.dtype == "bfloat16" else 1e-3
    if not gap <= bound:
        raise ModelError(
            "the model that was written is not the one that was trained",
            where=str(folder),
            got=f"outputs that differ by {gap:.3g} on the same tokens",
            expected=f"at most {bound:g}",
            fix="the last checkpoint holds the trained weights: run the same command again; report it if it stays",
        )
    return gap


def _by_blocks(model: Backbone, forest: Forest) -> Tensor:
    """The numbers of a model; of one that is spread its blocks are gathered one after the other."""
    return in_pass(lambda: _numbers(model, forest), model.module)


def _numbers(model: Backbone, forest: Forest) -> Tensor:
    if isinstance(model, LanguageModel):
        return model.logp_R(forest)[0].double()
    assert isinstance(model, ScalarModel)
    return model.score_B(forest).double()
