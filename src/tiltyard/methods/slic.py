"""SLiC-HF: a hinge on raw log-probabilities and a regulariser that keeps targets likely."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tiltyard.errors import ConfigError
from tiltyard.inputs import DEMONSTRATIONS, Pairs
from tiltyard.losses.labels import Noise
from tiltyard.losses.preference import Hinge
from tiltyard.methods.base import method
from tiltyard.methods.direct import PairLoss, require_pairs
from tiltyard.methods.sft import SequenceNll
from tiltyard.training.algorithm import Algorithm, AuxLoss, Mean, Source
from tiltyard.training.prepare import PairLabels


@method(
    "offline",
    source=Pairs(),
    aux_data=DEMONSTRATIONS,
    defaults={"lr": 1e-5, "prompts_per_step": 32},
    defaults_from="Zhao et al. 2023 (T5)",
    formula="max(0, delta - h) + lam * -log pi(y_ref),  h = log pi(chosen) - log pi(rejected); all sums over tokens",
    oracle="one pair with Bernoulli p: h = delta sign(p - 1/2): it does not estimate log-odds, so no pi*; lam = 0 "
    "stops exactly where every training pair has h >= delta; lam -> inf is SFT",
    paper="Zhao et al. 2023 (SLiC-HF), eq. 1",
    pitfalls="On people's own pairs (direct) responses keep growing; the paper's better variant ranks the SFT model's "
    "own responses (sample_rank: train on pairs of a `candidates` stage with a ranker).",
)
def slic(
    source: Source,
    targets: Source | None = None,
    *,
    delta: Annotated[float, Field(gt=0)] = 1.0,
    lam: Annotated[float, Field(ge=0)] = 1.0,
    target: Literal["demonstrations", "chosen"] = "demonstrations",
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    noise_kind: Noise = "conservative",
) -> Algorithm:
    """Sequence likelihood calibration: win by a margin in raw log-probability while targets stay likely.

    Whose pairs they are makes the variant: people's (`direct`), or the SFT model's responses ranked by a pairwise
    ranker or a reward model (`sample_rank`; a `candidates` stage makes those).

    Args:
        source: `Offline` over pairs.
        targets: `Offline` over the SFT targets, for target=demonstrations.
        delta: margin of the summed log-probs. [1.0: Zhao et al. 2023]
        lam: weight of the targets' summed negative log-likelihood; 0 leaves it out. [Tiltyard: the paper gives none]
        target: what is kept likely: SFT targets, or the chosen response of each pair (the paper's best-candidate
            variant). [demonstrations: Zhao et al. 2023]
        noise: probability that a label is flipped. [0: Zhao et al. 2023]
        noise_kind: see dpo. [Tiltyard: as in dpo]
    """
    if target == "demonstrations" and lam > 0 and targets is None:
        raise ConfigError(
            "SLiC-HF's regulariser has no targets",
            where="slic.demonstrations",
            got="target=demonstrations without demonstrations",
            expected="the demonstrations that the model was fine-tuned on",
            fix="set demonstrations=FILE, or target=chosen to keep the preferred responses likely, or lam=0",
        )
    if target == "chosen" and targets is not None:
        raise ConfigError(
            "the demonstrations would not be used",
            where="slic.demonstrations",
            got="demonstrations with target=chosen",
            fix="leave demonstrations out, or set target=demonstrations to keep them likely",
        )
    chosen_weight = lam if target == "chosen" else 0.0
    aux_losses = (
        (AuxLoss("targets", targets, SequenceNll(), lam),) if targets is not None and not chosen_weight and lam else ()
    )
    return Algorithm(
        "slic",
        require_pairs(source, "slic"),
        PairLoss(Hinge(delta), "logp", 1.0, noise, noise_kind, nll=chosen_weight, nll_per_token=False),
        prepare=(PairLabels("slic"),),
        reduce=Mean("kept_G"),
        aux_losses=aux_losses,
    )
