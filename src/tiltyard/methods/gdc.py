"""GDC: the nearest distribution to the reference in which features have given means, and DPG towards it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.methods.base import method
from tiltyard.methods.distribution import DEFAULTS, DEFAULTS_FROM, MatchingAdvantages, TargetRatios
from tiltyard.methods.policy_gradient import (
    require_fresh_responses,
    require_several_samples,
    require_untruncated_sampling,
)
from tiltyard.methods.rloo import Reinforce
from tiltyard.training.algorithm import Algorithm
from tiltyard.training.constrained import Constrained
from tiltyard.training.prepare import OldLogp, ResponseRewards
from tiltyard.training.source import Online


@method(
    "distribution",
    source=Prompts(),
    roles=(Policy(), Reference(), Reward()),
    rests_on_labels=False,
    defaults=DEFAULTS,
    defaults_from=DEFAULTS_FROM,
    formula="p = ref exp(sum_i lambda_i phi_i) / Z(x), lambda such that the mean of phi_i under p is moments_i "
    "(Newton on samples of ref)\n"
    "then DPG: w_i = p(y_i) / pi(y_i);  L = mean over responses of -(w_i - 1) log pi(y_i), w held constant",
    oracle="of all distributions with these moments the one nearest to ref in KL(p || ref); of one feature that is 0 "
    "or 1, exp(lambda) = mu/(1 - mu) (1 - p0)/p0, p0 its mean under ref",
    paper="Khalifa et al. 2021 (GDC); baseline: Korbak et al. 2022 (GDC++)",
    pitfalls="A feature that the reference hardly ever has gives no weight to learn from: raise samples_per_prompt, or "
    "go by steps. The means are over prompts: single prompts may lie far from them. Features are the parts of "
    "`reward`; their means are logged as reward/NAME, lambda as lambda/NAME.",
)
def gdc(
    source: Online,
    *,
    moments: dict[str, float] = {},  # noqa: B006 - read, never changed
    moment_prompts: Annotated[int, Field(gt=0)] = 64,
    moment_samples: Annotated[int, Field(gt=1)] = 32,
    baseline: bool = True,
) -> Algorithm:
    """Distributional control: features of the responses get the means that are asked for, and nothing else changes.

    "Half of the people mentioned are women": a feature that is 1 where one is, and the moment 0.5. A moment of 1 or 0
    of a feature that is 1 or 0 is a pointwise constraint: every response must have it, or none.

    Args:
        source: `Online` whose scorer has a part for each feature; a part without a moment is a score that is added to
            the exponent with its own weight.
        moments: the wanted mean of each feature over prompts, by the name of its part of `reward` (`reward` itself
            where it has no parts). [{}: Tiltyard; at least one must be given]
        moment_prompts: prompts on which the coefficients are solved, spread over all. [64: Tiltyard]
        moment_samples: responses of the reference to each of them. [32: Tiltyard]
        baseline: subtract 1, the mean weight, from each weight. [true: Korbak et al. 2022]
    """
    require_untruncated_sampling(source, "gdc")
    require_fresh_responses(source, "gdc")
    require_several_samples(source, "gdc")
    temperature = source.settings.temperature
    return Algorithm(
        "gdc",
        Constrained(source, moments, moment_prompts, moment_samples),
        Reinforce(),
        prepare=(
            OldLogp(temperature, against_ref=True),
            ResponseRewards(0.0),
            TargetRatios(1.0),
            MatchingAdvantages(baseline),
        ),
        temperature=temperature,
    )
