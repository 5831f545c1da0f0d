"""CPO: DPO's loss with a uniform reference, and likelihood of the preferred response."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tiltyard.inputs import Pairs
from tiltyard.losses.labels import Noise
from tiltyard.losses.preference import Logistic
from tiltyard.methods.base import method
from tiltyard.methods.direct import PairLoss, require_pairs
from tiltyard.training.algorithm import Algorithm, Mean, Source
from tiltyard.training.prepare import PairLabels


@method(
    "offline",
    source=Pairs(),
    defaults={"lr": 1e-6, "prompts_per_step": 64},
    defaults_from="Tiltyard: DPO's range (the paper fine-tunes a translation model with LoRA)",
    formula="-log sigmoid(beta h) + nll * -log pi(chosen)/|chosen|,  h = log pi(chosen) - log pi(rejected), summed",
    oracle="with nll = 0: exp(r/beta)/Z, the tilt of the uniform distribution instead of pi0",
    paper="Xu et al. 2024 (Contrastive Preference Optimization), eq. 5",
    pitfalls="Without nll it drifts to the tilt of the uniform distribution: short responses gain. The paper sums the "
    "likelihood term; here it is averaged over the response's tokens unless nll_per_token=false.",
)
def cpo(
    source: Source,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    nll: Annotated[float, Field(ge=0)] = 1.0,
    nll_per_token: bool = True,
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    noise_kind: Noise = "conservative",
) -> Algorithm:
    """Contrastive preference optimisation: DPO without its reference, plus likelihood of the chosen response.

    Args:
        source: `Offline` over pairs.
        beta: scale of the log-prob difference. [0.1: Xu et al. 2024]
        nll: weight of the chosen response's negative log-likelihood. [1.0: Xu et al. 2024]
        nll_per_token: average that over the response's tokens, or sum it. [true: the released code]
        noise: probability that a label is flipped. [0: Xu et al. 2024]
        noise_kind: see dpo. [Tiltyard: as in dpo]
    """
    return Algorithm(
        "cpo",
        require_pairs(source, "cpo"),
        PairLoss(Logistic(beta), "logp", beta, noise, noise_kind, nll=nll, nll_per_token=nll_per_token),
        prepare=(PairLabels("cpo"),),
        reduce=Mean("kept_G"),
    )
