"""ReST: grow a data set by sampling, improve on the part of it above a rising threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from tiltyard.errors import ConfigError
from tiltyard.inputs import ROUND_DEMONSTRATIONS, Policy, Prompts, Reference, Reward
from tiltyard.methods.base import method
from tiltyard.methods.iterative import Direct, direct_loss
from tiltyard.methods.sft import Nll, WeightedNll
from tiltyard.training.algorithm import Algorithm, Loss, Mean, Prepare
from tiltyard.training.prepare import PairLabels, RefLogp
from tiltyard.training.rounds import Rounds
from tiltyard.training.select import above, better_half, pairs_above
from tiltyard.training.source import Offline
from tiltyard.types import Group

Threshold = Annotated[float, Field(ge=0, lt=1)]
Select = Callable[[list[Group], float], Sequence[Group]]


@dataclass(frozen=True)
class ImprovePhase:
    """The groups of the i-th improve step of a round: those that `select` takes by the i-th threshold (0: all).

    Scores are scaled to 0..1 over the round first.
    """

    thresholds: tuple[float, ...]
    select: Select

    def __call__(self, pool: list[Group], i: int) -> Sequence[Group]:
        every = [s for g in pool for s in g.scores or ()]
        low, width = min(every), (max(every) - min(every)) or 1.0
        scaled = [replace(g, scores=tuple((s - low) / width for s in g.scores or ())) for g in pool]
        return self.select(scaled, self.thresholds[i] or -math.inf)


@dataclass(frozen=True)
class PhaseDecay:
    """The factor on the learning rate at a step: `decay` to the power of the step's phase within its round."""

    decay: float
    phases: int
    every: int

    def __call__(self, step: int) -> float:
        return self.decay ** ((step % self.every) * self.phases // self.every)


class OfflineLoss(NamedTuple):
    """A loss on the selected groups of a round, with its selection, prepare steps and mean."""

    select: Select
    loss: Loss
    prepare: tuple[Prepare, ...] = ()
    reduce: Mean = Mean()


def offline_loss(loss: Literal["nll", "gold", "vmpo"] | Direct, beta: float, floor: float, eta: float) -> OfflineLoss:
    """Single responses above the threshold, as they are or weighted; or pairs whose better response is above it."""
    if loss == "nll":
        return OfflineLoss(above, Nll())
    if loss == "gold":
        return OfflineLoss(above, WeightedNll(floor))
    if loss == "vmpo":
        return OfflineLoss(partial(better_half, eta=eta), WeightedNll(1.0))
    return OfflineLoss(pairs_above, direct_loss(loss, beta), (PairLabels("rest"), RefLogp()), Mean("kept_G"))


@method(
    "online",
    source=Prompts(every="round"),
    roles=(Policy(), Reference(optional=True), Reward()),
    aux_data=ROUND_DEMONSTRATIONS,
    defaults={"lr": 1e-5, "prompts_per_step": 64, "samples_per_prompt": 8, "temperature": 0.8},
    defaults_from="Tiltyard (the paper tunes T5-like translation models)",
    formula="1[r(x, y) > tau_i] * L(x, y),  y ~ lambda * (the policy as the round began) + (1 - lambda) * data,\n"
    "tau_i rising in the round; L = -log pi(y_t) a token (nll), times max(pi(y_t), floor) r (gold), times\n"
    "exp(A/eta) on the better half (vmpo)",
    oracle="nll: each round ends at that distribution restricted to r > tau: KL -log P(r > tau); only the last "
    "threshold matters at convergence, and one below every reward is SFT on the samples. vmpo: times exp(A/eta) "
    "within the better half. gold: times r with floor=1; a lower floor ends nearer the likeliest response",
    paper="Gulcehre et al. 2023 (ReST)",
    pitfalls="Easy prompts outlive the filter, because scores are compared over all prompts. The first threshold "
    "should be above the mean score. Rankings by reward and by people part ways (their table 3).",
)
def rest(
    source: Rounds,
    demonstrations: Offline | None = None,
    *,
    thresholds: list[Threshold] | None = None,
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.5,
    loss: Literal["nll", "gold", "vmpo"] | Direct = "nll",
    beta: Annotated[float, Field(gt=0)] = 0.1,
    floor: Annotated[float, Field(ge=0, le=1)] = 0.1,
    eta: Annotated[float, Field(gt=0)] = 0.1,
) -> Algorithm:
    """Reinforced self-training: grow by sampling, then improve in steps, each on better responses at a lower rate.

    Args:
        source: `Rounds` over prompts; a round is one grow step and as many improve steps as there are thresholds.
        demonstrations: `Offline` over responses that join every round's own, scored and filtered like them.
        thresholds: on scores scaled to 0..1 over the round's responses, rising; 0 keeps all.
            [0.7, 0.8, 0.9: Gulcehre et al. 2023]
        lr_decay: factor on the learning rate from one improve step to the next. [0.5: Tiltyard; the paper lowers it]
        loss: on responses above the threshold `nll`, `gold` (Pang & He 2021) or `vmpo` (Song et al. 2019); on pairs
            whose better response is above it `dpo`, `ipo` or `hinge`. [nll: the paper's best]
        beta: of dpo, ipo (tau) and hinge (gamma). [0.1: Rafailov et al. 2023]
        floor: gold's least importance weight of a token. [0.1: Tiltyard]
        eta: vmpo's temperature, on scores scaled to 0..1. [0.1: Tiltyard; Song et al. 2019 learn it]
    """
    taus = thresholds or [0.7, 0.8, 0.9]
    if any(b <= a for a, b in pairwise(taus)):
        raise ConfigError("thresholds must rise", where="rest.thresholds", got=taus, fix=f"try {sorted(set(taus))}")
    phases = len(taus)
    if phases > source.every:
        raise ConfigError(
            "a round has fewer steps than thresholds",
            where="rest.thresholds",
            got=taus,
            expected=f"{source.every} at most",
        )
    if loss not in ("nll", "gold") and source.samples_per_prompt < 2:
        raise ConfigError(
            f"{loss} compares the responses to a prompt with each other",
            where="rest.samples_per_prompt",
            got=source.samples_per_prompt,
            expected="at least 2 responses a prompt",
            fix="set samples_per_prompt=8, or loss=nll",
        )
    objective = offline_loss(loss, beta, floor, eta)
    given = tuple(demonstrations.groups) if demonstrations is not None else ()
    return Algorithm(
        "rest",
        replace(source, phases=phases, phase=ImprovePhase(tuple(taus), objective.select), given=given),
        objective.loss,
        prepare=objective.prepare,
        reduce=objective.reduce,
        lr_scale=PhaseDecay(lr_decay, phases, source.every),
    )
