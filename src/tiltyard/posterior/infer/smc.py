"""Sequential Monte Carlo: particles that are weighted and resampled while they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tiltyard.errors import ConfigError
from tiltyard.posterior.infer.base import Drawn, check_range, posterior_sampler
from tiltyard.posterior.infer.candidates import KEY
from tiltyard.posterior.infer.population import CONDITIONAL, Population, exact_samples
from tiltyard.posterior.infer.resampling import Resampling
from tiltyard.posterior.infer.twists import ScoredBeginnings, Twist
from tiltyard.posterior.measure import Progress, check_sampling, silent
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings, response_seeds
from tiltyard.sampling.particles import prompts_together
from tiltyard.types import Prompt


@posterior_sampler(
    formula="particles at prior(y_1..t) psi_t, psi_t = exp(r(beginning) / beta) every few tokens, exact at the end",
    exact="pi* as the number of particles grows; Z is unbiased for any number",
    needs="particles; with most and score_bound bounds of KL to pi*",
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
        bound: an upper bound of g. most: candidates of the prior to a prompt among which exact samples of pi* are
            looked for, by rejection; with them log Z, and so the KL to pi*, is bounded from above (`conditional`). 0:
            none.
    """

    particles: int = 64
    every: int = 8
    resample_below: float = 0.5
    scheme: Resampling = "systematic"
    bound: float | None = None
    most: int = 0

    name: ClassVar[str] = "smc"
    ranks_only: ClassVar[bool] = False
    weighted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range(f"{self.name}.particles", self.particles, self.particles >= 1, "at least 1")
        check_range(f"{self.name}.resample_below", self.resample_below, 0 <= self.resample_below <= 1, "from 0 to 1")
        check_range(f"{self.name}.most", self.most, self.most >= 0, "at least 0")
        if self.most and self.bound is None:
            raise ConfigError(
                "exact samples of pi* need the highest possible reward",
                where=f"{self.name}.most",
                got=self.most,
                expected="a reward that declares its highest, or score_bound",
                fix="set score_bound (1 for a reward from 0 to 1), or leave most out",
            )

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
            upper_P = self._upper(target, part, sampling, seed, indices.start)
            found += [population.drawn(p, n, upper) for p, upper in enumerate(upper_P)]
            progress(len(part))
        return found

    def _upper(
        self, target: Target, prompts: Sequence[Prompt], sampling: SampleSettings, seed: int, first: int
    ) -> list[float]:
        """An estimate above each prompt's log Z; nan without an exact sample of pi*."""
        if not self.most or self.bound is None:
            return [math.nan] * len(prompts)
        exact = exact_samples(target, prompts, self.bound, self.most, sampling, seed, first)
        found = [math.nan] * len(prompts)
        some = [i for i, one in enumerate(exact) if one is not None]
        if some:
            population = Population(
                target,
                [prompts[i] for i in some],
                self.particles,
                sampling,
                response_seeds([first + i for i in some], self.particles, seed, KEY, CONDITIONAL),
                self.twist(target),
                [np.random.default_rng((seed, KEY, CONDITIONAL, first + i)) for i in some],
                [one.ids for one in exact if one is not None],
            )
            population.run(self.resample_below, "multinomial")
            for place, i in enumerate(some):
                found[i] = population.final_log_z(place)
        return found
