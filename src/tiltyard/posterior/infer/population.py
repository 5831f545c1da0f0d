"""Weighted particles, and what their weights bound: log Z, and the KLs of the distribution of a particle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tiltyard.posterior.infer.base import Distance, Drawn
from tiltyard.posterior.infer.rejection import Rejection
from tiltyard.posterior.infer.resampling import Resampling, ancestors, copies
from tiltyard.posterior.infer.twists import Twist
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings
from tiltyard.sampling.particles import Particles
from tiltyard.stats.importance import Floats, effective_samples, k_hat, log_mean_exp, normalised
from tiltyard.types import Group, Prompt, Response

CONDITIONAL = 11  # tells the random numbers of runs around an exact sample from others with the same seed
ROUND = 64  # candidates of the prior at a time among which an exact sample is looked for


def exact_samples(
    target: Target,
    prompts: Sequence[Prompt],
    bound: float,
    most: int,
    sampling: SampleSettings,
    seed: int = 0,
    first: int = 0,
) -> list[Response | None]:
    """An exact sample of pi* to each prompt, by rejection; None where `most` candidates of the prior have none.

    Args:
        bound: an upper bound of g. first: index of the first prompt.

    Raises:
        DataError: a g above the bound.
    """
    sampler = Rejection(bound, min(ROUND, most), most)
    found = sampler.draw(target, prompts, 1, sampling, seed=seed, first=first)
    return [one.group.responses[0] if one.group.responses else None for one in found]


class Population:
    """The weighted particles of some prompts.

    With psi_0 = 1 and psi of a finished response exp(g), the weights since the last resampling are the products of
    prior / proposal * psi_t / psi_t-1, and Z is estimated by the product of their means at each resampling. Its
    expectation is Z for any psi above 0, any proposal and any times of resampling (Del Moral 2004). So with q the
    distribution of a particle drawn by its final weight

        E[log Z-hat]     <= log Z                      KL(q || pi*)   <= log Z - E[log Z-hat]
        E_q[g] - E[log Z-hat] >= KL(q || prior)

    as q * Z-hat / Z is a distribution of all particles together in which the drawn one follows pi*. Where one particle
    of each prompt is `kept` at an exact sample of pi*, that is the distribution of the rest (conditional SMC, Andrieu,
    Doucet & Holenstein 2010), and E[log Z-hat] >= log Z (Grosse et al. 2015; Zhao et al. 2024, section 5).

    Args:
        kept: ids of an exact sample of pi* of each prompt, the path of its first particle; None: all are sampled.

    Attributes:
        log_w: log weights since the last resampling [P, K]. log_psi: of each particle [P, K]. log_z: [P], up to then.
        resampled: how often [P].
    """

    def __init__(
        self,
        target: Target,
        prompts: Sequence[Prompt],
        k: int,
        sampling: SampleSettings,
        seeds: Sequence[int],
        twist: Twist,
        generators: Sequence[np.random.Generator],
        kept: Sequence[tuple[int, ...]] | None = None,
    ):
        self.kept = kept
        self.target, self.twist, self.generators, self.k = target, twist, generators, k
        self.particles = Particles(target.prior.model, prompts, k, sampling, seeds, twist.followers)
        shape = (len(prompts), k)
        self.log_w, self.log_psi = np.zeros(shape), np.zeros(shape)
        self.log_z, self.resampled = np.zeros(len(prompts)), np.zeros(len(prompts), int)

    def run(self, resample_below: float = 0.5, scheme: Resampling = "systematic") -> None:
        """Advances all particles until they have ended."""
        particles = self.particles
        training = particles.model.module.training
        particles.model.module.eval()
        try:
            while particles.running:
                self._step()
                if particles.running:
                    self._resample(resample_below, scheme)
        finally:
            particles.model.module.train(training)

    def _step(self) -> None:
        particles = self.particles
        proposal = self.twist.propose(particles, self.generators, self._forced())
        log_w, log_psi = self.log_w.reshape(-1), self.log_psi.reshape(-1).copy()
        log_w[particles.running] += proposal.log_weight
        ended = particles.extend(proposal.tokens, proposal.logps)
        if ended:
            log_psi[ended] = self.twist.exact(self.target, particles, ended)
        particles.advance()
        values = self.twist.values(particles) if particles.running else None
        if values is not None:
            log_psi[particles.running] = values
        log_w += log_psi - self.log_psi.reshape(-1)
        self.log_psi = log_psi.reshape(self.log_psi.shape)

    def _forced(self) -> dict[int, int] | None:
        """The next token of each particle that is kept on its path."""
        if self.kept is None:
            return None
        first = {p * self.k: ids for p, ids in enumerate(self.kept)}
        return {r: first[r][len(self.particles.ids[r])] for r in self.particles.running if r in first}

    def _resample(self, resample_below: float, scheme: Resampling) -> None:
        few = effective_samples(self.log_w) < resample_below * self.k
        goes_on = {r // self.k for r in self.particles.running}
        order = np.arange(self.log_w.size).reshape(self.log_w.shape)
        for p in np.flatnonzero(few).tolist():
            if p not in goes_on:
                continue
            share, rng = normalised(self.log_w[p]), self.generators[p]
            if self.kept is None:
                chosen = ancestors(copies(share, self.k, scheme, rng))
            else:  # the first stays, the others are drawn independently
                chosen = [0, *rng.choice(self.k, size=self.k - 1, p=share).tolist()]
            order[p] = order[p][chosen]
            self.log_z[p] += float(log_mean_exp(self.log_w[p]))
            self.log_w[p], self.log_psi[p] = 0.0, self.log_psi[p][chosen]
            self.resampled[p] += 1
        if (flat := order.reshape(-1).tolist()) != list(range(len(flat))):
            self.particles.resample(flat)

    def final_log_z(self, p: int) -> float:
        """The estimate of log Z of a prompt; Z's is unbiased."""
        return float(self.log_z[p] + log_mean_exp(self.log_w[p]))

    def distance(self, p: int, upper: float) -> Distance:
        """Estimates of upper bounds: of the KL to the prior, and with one of log Z of the KL and TV to pi*."""
        kl = upper - self.final_log_z(p)
        kl_to_prior = float(normalised(self.log_w[p]) @ self.log_psi[p]) - self.final_log_z(p)
        return Distance(kl, math.nan, kl_to_prior, at_most=True)

    def drawn(self, p: int, n: int, upper: float = math.nan) -> Drawn:
        """n responses of a prompt's final particles, by systematic resampling, in random order.

        Args:
            upper: an estimate above log Z, nan without one.
        """
        particles, weights = self.particles, self.log_w[p]
        counts = copies(normalised(weights), n, "systematic", self.generators[p])
        places = self.generators[p].permutation(np.repeat(np.arange(self.k), counts))
        rows = [p * self.k + int(place) for place in places]
        g: Floats = self.log_psi[p][places]
        return Drawn(
            Group(
                particles.prompts[p],
                tuple(particles.response(r) for r in rows),
                scores=tuple(float(x) for x in g),
                origin="posterior",
            ),
            wanted=n,
            sampled=self.k,
            accepted=n,
            tokens=particles.tokens[p],
            log_z=self.final_log_z(p),
            ess=float(effective_samples(weights)),
            k_hat=k_hat(weights),
            unique=len({particles.root[r] for r in range(p * self.k, (p + 1) * self.k)}),
            distance=self.distance(p, upper),
            resampled=int(self.resampled[p]),
        )
