"""KTO: answers that are simply good or bad, without pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.losses.preference import kto_B
from tiltyard.methods.base import method
from tiltyard.methods.direct import log_ratio_B
from tiltyard.training.algorithm import Algorithm, Forward, Source
from tiltyard.training.labels import Labels, MismatchedKL
from tiltyard.training.prepare import RefLogp


@dataclass(frozen=True)
class KTOLoss:
    """`w_D (1 - sigmoid(beta (r - z)))` of good and `w_U (1 - sigmoid(beta (z - r)))` of bad answers."""

    beta: float
    desirable: float
    undesirable: float
    needs: tuple[str, ...] = ("logp_R", "ref_logp_R", "label_B", "kl_B")
    item: Literal["R", "B", "G"] = "B"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        ratio_B, label_B = log_ratio_B(forward, batch), batch["label_B"]
        kl_B = batch["kl_B"].to(ratio_B.dtype)
        loss_B = kto_B(ratio_B, label_B, kl_B, self.beta, self.desirable, self.undesirable)
        reward_B, good = self.beta * ratio_B.detach(), float(label_B.sum())
        metrics: Metrics = {
            "good_reward": (float((reward_B * label_B).sum()), good),
            "bad_reward": (float((reward_B * (1 - label_B)).sum()), len(label_B) - good),
        }
        return loss_B, metrics


@method(
    "offline",
    "labelled",
    frozen=("ref",),
    defaults={"lr": 5e-7, "batch": 64, "warmup": 0.1},
    tuned="Ethayarajh et al. 2024 (learning rate of DPO and KTO alike)",
    formula="w_D (1 - sigmoid(beta (r - z))) good, w_U (1 - sigmoid(beta (z - r))) bad,  r = log pi/ref(y), summed,\n"
    "z = max(0, mean of log pi/ref of answers put to another prompt), without gradient",
    oracle="at the start z = 0 and the loss is 1/2; gradient -w beta/4 on good, +w beta/4 on bad log-probs; an answer "
    "good with probability p moves by w_D p - w_U (1-p): it learns the sign of that, no pi*",
    paper="Ethayarajh et al. 2024, eq. 8",
    watch="Keep w_D n_good : w_U n_bad between 1:1 and 4:3 (the paper's advice) where labels are unbalanced. The "
    "reference point needs two or more prompts a step, and the reference stays in memory.",
)
def kto(
    source: Source,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    desirable: Annotated[float, Field(ge=0)] = 1.0,
    undesirable: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Kahneman-Tversky optimisation: good answers above, bad ones below a reference point, each with its own weight.

    Args:
        source: `Offline` over labelled answers (scores 1 and 0); pairs give one good and one bad answer.
        beta: strength of the pull to the reference. [0.1: Ethayarajh et al. 2024, code]
        desirable: weight of good answers. [1: Ethayarajh et al. 2024, code]
        undesirable: weight of bad answers. [1: Ethayarajh et al. 2024, code]
    """
    return Algorithm(
        "kto",
        source,
        KTOLoss(beta, desirable, undesirable),
        prepare=(Labels(), RefLogp(), MismatchedKL()),
    )
