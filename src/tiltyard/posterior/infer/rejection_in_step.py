"""Rejection within a step: every token is accepted or rejected by the reward of the beginning that it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from tiltyard.errors import ConfigError, ScoringError
from tiltyard.posterior.estimates import accepts
from tiltyard.posterior.infer.base import posterior_sampler
from tiltyard.posterior.infer.smc import SMC
from tiltyard.posterior.infer.twists import Proposal, Twist
from tiltyard.posterior.target import Target
from tiltyard.sampling.particles import Particles
from tiltyard.stats.importance import Floats
from tiltyard.types import Group

SUCCESSES = 2  # acceptances by which the share of accepted tokens is estimated: 1 / (trials - 1) is unbiased


@posterior_sampler(
    formula="each token by prior * psi_t, psi_t = exp(r(beginning) / beta), by rejection; particles weighted by its "
    "estimated normaliser",
    exact="pi* as the number of particles grows; Z is unbiased for any number",
    needs="score_bound, particles",
    paper="Lipkin et al. 2025 (2504.05410), adaptive weighted rejection sampling",
    pitfalls="Scores several beginnings a token: for rules and other cheap rewards that judge beginnings (no more "
    "than 40 words, no such word), not for a reward model.",
)
@dataclass(frozen=True)
class RejectionInStep(SMC):
    """K particles a prompt whose tokens are proposed by rejection; beginnings that cannot become good never go on.

    Args:
        particles: K. bound: an upper bound of g. trials: tokens that are tried at one place at most.
    """

    particles: int = 8
    bound: float | None = None
    trials: int = 2000
    every: int = 1

    name: ClassVar[str] = "rejection_in_step"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound is None or not math.isfinite(self.bound):
            raise ConfigError(
                "rejection within a step needs the highest possible reward",
                where="rejection_in_step.score_bound",
                got=self.bound,
                expected="a finite number that no beginning scores above",
                fix="set score_bound (1 for a reward from 0 to 1), or take smc, which needs none",
            )
        if self.most:
            raise ConfigError(
                "an exact sample of pi* has no path through trials of tokens",
                where="rejection_in_step.most",
                got=self.most,
                expected="0",
                fix="leave most out, or take smc or twisted_smc",
            )

    def twist(self, target: Target) -> Twist:
        """The proposal by rejection, and g of the beginnings."""
        assert self.bound is not None
        return LocalRejection(target, self.bound, self.trials)


class LocalRejection(Twist):
    """Tokens by rejection: the first that is accepted follows prior * exp(g) exactly.

    Trials go on until a second one is accepted: 1 / (trials - 1) is an unbiased estimate of the share of accepted
    tokens (Haldane 1945), and independent of the first accepted token. A beginning is scored once a step.

    Args:
        bound: of g. trials: at one place at most.
    """

    def __init__(self, target: Target, bound: float, trials: int):
        self.target, self.bound, self.trials = target, bound, trials
        self._g: dict[tuple[int, int], float] = {}  # (particle, token) -> g of the beginning, in this step
        self._chosen: dict[int, float] = {}

    def propose(
        self,
        particles: Particles,
        generators: Sequence[np.random.Generator],
        forced: Mapping[int, int] | None = None,  # noqa: ARG002 - refused in `RejectionInStep`
    ) -> Proposal:
        """The first accepted token of each running particle.

        Raises:
            DataError: a g above the bound. ScoringError: too few tokens are accepted.
        """
        running, size = particles.running, len(particles.running)
        self._g = {}
        first, logps, tried, accepted = [0] * size, [0.0] * size, [0] * size, [0] * size
        open_slots = list(range(size))
        while open_slots:
            open_slots.sort(key=running.__getitem__)  # random numbers in the order of the prompt's particles
            uniforms = np.array([generators[running[s] // particles.k].random(2) for s in open_slots])
            logits = particles.next.logits[torch.tensor(open_slots, device=particles.next.logits.device)]
            tokens, found = particles.sample_with(logits, torch.tensor(uniforms[:, 0], device=logits.device))
            g = self._scored(particles, [(running[s], t) for s, t in zip(open_slots, tokens.tolist(), strict=True)])
            taken = accepts(g, self.bound, uniforms[:, 1])
            for s, token, logp, fine in zip(open_slots, tokens.tolist(), found.tolist(), taken, strict=True):
                tried[s] += 1
                if fine and not accepted[s]:
                    first[s], logps[s] = token, logp
                accepted[s] += bool(fine)
            open_slots = [s for s in open_slots if accepted[s] < SUCCESSES]
            if open_slots and max(tried[s] for s in open_slots) >= self.trials:
                raise self._stuck(particles, running[open_slots[0]])
        self._chosen = {r: self._g[r, token] for r, token in zip(running, first, strict=True)}
        share = np.array([(SUCCESSES - 1) / (count - 1) for count in tried])
        log_weight = self.bound + np.log(share) - np.array([self._chosen[r] for r in running])
        device = particles.next.logits.device
        return Proposal(torch.tensor(first, device=device), torch.tensor(logps, device=device), log_weight)

    def values(self, particles: Particles) -> Floats:
        """g of the beginnings that the chosen tokens made."""
        return np.array([self._chosen[r] for r in particles.running])

    def exact(self, target: Target, particles: Particles, rows: Sequence[int]) -> Floats:  # noqa: ARG002 - as proposed
        """g of responses that have ended: that of their last token's proposal."""
        return np.array([self._chosen[r] for r in rows])

    def _scored(self, particles: Particles, asked: Sequence[tuple[int, int]]) -> Floats:
        new = list(dict.fromkeys(pair for pair in asked if pair not in self._g))
        groups = [Group(particles.prompts[r // particles.k], (particles.response(r, (token,)),)) for r, token in new]
        self._g |= {pair: g for pair, (g,) in zip(new, self.target.log_weights(groups), strict=True)}
        return np.array([self._g[pair] for pair in asked], dtype=np.float64)

    def _stuck(self, particles: Particles, r: int) -> ScoringError:
        return ScoringError(
            "hardly any token is accepted after this beginning",
            where=particles.prompts[r // particles.k].id,
            got=f"{particles.response(r).text[-60:]!r}, {self.trials} tokens tried",
            expected=f"{SUCCESSES} accepted ones",
            fix="raise beta, lower score_bound to what responses reach, or take smc",
        )
