"""Exact samples of pi* by rejection from the prior, and the upper bound of log Z that they give."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tiltyard.posterior.estimates import accepts
from tiltyard.posterior.measure import PriorSamples
from tiltyard.posterior.support import WORST
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings, response_seeds, sample
from tiltyard.stats.importance import Floats

ROUNDS = 16  # times that a prompt without an exact sample gets as many samples of the prior again
KEY = 10_000_000  # of these samples' random numbers; models have 0, 1, 2, ...


@dataclass(frozen=True)
class UpperBound:
    """Estimates whose expectation is above each prompt's log Z.

    Args:
        log_z: [prompts]; nan where no sample was accepted. exact: number of exact samples of pi*. tried: samples of the
            prior that they were accepted from.
    """

    log_z: Floats
    exact: int
    tried: int

    def width(self, lower_P: Floats) -> float:
        """Mean distance to the lower bounds; nan where more than one prompt in ten has no upper one."""
        known = ~np.isnan(self.log_z)
        if np.mean(~known) > WORST:
            return math.nan
        return float((self.log_z - lower_P)[known].mean())


def upper_bound(
    target: Target, prior: PriorSamples, highest: float, sampling: SampleSettings, *, seed: int = 0
) -> UpperBound:
    """Bounds log Z from above with exact samples of pi*.

    The first half of the prior's samples is thinned by rejection, which needs the highest possible g; a prompt of which
    none is accepted gets further samples. See `sandwich`.

    Args:
        highest: upper bound of g = r / beta.

    Raises:
        DataError: a g above the bound. ScoringError: a scorer abstained.
    """
    rng = np.random.default_rng((seed, KEY))
    n = prior.log_factor.shape[-1]
    half = n // 2
    first, second = prior.log_factor[:, :half], prior.log_factor[:, half : 2 * half]
    accepted = accepts(prior.log_factor, highest, rng.random(prior.log_factor.shape))[:, :half]
    exact = [row[kept] for row, kept in zip(first, accepted, strict=True)]
    tried = first.size
    for number in range(ROUNDS):
        without = [i for i, found in enumerate(exact) if not len(found)]
        if not without:
            break
        prompts = [prior.groups[i].prompt for i in without]
        drawn = sample(target.prior.model, prompts, n, sampling, seeds=response_seeds(without, n, seed, KEY + number))
        more = np.array(target.log_weights(drawn), dtype=np.float64)
        kept = accepts(more, highest, rng.random(more.shape))
        tried += more.size
        for i, row, passed in zip(without, more, kept, strict=True):
            exact[i] = row[passed]
    bounds = [sandwich(found, rest) for found, rest in zip(exact, second, strict=True)]
    return UpperBound(np.array(bounds), sum(map(len, exact)), tried)


def sandwich(exact_K: Floats, prior_M: Floats) -> float:
    """An estimate of one prompt's log Z whose expectation is above it; nan without an exact sample.

    Each exact sample's g takes the place of one of the prior's in the log of the mean weight (Grosse, Ghahramani &
    Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo"; conditional SMC with one step).
    With the lower bound it encloses log Z, and both close as the number of samples grows.

    Args:
        exact_K: g of exact samples of pi*. prior_M: g of other samples of the prior, at least one.
    """
    if not len(exact_K):
        return math.nan
    rest = np.logaddexp.reduce(prior_M[1:]) if len(prior_M) > 1 else -np.inf
    return float((np.logaddexp(exact_K, rest) - math.log(len(prior_M))).mean())
