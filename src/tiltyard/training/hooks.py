"""Hooks that run after the updates of a step: `(models, batch, step) -> metrics`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.distributed import processes
from tiltyard.losses.kl import KLController
from tiltyard.models.adapters import copy_weights_
from tiltyard.training.algorithm import Models


@dataclass(frozen=True)
class UpdateKL:
    """Updates the KL coefficient by the mean over responses of the summed log-ratio (methods 2.3)."""

    kl: KLController
    needs: ClassVar[tuple[str, ...]] = ("kl_B",)

    def __call__(self, models: Models, batch: Batch, step: int) -> Metrics:  # noqa: ARG002
        kl_B = batch["kl_B"].double()
        sums = torch.stack([kl_B.sum(), kl_B.new_tensor(float(batch.forest.B))])
        kl_sum, count = processes.sum_all(sums).tolist()
        used = self.kl.beta
        self.kl.update(kl_sum / max(count, 1), int(count))
        return {"beta": (used, 1.0)}

    def state_dict(self) -> dict[str, float]:
        return dict(self.kl.state_dict())

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.kl.load_state_dict(state)


@dataclass(frozen=True)
class RenewRef:
    """Copies the policy into the reference after every `every` steps (SPIN's opponent)."""

    every: int

    def __call__(self, models: Models, batch: Batch, step: int) -> Metrics:  # noqa: ARG002
        if (step + 1) % self.every == 0:
            copy_weights_(models["ref"], models["policy"])
        return {"iteration": (float(step // self.every + 1), 1.0)}
