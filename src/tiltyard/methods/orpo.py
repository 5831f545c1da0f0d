"""ORPO: supervised fine-tuning with an odds-ratio penalty on the rejected response; one stage, no reference."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tiltyard.inputs import Pairs
from tiltyard.losses.preference import Logistic
from tiltyard.methods.base import method
from tiltyard.methods.direct import PairLoss, require_pairs
from tiltyard.training.algorithm import Algorithm, Mean, Source
from tiltyard.training.prepare import PairLabels


@method(
    "offline",
    source=Pairs(),
    defaults={"lr": 8e-6, "prompts_per_step": 64, "epochs": 1.0},
    defaults_from="Hong et al. 2024 (learning rate)",
    formula="-log pi(chosen)/|chosen| + lam * -log sigmoid(log odds(chosen) - log odds(rejected)),\n"
    "odds = P/(1-P),  P = exp(log pi(y)/|y|)",
    oracle="gradient of the odds term: -sigmoid(-d) (grad s_w/(1-P_w) - grad s_l/(1-P_l)), s = log pi/|y|, d the "
    "difference of log odds; no pi*: it is SFT at lam = 0",
    paper="Hong et al. 2024, eq. 6-7",
    pitfalls="The odds term is small beside the likelihood term: accuracy moves slowly. It starts from a base model "
    "as well as from an SFT model.",
)
def orpo(source: Source, *, lam: Annotated[float, Field(ge=0)] = 0.1) -> Algorithm:
    """Odds-ratio preference optimisation: SFT on the chosen response plus a log-odds-ratio term.

    Args:
        source: `Offline` over pairs.
        lam: weight of the odds-ratio term. [0.1: Hong et al. 2024, Mistral-ORPO]
    """
    return Algorithm(
        "orpo",
        require_pairs(source, "orpo"),
        PairLoss(Logistic(1.0), "log_odds", weight=lam, nll=1.0),
        prepare=(PairLabels("orpo"),),
        reduce=Mean("kept_G"),
    )
