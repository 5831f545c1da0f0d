"""The protocol of samplers of a posterior, their result for a prompt, and the table of all of them.

A sampler takes a `Target` and never learns what a scorer is: it needs samples and log-probs of the prior, and the
target's log factor g(x, y) = r / beta of responses. It trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np

from tiltyard.errors import ConfigError, nearest
from tiltyard.posterior.measure import Progress
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings
from tiltyard.stats.importance import Floats, effective_samples, k_hat, log_mean_exp, normalised
from tiltyard.types import Group, Prompt


class Distance(NamedTuple):
    """Distances of a sampler's distribution, in nats a response: KL to pi*, total variation to pi*, KL to the prior.

    Those of particles are estimates of upper bounds (`at_most`), and the first two nan where they are unknown.
    """

    kl: float
    tv: float
    kl_to_prior: float
    at_most: bool = False


@dataclass(frozen=True)
class Drawn:
    """The responses of a sampler to one prompt, their cost, and the diagnostics of their distribution.

    Args:
        group: the responses; its scores are their log factors g. Fewer than wanted where too few were accepted.
        wanted: responses that were asked for.
        sampled: responses or particles that the prior began. accepted: of them, as many as passed the sampler's test.
        tokens: that the prior computed for them.
        log_z: estimate of log Z; unbiased for Z in rejection-free samplers.
        ess: effective number of the weighted candidates or final particles. k_hat: Pareto shape of the weights.
        unique: different candidates among the responses; of particles, different first ancestors.
        distance: to pi* and to the prior, None where samples cannot estimate it.
        resampled: how often particles were resampled.
    """

    group: Group
    wanted: int
    sampled: int
    accepted: int
    tokens: int
    log_z: float
    ess: float
    k_hat: float
    unique: int
    distance: Distance | None = None
    resampled: int = 0

    def facts(self) -> dict[str, Any]:
        """The numbers of this prompt, as `report.report_of` takes them."""
        known = self.distance or Distance(math.nan, math.nan, math.nan)
        kl, tv, kl_to_prior = (None if math.isnan(x) else x for x in known[:3])
        skipped = ("group", "distance")
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in skipped}
        g = [float(x) for x in self.group.scores or ()]
        distances = {"kl": kl, "tv": tv, "kl_to_prior": kl_to_prior, "at_most": known.at_most}
        return {**own, "given": len(g), "factor": g, **distances}


class PosteriorSampler(Protocol):
    """Samples a target without training; implementations are frozen dataclasses whose fields are their settings.

    Attributes:
        name: in the table. ranks_only: the order of the scores alone matters, so that the target needs no beta.
        weighted: it samples the prior, and the weights of what it sampled estimate pi*.
    """

    name: ClassVar[str]
    ranks_only: ClassVar[bool]
    weighted: ClassVar[bool]

    def rows(self, n: int) -> int:
        """About how much is sampled together for n responses to a prompt: rows of the sampler."""

    def draw(
        self,
        target: Target,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SampleSettings,
        *,
        seed: int = 0,
        first: int = 0,
        progress: Progress = ...,
    ) -> list[Drawn]:
        """`n` responses to each prompt.

        Args:
            prompts: encoded. sampling: untruncated, at the prior's temperature.
            seed, first: of the random numbers: a response depends on the seed, on its prompt's index (that of the
                first prompt is `first`) and on nothing else. progress: takes the number of further finished prompts.

        Raises:
            ConfigError: truncated sampling, or settings that do not fit n. ScoringError: a scorer abstained.
        """


class Entry(NamedTuple):
    """A row of the table of samplers.

    Args:
        sampler: a frozen dataclass. formula: the distribution of a response. exact: what it is exact for. needs: what
            it needs beside the target. paper, pitfalls: for people.
    """

    sampler: type[Any]
    formula: str
    exact: str
    needs: str
    paper: str
    pitfalls: str


SAMPLERS: dict[str, Entry] = {}
S = TypeVar("S", bound=type)


def posterior_sampler(*, formula: str, exact: str, needs: str, paper: str, pitfalls: str) -> Callable[[S], S]:
    """Registers a sampler in the table under its `name`."""

    def register(cls: S) -> S:
        SAMPLERS[cls.name] = Entry(cls, formula, exact, needs, paper, pitfalls)  # type: ignore[attr-defined]
        return cls

    return register


def make_sampler(name: str, **values: Any) -> PosteriorSampler:
    """The sampler of this name with these settings; one of None is left at its default.

    Raises:
        ConfigError: an unknown name, a setting that this sampler does not have, or a value out of range.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"there is no sampler '{name}'", where="infer", got=name, fix=nearest(name, SAMPLERS))
    cls = SAMPLERS[name].sampler
    given = {key: value for key, value in values.items() if value is not None}
    known = [field.name for field in fields(cls)]
    for key, value in given.items():
        if key not in known:
            raise ConfigError(
                f"the sampler {name} has no such setting",
                where=f"infer={name}",
                got=f"{key}={value}",
                expected=", ".join(known) or "no settings",
                fix=f"leave {key} out, or take: {', '.join(n for n, e in SAMPLERS.items() if _has(e.sampler, key))}",
            )
    made: PosteriorSampler = cls(**given)
    return made


def _has(cls: type, key: str) -> bool:
    return key in {field.name for field in fields(cls)}


def check_range(where: str, value: float, fine: bool, expected: str) -> None:
    """Raises a ConfigError unless `fine`."""
    if not fine:
        raise ConfigError("setting of a sampler out of range", where=where, got=f"{value:g}", expected=expected)


def drawn_from(
    pool: Group,
    factor_M: Floats,
    picked: Sequence[int],
    wanted: int,
    distance: Distance | None = None,
    accepted: int | None = None,
) -> Drawn:
    """The result of a sampler that picks among candidates of the prior.

    Args:
        pool: the M candidates. factor_M: their g. picked: places of the responses. accepted: None: the picked.
    """
    group = Group(
        pool.prompt,
        tuple(pool.responses[i] for i in picked),
        scores=tuple(float(factor_M[i]) for i in picked),
        origin="posterior",
    )
    return Drawn(
        group,
        wanted=wanted,
        sampled=len(pool.responses),
        accepted=len(picked) if accepted is None else accepted,
        tokens=sum(len(r.ids) for r in pool.responses),
        log_z=float(log_mean_exp(factor_M)),
        ess=float(effective_samples(factor_M)),
        k_hat=k_hat(factor_M),
        unique=len(set(picked)),
        distance=distance,
    )


def distance_of(density_M: Floats, factor_M: Floats) -> Distance:
    """Distances of a distribution to pi* and to the prior, by M samples of the prior.

    Args:
        density_M: its density relative to the prior at each sample, with mean 1. factor_M: g of each.
    """
    target_M = normalised(factor_M) * len(factor_M)
    kept = density_M > 0
    with np.errstate(divide="ignore"):
        log_density, log_target = np.log(density_M[kept]), np.log(target_M[kept])
    share = density_M[kept] / len(factor_M)
    return Distance(
        kl=float((share * (log_density - log_target)).sum()),
        tv=float(0.5 * np.abs(density_M - target_M).mean()),
        kl_to_prior=float((share * log_density).sum()),
    )
