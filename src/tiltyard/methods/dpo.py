"""DPO: preferences turned into a loss on log-probabilities, without a reward model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tiltyard.inputs import Pairs, Policy, Reference
from tiltyard.losses.labels import Noise
from tiltyard.losses.preference import Logistic
from tiltyard.methods.base import method
from tiltyard.methods.direct import PairLoss, require_pairs
from tiltyard.training.algorithm import Algorithm, Mean, Source
from tiltyard.training.prepare import PairLabels, RefLogp


@method(
    "offline",
    source=Pairs(),
    roles=(Policy(), Reference(cached=True)),
    defaults={"lr": 5e-7, "prompts_per_step": 64, "warmup": 150, "max_grad_norm": 10.0},
    defaults_from="Rafailov et al. 2023, reference code (lr, warm-up, clipping); its optimiser is RMSprop, ours is "
    "AdamW",
    formula="-log sigmoid(beta h),  h = log pi/ref(chosen) - log pi/ref(rejected), summed over response tokens\n"
    "soft label q: q l(h) + (1-q) l(-h);  conservative: q -> (1-2e)q + e;  robust: q -> (q-e)/(1-2e)",
    oracle="pi0 exp(r/beta)/Z for Bernoulli (Bradley-Terry) labels, whatever the distribution of the pairs; ln 2 at "
    "the start; none for hard labels; conservative, one pair: h = log((1-e)/e)/beta; robust with flips at rate e: pi*",
    paper="Rafailov et al. 2023; conservative: Mitchell 2023; robust: Chowdhury et al. 2024",
    pitfalls="With deterministic labels the margin grows without end, whatever beta: stop early or set noise. The "
    "chosen response's own likelihood often falls (chosen_logp); nll holds it up.",
)
def dpo(
    source: Source,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    noise_kind: Noise = "conservative",
    nll: Annotated[float, Field(ge=0)] = 0.0,
) -> Algorithm:
    """Direct preference optimisation: a classifier of preferences whose logit is beta times the log-ratio difference.

    Args:
        source: `Offline` over pairs.
        beta: strength of the pull to the reference; larger stays closer. [0.1: Rafailov et al. 2023]
        noise: probability that a label is flipped. [0: Rafailov et al. 2023]
        noise_kind: `conservative` smooths the labels (cDPO), `robust` corrects the loss so that its expectation is that
            of clean labels. [Tiltyard: the milder of the two]
        nll: weight of the chosen response's negative log-likelihood a token. [0: Rafailov et al. 2023]
    """
    return Algorithm(
        "dpo",
        require_pairs(source, "dpo"),
        PairLoss(Logistic(beta), "log_ratio", beta, noise, noise_kind, nll=nll),
        prepare=(PairLabels("dpo"), RefLogp()),
        reduce=Mean("kept_G"),
    )
