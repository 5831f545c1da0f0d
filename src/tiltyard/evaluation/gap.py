"""The distance of models to the posterior: means over prompts with intervals, and their diagnostics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tiltyard.errors import DataError
from tiltyard.posterior.bounds import UpperBound
from tiltyard.posterior.estimates import Samples, estimate, k_hats
from tiltyard.posterior.support import WEIGHTED, Support, support_of
from tiltyard.posterior.target import complete_scores
from tiltyard.scoring import Scorer
from tiltyard.stats.intervals import Estimate, mean_ci
from tiltyard.stats.text import distinct_n, self_bleu, unique_share
from tiltyard.types import Group

SHOWN = ("factor", "kl", "kl_sampled", "entropy", *WEIGHTED)
TEXTS = 64  # responses to a prompt that self-BLEU is computed on
PAIRS = 1000  # word pairs of all prompts that distinct-2 is computed on


@dataclass(frozen=True)
class Gap:
    """One model's distance to the posterior.

    Args:
        name: of the model. estimates: means over prompts with 95% intervals that resample prompts, of the terms of
            `posterior.estimates.Terms`; each resamples the whole identity, so errors that its parts share cancel.
        support: diagnostics; where they refuse, the weighted estimates are not among `estimates`.
        reward: E[r]; of the posterior too, if supported. log_z_lower: mean lower bound of log Z. gold: mean gold
            reward, where one was given.
        cut: share of the responses that the token limit cut. distinct_2, self_bleu, unique: diversity of the responses
            to a prompt, see `stats.text`.
    """

    name: str
    estimates: Mapping[str, Estimate]
    support: Support
    reward: Estimate
    posterior_reward: Estimate | None
    log_z_lower: float
    gold: Estimate | None
    cut: float
    distinct_2: float
    self_bleu: float
    unique: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `refused` names the estimates that are left out."""
        return {
            **asdict(self),
            "reward": self.reward._asdict(),
            "posterior_reward": None if self.posterior_reward is None else self.posterior_reward._asdict(),
            "gold": None if self.gold is None else self.gold._asdict(),
            "estimates": {key: value._asdict() for key, value in self.estimates.items()},
            "refused": [] if self.support.ok else list(WEIGHTED),
        }


def gap_of(
    name: str,
    groups: Sequence[Group],
    samples: Samples,
    beta: float,
    *,
    upper: UpperBound | None = None,
    gold_PN: np.ndarray | None = None,
    seed: int = 0,
) -> Gap:
    """Summarises one model.

    Args:
        groups: its responses. samples: columns of these and of the prior's. beta: log factors times beta are rewards.
        upper: bound of each prompt's log Z, where there is one. gold_PN: gold rewards of the model's responses.

    Raises:
        DataError: distributions conditioned on ending, and a prompt to which no response ended.
    """
    _check_ending(name, groups, samples)
    terms = estimate(samples)
    width = None if upper is None else upper.width(terms.log_z_lower)
    support = support_of(terms.ess, k_hats(samples), samples.log_policy.shape[-1], width)
    kept = [key for key in SHOWN if support.ok or key not in WEIGHTED]
    estimates = {key: mean_ci(getattr(terms, key), seed=seed, skewed=True) for key in kept}
    texts = [[response.text for response in group.responses] for group in groups]
    flat = [response for group in groups for response in group.responses]
    return Gap(
        name=name,
        estimates=estimates,
        support=support,
        reward=_scaled(estimates["factor"], beta),
        posterior_reward=_scaled(estimates["posterior_factor"], beta) if support.ok else None,
        log_z_lower=float(terms.log_z_lower.mean()),
        gold=None if gold_PN is None else mean_ci(gold_PN.mean(-1), seed=seed, skewed=True),
        cut=sum(response.finish == "length" for response in flat) / len(flat),
        distinct_2=distinct_n([response.text for response in flat], 2, budget=PAIRS),
        self_bleu=float(np.mean([self_bleu(some[:TEXTS]) for some in texts])),
        unique=float(np.mean([unique_share(some) for some in texts])),
    )


def gold_of(gold: Scorer, groups: Sequence[Group]) -> np.ndarray:
    """Gold rewards of all responses, [prompts, responses].

    Raises:
        ScoringError: the scorer abstained from a response.
    """
    return np.array(complete_scores(gold, groups), dtype=np.float64)


def _check_ending(name: str, groups: Sequence[Group], samples: Samples) -> None:
    if samples.ended is None:
        return
    for part in (samples.ended[..., : samples.n], samples.ended[..., samples.n :]):
        none = np.asarray(~part.any(-1) if part.shape[-1] else np.zeros(len(part), bool))
        if none.any():
            raise DataError(
                "no response to a prompt ended within the limit, so nothing is left of its distribution",
                where=f"{name}, prompt {groups[int(none.argmax())].prompt.id or int(none.argmax()) + 1}",
                got=f"{int(none.sum())} of {len(none)} prompts without an ended response",
                expected="responses that end, for cut=ended",
                fix="raise max_tokens or samples_per_prompt, or set cut=outcome",
            )


def _scaled(estimate: Estimate, beta: float) -> Estimate:
    return Estimate(estimate.value * beta, estimate.low * beta, estimate.high * beta, estimate.n)
