"""Keeps the policy of some steps as ordinary model folders, so that it can be measured along training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tiltyard.errors import ConfigError
from tiltyard.models.language import LanguageModel
from tiltyard.models.saving import SaveDType, save_model


class ModelKeeper:
    """A sink that writes `models/step-00000020` every `every` steps; for the main process.

    Raises:
        ConfigError: parameters that are spread over processes, of which this one has a share.
    """

    def __init__(self, model: LanguageModel, every: int, folder: Path, dtype: SaveDType, *, sharded: bool = False):
        if sharded:
            raise ConfigError(
                "models along training are written by one process, which has a share of the parameters here",
                where="models_every",
                got=every,
                expected="0 with shard",
                fix="leave models_every out, or train without shard",
            )
        self.model, self.every, self.folder, self.dtype = model, every, folder / "models", dtype

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - protocol
        """Writes the model, if the step is one of every `every`; a folder is there whole or not at all."""
        if step % self.every:
            return
        final = self.folder / f"step-{step:08d}"
        unfinished = self.folder / f".unfinished-{step:08d}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_model(self.model, unfinished, dtype=self.dtype)
        shutil.rmtree(final, ignore_errors=True)  # of an attempt that was stopped before its checkpoint
        os.rename(unfinished, final)

    def close(self) -> None:
        """Has nothing open."""
