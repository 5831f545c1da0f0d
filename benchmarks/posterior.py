"""How far the posterior lab's numbers may be trusted, on enumerable worlds: coverage of intervals, and the refusals.

    python -m benchmarks.posterior coverage [--runs 500]
    python -m benchmarks.posterior refusals [--runs 60]

A world is 400 prompts with 2,000 responses each, of one token, so that all is known. A run draws 40 prompts and as many
responses of a policy as of the prior. `coverage`: share of the runs whose 95% interval has the exact mean over all
prompts, of those whose diagnostics print the numbers. `refusals`: the same by the k-hat and the ESS that decide, for
worlds from easy to hopeless: how often a number that would be printed lies outside its interval, and how often one that
is refused does not.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from tiltyard.posterior.estimates import Samples, estimate, k_hats
from tiltyard.posterior.support import WEIGHTED, WORST, support_of
from tiltyard.stats.importance import Floats
from tiltyard.stats.intervals import mean_ci

PROMPTS, RESPONSES, DRAWN = 400, 2000, 40
PRINTED = ("factor", "kl", "kl_sampled", "entropy", *WEIGHTED)
SPREADS = {"normal": (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0), "exponential": (0.3, 0.5, 0.7, 0.9, 1.2)}
POLICIES = ("prior", "half", "other", "posterior")  # half: between prior and pi*; other: a different one near the prior


@dataclass(frozen=True)
class World:
    """Log-probs of a policy and of a prior, and log factors, [prompts, responses]."""

    policy: Floats
    prior: Floats
    factor: Floats

    @property
    def target(self) -> Floats:
        """log pi*."""
        return log_normalised(self.prior + self.factor)

    def exact(self) -> dict[str, float]:
        """Every printed quantity, as its mean over all prompts."""
        pi, star = np.exp(self.policy), np.exp(self.target)
        kl = (pi * (self.policy - self.prior)).sum(-1)
        posterior_kl = (star * (self.target - self.prior)).sum(-1)
        found = {
            "factor": (pi * self.factor).sum(-1),
            "kl": kl,
            "kl_sampled": kl,
            "entropy": -(pi * self.policy).sum(-1),
            "log_z": np.logaddexp.reduce(self.prior + self.factor, -1),
            "gap": (pi * (self.policy - self.target)).sum(-1),
            "reverse": (star * (self.target - self.policy)).sum(-1),
            "tv": 0.5 * np.abs(pi - star).sum(-1),
            "posterior_factor": (star * self.factor).sum(-1),
            "posterior_kl": posterior_kl,
        }
        return {name: float(value.mean()) for name, value in found.items()}

    def draw(self, rng: np.random.Generator, n: int, prompts: int = DRAWN) -> Samples:
        """`n` responses of the policy and of the prior to some prompts."""
        chosen = rng.integers(len(self.prior), size=prompts)
        pi = np.exp(self.policy[chosen])
        places = np.concatenate([_drawn(rng, pi, n), _drawn(rng, np.exp(self.prior[chosen]), n)], -1)
        policy, prior, factor = (
            np.take_along_axis(x[chosen], places, -1) for x in (self.policy, self.prior, self.factor)
        )
        kl = (pi * (self.policy - self.prior)[chosen]).sum(-1, keepdims=True)
        entropy = -(pi * self.policy[chosen]).sum(-1, keepdims=True)
        return Samples(policy, prior, factor, kl.repeat(n, -1), entropy.repeat(n, -1), n)


def log_normalised(x: Floats) -> Floats:
    """Log-probabilities along the last axis."""
    found: Floats = x - np.logaddexp.reduce(x, -1, keepdims=True)
    return found


def _drawn(rng: np.random.Generator, p: Floats, n: int) -> np.ndarray:
    cdf = p.cumsum(-1)
    return np.array([np.minimum(np.searchsorted(row, rng.random(n)), len(row) - 1) for row in cdf])


def world(seed: int, spread: float, policy: str, tail: str = "normal") -> World:
    """A world whose log factors have this standard deviation, a little different from prompt to prompt.

    With tail `exponential` the weights of the prior's responses have a Pareto tail whose shape k is the spread.
    """
    rng = np.random.default_rng(seed)
    prior = log_normalised(1.5 * rng.normal(size=(PROMPTS, RESPONSES)))
    draw = rng.exponential if tail == "exponential" else rng.standard_normal
    factor = spread * rng.lognormal(0, 0.2, size=(PROMPTS, 1)) * draw(size=(PROMPTS, RESPONSES))
    other = 0.7 * rng.normal(size=(PROMPTS, RESPONSES))
    tilt = {"prior": 0.0, "half": factor / 2, "other": other, "posterior": factor}[policy]
    return World(log_normalised(prior + tilt), prior, factor)


def coverage(runs: int) -> None:
    """Prints the share of the intervals that have the exact value, of those that are printed."""
    print(f"coverage in percent of up to {runs} runs, {DRAWN} prompts, 32 responses of each")
    print("| spread | policy | printed | " + " | ".join(PRINTED) + " |")
    for spread in (0.5, 1.0, 1.5):
        for policy in POLICIES:
            made, rng = world(1, spread, policy), np.random.default_rng(2)
            exact, hits, printed = made.exact(), dict.fromkeys(PRINTED, 0), 0
            for _ in range(runs):
                samples = made.draw(rng, 32)
                terms = estimate(samples)
                if not support_of(terms.ess, k_hats(samples), samples.log_policy.shape[-1]).ok:
                    continue
                printed += 1
                for name in PRINTED:
                    found = mean_ci(getattr(terms, name), skewed=True)
                    hits[name] += found.low - 1e-9 <= exact[name] <= found.high + 1e-9
            cells = [f"{100 * hits[name] / printed:.1f}" if printed else "-" for name in PRINTED]
            print(f"| {spread} | {policy} | {printed} | " + " | ".join(cells) + " |", flush=True)


def refusals(runs: int) -> None:
    """Prints what the rule of refusal does, and how wrong numbers are by their k-hat."""
    rows: list[list[float]] = []
    for tail, spreads in SPREADS.items():
        for spread, policy in product(spreads, ("prior", "half", "other")):
            made, rng = world(1, spread, policy, tail), np.random.default_rng(3)
            exact = made.exact()
            for n in (16, 64, 256):
                rows += [_judged(made.draw(rng, n), exact) for _ in range(runs)]
            print(f"# {tail} {spread} {policy}", flush=True)
        _print_judged(np.array(rows))
        rows.clear()


def _print_judged(table: np.ndarray) -> None:
    ok, k, ess, errors = table[:, 0] > 0, table[:, 1], table[:, 2], table[:, 3:]
    print(f"{len(table)} runs; of each the gap, log Z and KL from pi*: share outside the interval, mean error in nats")
    for name, part in (("printed", ok), ("refused", ~ok)):
        print(_line(name, part, errors))
    print("by k-hat of nine prompts in ten")
    edges = [-np.inf, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, np.inf]
    for low, high in pairwise(edges):
        print(_line(f"{low:.1f} to {high:.1f}", (k >= low) & (k < high) & (ess >= 10), errors))
    print("by ESS of nine prompts in ten, k-hat at most 0.7")
    edges = [0, 3, 5, 10, 20, 40, np.inf]
    for low, high in pairwise(edges):
        print(_line(f"{low:.0f} to {high:.0f}", (ess >= low) & (ess < high) & (k <= 0.7), errors))


def _judged(samples: Samples, exact: dict[str, float]) -> list[float]:
    terms = estimate(samples)
    support = support_of(terms.ess, k_hats(samples), samples.log_policy.shape[-1])
    shape = -10.0 if support.k_hat is None else support.k_hat
    found = [float(support.ok), shape, float(np.quantile(terms.ess, WORST))]
    for name in ("gap", "log_z", "reverse"):
        value = mean_ci(getattr(terms, name), rounds=400, skewed=True)
        found += [float(not value.low <= exact[name] <= value.high), value.value - exact[name]]
    return found


def _line(name: str, part: np.ndarray, errors: Floats) -> str:
    if not part.any():
        return f"| {name} | 0 |"
    some = errors[part]
    cells = [f"{100 * some[:, i].mean():.0f}% {some[:, i + 1].mean():+.3f}" for i in (0, 2, 4)]
    return f"| {name} | {int(part.sum())} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["coverage", "refusals"])
    parser.add_argument("--runs", type=int, default=0)
    given = parser.parse_args()
    if given.what == "coverage":
        coverage(given.runs or 500)
    else:
        refusals(given.runs or 60)
