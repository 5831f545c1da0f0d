"""Sequential Monte Carlo: particles that are weighted and resampled while they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tiltyard.errors import ConfigError
from tiltyard.posterior.infer.base import Drawn, check_range, posterior_sampler
from tiltyard.posterior.infer.candidates import KEY
from tiltyard.posterior.infer.resampling import Resampling, ancestors, copies
from tiltyard.posterior.infer.twists import ScoredBeginnings, Twist
from tiltyard.posterior.measure import Progress, check_sampling, silent
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings, response_seeds
from tiltyard.sampling.particles import Particles, prompts_together
from tiltyard.stats.importance import Floats, effective_samples, k_hat, log_mean_exp, normalised
from tiltyard.types import Group, Prompt


@posterior_sampler(
    formula="particles at prior(y_1..t) psi_t, psi_t = exp(r(beginning) / beta) every few tokens, exact at the end",
    exact="pi* as the number of particles grows; Z is unbiased for any number",
    needs="particles",
    paper="Doucet, de Freitas & Gordon 2001; Lew et al. 2023 (2306.03081) for language models",
    pitfalls="Scores unfinished responses: a reward that judges only whole ones misleads it (every: 0 leaves them "
    "out). Responses to a prompt are not independent; their ancestors may be few.",
)
@dataclass(frozen=True)
class SMC:
    """K particles a prompt; the reward of their beginnings decides which go on.

    Args:
        particles: K. every: tokens between two scorings of the beginnings; 0: only what has ended is scored.
        resample_below: resampled where the effective number is below this share of K. scheme: of resampling.
    """

    particles: int = 64
    every: int = 8
    resample_below: float = 0.5
    scheme: Resampling = "systematic"

    name: ClassVar[str] = "smc"
    ranks_only: ClassVar[bool] = False
    weighted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range(f"{self.name}.particles", self.particles, self.particles >= 1, "at least 1")
        check_range(f"{self.name}.resample_below", self.resample_below, 0 <= self.resample_below <= 1, "from 0 to 1")

    def rows(self, n: int) -> int:  # noqa: ARG002 - they share the particles
        """Particles of a prompt."""
        return self.particles

    def twist(self, target: Target) -> Twist:
        """The psi of unfinished responses."""
        return ScoredBeginnings(target, self.every)

    def draw(
        self,
        target: Target,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SampleSettings,
        *,
        seed: int = 0,
        first: int = 0,
        progress: Progress = silent,
    ) -> list[Drawn]:
        """`n` responses to each prompt, drawn from its final particles by their weights; see `PosteriorSampler.draw`.

        Raises:
            ConfigError: more responses than particles.
        """
        check_sampling(target, sampling)
        if n > self.particles:
            raise ConfigError(
                "more responses are asked for than there are particles to draw them from",
                where=f"{self.name}.particles",
                got=f"{self.particles} particles, {n} responses",
                expected=f"at least {n}, better several times as many",
                fix=f"set particles to {8 * n} or so",
            )
        found: list[Drawn] = []
        step = prompts_together(target.prior.model, self.particles, sampling)
        for start in range(0, len(prompts), step):
            part = prompts[start : start + step]
            indices = range(first + start, first + start + len(part))
            population = Population(
                target,
                part,
                self.particles,
                sampling,
                response_seeds(indices, self.particles, seed, KEY),
                self.twist(target),
                [np.random.default_rng((seed, KEY, i)) for i in indices],
            )
            population.run(self.resample_below, self.scheme)
            found += [population.drawn(p, n) for p in range(len(part))]
            progress(len(part))
        return found


class Population:
    """The weighted particles of some prompts.

    With psi_0 = 1 and psi of a finished response exp(g), the weights since the last resampling are the products of
    prior / proposal * psi_t / psi_t-1, and Z is estimated by the product of their means at each resampling. Its
    expectation is Z for any psi above 0, any proposal and any times of resampling (Del Moral 2004).

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
    ):
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
        proposal = self.twist.propose(particles, self.generators)
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

    def _resample(self, resample_below: float, scheme: Resampling) -> None:
        few = effective_samples(self.log_w) < resample_below * self.k
        goes_on = {r // self.k for r in self.particles.running}
        order = np.arange(self.log_w.size).reshape(self.log_w.shape)
        for p in np.flatnonzero(few).tolist():
            if p not in goes_on:
                continue
            counts = copies(normalised(self.log_w[p]), self.k, scheme, self.generators[p])
            chosen = ancestors(counts)
            order[p] = order[p][chosen]
            self.log_z[p] += float(log_mean_exp(self.log_w[p]))
            self.log_w[p], self.log_psi[p] = 0.0, self.log_psi[p][chosen]
            self.resampled[p] += 1
        if (flat := order.reshape(-1).tolist()) != list(range(len(flat))):
            self.particles.resample(flat)

    def final_log_z(self, p: int) -> float:
        """The estimate of log Z of a prompt; Z's is unbiased."""
        return float(self.log_z[p] + log_mean_exp(self.log_w[p]))

    def drawn(self, p: int, n: int) -> Drawn:
        """n responses of a prompt's final particles, by systematic resampling, in random order."""
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
            resampled=int(self.resampled[p]),
        )
