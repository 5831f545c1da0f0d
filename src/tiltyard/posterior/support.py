"""Diagnostics of importance estimates, and the refusal of numbers that they do not support."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tiltyard.stats.importance import K_LIMIT, LEAST_ESS, Floats, samples_for_k

WORST = 0.1  # share of the prompts with the fewest effective samples that is left out of the judgement
APART = 0.5  # nats between the two bounds of log Z above which it is not known
WEIGHTED = ("log_z", "gap", "reverse", "tv", "posterior_factor", "posterior_kl")  # estimates that need the weights


@dataclass(frozen=True)
class Refusal:
    """A reason that the weighted estimates are not printed.

    Args:
        reason: for people. needed: samples a prompt that would mend it; None: no number would, or none is known.
    """

    reason: str
    needed: int | None


@dataclass(frozen=True)
class Support:
    """Diagnostics of the weighted estimates, over prompts.

    Args:
        samples: a prompt. ess: of nine prompts in ten at least this effective number. k_hat: the median prompt's Pareto
            shape; None where few different weights leave no tail. width: nats between the bounds of log Z, None without
            an upper one. refusals: empty where the estimates are supported.
    """

    samples: int
    ess: float
    k_hat: float | None
    width: float | None
    refusals: tuple[Refusal, ...]

    @property
    def ok(self) -> bool:
        return not self.refusals


def support_of(ess_P: Floats, k_P: Floats, samples: int, width: float | None = None) -> Support:
    """Judges the weights of all prompts.

    k-hat of one prompt's samples is noisy, and the estimates are means over prompts: on enumerable worlds the median
    prompt's k-hat refuses what the 90th percentile does and was wrong, and less of what was right (docs/lab.md).

    Args:
        ess_P, k_P: effective numbers and Pareto shapes of the prompts. samples: a prompt. width: nats between the mean
            upper and the mean lower bound of log Z.
    """
    ess = float(np.quantile(ess_P, WORST))
    known = k_P[~np.isnan(k_P)]
    shape = float(np.median(np.maximum(known, -10.0))) if len(known) else None
    refusals = []
    if ess < LEAST_ESS:
        needed = math.ceil(samples * LEAST_ESS / ess) if ess > 0 else None
        refusals.append(Refusal(f"ESS {ess:.1f} of {samples} samples, below {LEAST_ESS:g}", needed))
    if shape is not None and shape > K_LIMIT:
        least = samples_for_k(shape)
        needed = math.ceil(max(least, samples + 1)) if least < 1e9 else None
        refusals.append(Refusal(f"k-hat {shape:.2f} of the median prompt, above {K_LIMIT}", needed))
    if width is not None and not width <= APART:
        if math.isnan(width):
            refusals.append(Refusal("no exact posterior sample for the upper bound of log Z", None))
        else:
            needed = math.ceil(samples * width / APART)
            refusals.append(Refusal(f"the bounds of log Z are {width:.2f} nats apart, more than {APART}", needed))
    return Support(samples, ess, shape, width, tuple(refusals))
