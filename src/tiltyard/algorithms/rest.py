"""ReST: grow a data set by sampling, improve on the part of it above a rising threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from tiltyard.algorithms.base import method
from tiltyard.algorithms.iterative import direct_loss
from tiltyard.algorithms.sft import Nll
from tiltyard.errors import ConfigError
from tiltyard.training.algorithm import Algorithm, Mean
from tiltyard.training.labels import Preferred
from tiltyard.training.prepare import RefLogp
from tiltyard.training.rounds import Rounds
from tiltyard.training.select import above, all_pairs
from tiltyard.types import Group

Threshold = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Improve:
    """The i-th improve step's part of a round: answers whose score, scaled to 0..1 over the round, is above the i-th
    threshold; for a pair loss their pairs with worse answers of the same prompt."""

    thresholds: Sequence[float]
    pairs: bool

    def __call__(self, pool: list[Group], i: int) -> Sequence[Group]:
        every = [s for g in pool for s in g.scores or ()]
        low, width = min(every), (max(every) - min(every)) or 1.0
        scaled = [replace(g, scores=tuple((s - low) / width for s in g.scores or ())) for g in pool]
        threshold = self.thresholds[i]
        if self.pairs:
            return [p for p in all_pairs(scaled) if max(p.scores or (0.0,)) > threshold]
        return above(scaled, threshold) if threshold > 0 else scaled


@method(
    "online",
    "prompts",
    frozen=("reward",),
    samples="per iteration",
    judged="per iteration",
    defaults={"lr": 1e-5, "batch": 64, "n": 8, "temperature": 0.8},
    tuned="Tiltyard (the paper tunes T5-like translation models)",
    formula="1[r(x, y) > tau_i] * -log pi(y) a token,  y ~ the policy as the round began, tau_i rising in the round",
    oracle="each round ends at pi_g restricted to r > tau: KL -log P(r > tau); only the last threshold matters at "
    "convergence, and a threshold below every reward is SFT on the samples",
    paper="Gulcehre et al. 2023 (ReST)",
    watch="Easy prompts outlive the filter, because scores are compared over all prompts. The first threshold should "
    "be above the mean score. Rankings by reward and by people part ways (their table 3).",
)
def rest(
    source: Rounds,
    *,
    thresholds: list[Threshold] | None = None,
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.5,
    loss: Literal["nll", "dpo"] = "nll",
    beta: Annotated[float, Field(gt=0)] = 0.1,
) -> Algorithm:
    """Reinforced self-training: grow by sampling, then improve in steps, each on better answers at a lower rate.

    Args:
        source: `Rounds` over prompts; a round is one grow step and as many improve steps as there are thresholds.
        thresholds: on scores scaled to 0..1 over the round's answers, rising. [0.7, 0.8, 0.9: Gulcehre et al. 2023]
        lr_decay: factor on the learning rate from one improve step to the next. [0.5: Tiltyard; the paper lowers it]
        loss: `nll`, or `dpo` on pairs whose better answer passes the threshold. [nll: the paper's best]
        beta: of dpo. [0.1: Rafailov et al. 2023]
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
    pairs = loss == "dpo"
    every = source.every
    return Algorithm(
        "rest",
        replace(source, phases=phases, phase=Improve(taus, pairs)),
        direct_loss("dpo", beta) if pairs else Nll(),
        prepare=(Preferred("rest"), RefLogp()) if pairs else (),
        reduce=Mean("kept_G") if pairs else Mean(),
        lr_scale=lambda step: lr_decay ** ((step % every) * phases // every),
    )
