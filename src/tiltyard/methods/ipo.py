"""IPO: a squared loss with a finite target margin, so that deterministic preferences do not diverge."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tiltyard.inputs import Pairs, Policy, Reference
from tiltyard.losses.labels import Noise
from tiltyard.losses.preference import Squared
from tiltyard.methods.base import method
from tiltyard.methods.direct import PairLoss, require_pairs
from tiltyard.training.algorithm import Algorithm, Mean, Source
from tiltyard.training.prepare import PairLabels, RefLogp


@method(
    "offline",
    source=Pairs(),
    roles=(Policy(), Reference(cached=True)),
    defaults={"lr": 5e-7, "prompts_per_step": 64, "warmup": 150, "max_grad_norm": 10.0},
    defaults_from="DPO's (the paper's experiments are bandits)",
    formula="(h - 1/(2 beta))^2,  h = log pi/ref(chosen) - log pi/ref(rejected), per token or summed (length_norm)",
    oracle="pi0 exp(p(y beats mu)/beta)/Z for pairs drawn from mu: unlike DPO it depends on the distribution of "
    "the pairs; 1/(4 beta^2) at the start; one pair: h = (p - 1/2)/beta",
    paper="Azar et al. 2023, eq. 17",
    pitfalls="With length_norm the margin asked for is a token's, so beta is not comparable to the summed loss. It "
    "pulls back pairs that went beyond 1/(2 beta): the margin should settle there.",
)
def ipo(
    source: Source,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    length_norm: bool = True,
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    noise_kind: Noise = "conservative",
) -> Algorithm:
    """Identity preference optimisation: regression of the log-ratio difference onto 1/(2 beta).

    Args:
        source: `Offline` over pairs.
        beta: strength of the pull to the reference (the paper's beta); larger stays closer. [0.1: the value of DPO's
            beta in common use]
        length_norm: average log-ratios over each response's tokens. The printed formula sums; the authors are reported
            to have used averages for text (TRL's source). The exact theory holds for sums. [true: TRL, after the
            authors]
        noise: probability that a label is flipped. [0: Azar et al. 2023]
        noise_kind: see dpo. [Tiltyard: as in dpo]
    """
    return Algorithm(
        "ipo",
        require_pairs(source, "ipo"),
        PairLoss(Squared(beta), "log_ratio_per_token" if length_norm else "log_ratio", beta, noise, noise_kind),
        prepare=(PairLabels("ipo"), RefLogp()),
        reduce=Mean("kept_G"),
    )
