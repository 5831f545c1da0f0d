"""Scalar rewards from comparisons of responses to one prompt."""

from __future__ import annotations

from tiltyard.errors import DataError
from tiltyard.stats.ratings.battles import Battles, BothBad
from tiltyard.stats.ratings.bradley_terry import bradley_terry
from tiltyard.stats.ratings.selection import rating_posterior


def rewards_of_responses(
    battles: Battles, *, prior_sd: float | None = None, both_bad: BothBad = "apart"
) -> dict[str, float]:
    """Computes a reward for each response to one prompt: its Bradley-Terry rating in logits, centred.

    Few votes seldom bound a rating. Without `prior_sd` such a response has the reward +inf, -inf or nan, which must be
    left out of training; with it the reward is the posterior mode under ratings ~ Normal(0, prior_sd^2), always finite
    and drawn towards 0 where there are few votes. Ties are half a win for each.

    Args:
        battles: of one prompt, with the responses as "models".
        prior_sd: in logits; None: maximum likelihood.
        both_bad: as in `bradley_terry`.

    Raises:
        DataError: battles of several prompts, a deviation that is not positive, and the errors of `bradley_terry`.
    """
    if len(set(battles.prompt_N)) > 1:
        raise DataError(
            "rewards are comparable within one prompt only",
            got=f"battles of {len(set(battles.prompt_N))} prompts",
            fix="call it for the battles of each prompt: battles.where(battles.prompt_N == number)",
        )
    if prior_sd is None:
        fit = bradley_terry(battles, both_bad=both_bad)
        return dict(zip(fit.models, fit.rating_M.tolist(), strict=True))
    mode = rating_posterior(battles, prior_sd=prior_sd, both_bad=both_bad)
    return dict(zip(mode.models, mode.mean_M.tolist(), strict=True))
