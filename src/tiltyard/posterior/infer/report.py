"""A sampler's report over all prompts: acceptance, effective numbers, distances to pi*, cost of a response."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tiltyard.posterior.support import WORST, support_of
from tiltyard.stats.intervals import Estimate, mean_ci


@dataclass(frozen=True)
class Report:
    """Numbers of a sampler over prompts; means have 95% intervals that resample prompts.

    Args:
        sampler: its name. prompts: how many. wanted, given: responses that were asked for, and that there are.
        accept_rate: accepted of the sampled. unique: share of the responses that are different candidates, or of the
            particles' first ancestors that are left. resampled: times a prompt.
        ess: of nine prompts in ten at least this effective number. sampled: candidates or particles a prompt.
        reward: of the responses. log_z, kl, tv, kl_to_prior: None where unknown or refused; KLs in nats a response.
        at_most: kl, tv and kl_to_prior are upper bounds: those of particles (`population.Population`).
        seconds, tokens, calls, read: a response that was given: time, tokens that the prior computed, calls of the
            reward and tokens that it read.
        refusals: reasons that log Z, KL and TV to pi* are not given.
    """

    sampler: str
    prompts: int
    wanted: int
    given: int
    accept_rate: float
    unique: float
    resampled: float
    ess: float
    sampled: float
    reward: Estimate | None
    log_z: Estimate | None
    kl: Estimate | None
    tv: Estimate | None
    kl_to_prior: Estimate | None
    at_most: bool
    seconds: float
    tokens: float
    calls: float
    read: float
    refusals: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        body = asdict(self)
        return {k: v._asdict() if isinstance(v := getattr(self, k), Estimate) else body[k] for k in body}


def report_of(
    sampler: str, facts: Sequence[Mapping[str, Any]], beta: float | None, *, weighted: bool, seed: int = 0
) -> Report:
    """The report of a sampler.

    Args:
        facts: `Drawn.facts()` of each prompt, with `seconds`, `calls` and `read` of it.
        beta: of the target g = r / beta; None: the target has none, and pi* is unknown.
        weighted: the candidates' weights are those of pi* against the prior, so ESS and k-hat judge the estimates.
    """

    def column(key: str) -> np.ndarray:
        return np.array([math.nan if f.get(key) is None else float(f[key]) for f in facts])

    def mean(values: np.ndarray) -> Estimate | None:
        return None if np.isnan(values).all() else mean_ci(values[~np.isnan(values)], seed=seed)

    refusals = _refusals(column, beta, weighted=weighted)
    given = column("given").sum()
    factor = [x for f in facts for x in f["factor"]]
    prompt = [i for i, f in enumerate(facts) for _ in f["factor"]]
    cost = {key: float(column(key).sum() / max(given, 1)) for key in ("seconds", "tokens", "calls", "read")}
    known = {key: None if refusals else mean(column(key)) for key in ("log_z", "kl", "tv")}
    at_most = any(f.get("at_most") for f in facts)
    if at_most:
        known["kl"], enough = _bounded(column("kl"), mean)
        known["tv"] = tv_bound(known["kl"])
        refusals = refusals or enough
    return Report(
        sampler,
        len(facts),
        int(column("wanted").sum()),
        int(given),
        accept_rate=float(column("accepted").sum() / max(column("sampled").sum(), 1)),
        unique=float(column("unique").sum() / max(given if weighted else column("sampled").sum(), 1)),
        resampled=float(column("resampled").mean()),
        ess=float(np.quantile(column("ess"), 0.1)),
        sampled=float(column("sampled").mean()),
        reward=mean_ci(np.array(factor) * (beta or 1.0), clusters=prompt, seed=seed) if factor else None,
        kl_to_prior=mean(column("kl_to_prior")),
        at_most=at_most,
        refusals=refusals,
        log_z=known["log_z"],
        kl=known["kl"],
        tv=known["tv"],
        **cost,
    )


def _bounded(
    kl_P: np.ndarray, mean: Callable[[np.ndarray], Estimate | None]
) -> tuple[Estimate | None, tuple[str, ...]]:
    """The mean upper bound of KL to pi*, and why there is none: it needs an exact sample for nine prompts in ten."""
    missing = int(np.isnan(kl_P).sum())
    if missing == len(kl_P):
        return None, ("an upper bound of log Z needs exact samples of pi*: set most, and score_bound; there are none",)
    if missing > WORST * len(kl_P):
        return None, (f"no exact sample of pi* for {missing} of {len(kl_P)} prompts; raise most, or beta",)
    return mean(kl_P), ()


def tv_bound(kl: Estimate | None) -> Estimate | None:
    """The total variation that a KL allows: sqrt(KL / 2) (Pinsker) and sqrt(1 - exp(-KL)) (Bretagnolle & Huber).

    Both are bounds, and concave, so that they hold for means over prompts.
    """
    if kl is None:
        return None

    def bound(x: float) -> float:
        x = max(0.0, x)
        return math.sqrt(min(x / 2, -math.expm1(-x)))

    return Estimate(bound(kl.value), bound(kl.low), bound(kl.high), kl.n)


def _refusals(column: Any, beta: float | None, *, weighted: bool) -> tuple[str, ...]:
    if beta is None:
        return ("pi* is that of a beta: give one, and the distance to it is estimated",)
    if not weighted:
        return ()
    found = support_of(column("ess"), column("k_hat"), int(column("sampled").mean())).refusals
    return tuple(
        f"{refusal.reason}; "
        + (
            "no number of samples mends that: raise beta"
            if refusal.needed is None
            else f"about {refusal.needed:,} would do"
        )
        for refusal in found
    )
