"""SimPO: the averaged log-probability as reward, no reference, and a margin to win by."""

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
    defaults={"lr": 6e-7, "prompts_per_step": 128, "warmup": 0.1},
    defaults_from="Meng et al. 2024, released configurations (Llama-3-Base)",
    formula="-log sigmoid(beta h - gamma),  h = log pi(chosen)/|chosen| - log pi(rejected)/|rejected|,  gamma = beta "
    "* gamma_ratio",
    oracle="one pair with Bernoulli p: h = u/beta with p sigmoid(gamma-u) = (1-p) sigmoid(gamma+u); no pi*: there is "
    "no reference to tilt",
    paper="Meng et al. 2024, eq. 6",
    pitfalls="A learning rate above 1e-6 makes large models repeat themselves. Nothing ties the model to where it "
    "began: watch KL and samples.",
)
def simpo(
    source: Source,
    *,
    beta: Annotated[float, Field(gt=0)] = 2.0,
    gamma_ratio: Annotated[float, Field(ge=0)] = 0.5,
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    noise_kind: Noise = "conservative",
    nll: Annotated[float, Field(ge=0)] = 0.0,
) -> Algorithm:
    """Simple preference optimisation: length-averaged log-probs, a logistic loss with a target margin, no reference.

    Args:
        source: `Offline` over pairs.
        beta: scale of the averaged log-probs; much larger than DPO's. [2.0: Meng et al. 2024, Llama-3-Base]
        gamma_ratio: target margin over beta. [0.5: Meng et al. 2024, recommended start]
        noise: probability that a label is flipped. [0: Meng et al. 2024]
        noise_kind: see dpo. [Tiltyard: as in dpo]
        nll: weight of the chosen response's negative log-likelihood a token. [0: Meng et al. 2024]
    """
    return Algorithm(
        "simpo",
        require_pairs(source, "simpo"),
        PairLoss(Logistic(beta, beta * gamma_ratio), "logp_per_token", beta, noise, noise_kind, nll=nll),
        prepare=(PairLabels("simpo"),),
        reduce=Mean("kept_G"),
    )
