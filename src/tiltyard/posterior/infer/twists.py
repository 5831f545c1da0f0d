"""Twists: estimates psi of unfinished responses, psi(y_1..t) near E_prior[exp(g) | y_1..t].

Any psi above 0 leaves Z unbiased; a good one leaves few particles to be thrown away. The best one is the conditional
expectation itself, exp(V / beta) with V the soft value: then all weights are equal. The psi of a finished response is
always exp(g), exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tiltyard.errors import ModelError
from tiltyard.models.language import ScalarModel
from tiltyard.posterior.target import Target
from tiltyard.sampling.engine import PackedValues, can_use_decoder
from tiltyard.sampling.particles import EngineOf, Particles
from tiltyard.stats.importance import Floats
from tiltyard.types import Group


class Proposal(NamedTuple):
    """A token for each running particle: ids [S], log-probs of the prior [S], log(prior / proposal) [S]."""

    tokens: Tensor
    logps: Tensor
    log_weight: Floats


class Twist:
    """psi of unfinished responses, and the proposal that goes with it: the prior, unless a twist replaces it.

    Attributes:
        followers: engines of models that read the particles' tokens, see `Particles`.
    """

    followers: Sequence[EngineOf] = ()

    def propose(
        self,
        particles: Particles,
        generators: Sequence[np.random.Generator],  # noqa: ARG002
        forced: Mapping[int, int] | None = None,
    ) -> Proposal:
        """The next token of each running particle.

        Args:
            generators: random numbers of each prompt. forced: {particle: its token}, in place of a sampled one.
        """
        tokens, logps = particles.sample()
        if forced:
            tokens = with_forced(particles, tokens, forced)
            logits = particles.next.logits.double() / particles.settings.temperature
            logps = torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
        return Proposal(tokens, logps, np.zeros(len(tokens)))

    def values(self, particles: Particles) -> Floats | None:  # noqa: ARG002
        """log psi [S] of each running particle, whose last token has been computed; None: as before."""
        return None

    def exact(self, target: Target, particles: Particles, rows: Sequence[int]) -> Floats:
        """g of particles that have just ended."""
        return exact_values(target, particles, rows)


def with_forced(particles: Particles, tokens_S: Tensor, forced: Mapping[int, int]) -> Tensor:
    """The tokens of the running particles, with those that are forced in their place."""
    found = [forced.get(r, token) for r, token in zip(particles.running, tokens_S.tolist(), strict=True)]
    return torch.tensor(found, dtype=tokens_S.dtype, device=tokens_S.device)


def exact_values(target: Target, particles: Particles, rows: Sequence[int]) -> Floats:
    """g of these particles' responses as they are, finished or not."""
    by_prompt: dict[int, list[int]] = {}
    for r in rows:
        by_prompt.setdefault(r // particles.k, []).append(r)
    groups = [
        Group(particles.prompts[p], tuple(particles.response(r) for r in members)) for p, members in by_prompt.items()
    ]
    found = dict(
        zip(
            [r for members in by_prompt.values() for r in members],
            [g for values in target.log_weights(groups) for g in values],
            strict=True,
        )
    )
    return np.array([found[r] for r in rows], dtype=np.float64)


class ScoredBeginnings(Twist):
    """psi = exp(g) of the beginning as if it were the response, every `every` tokens; 0: never, psi = 1."""

    def __init__(self, target: Target, every: int):
        self.target, self.every, self.steps = target, every, 0

    def values(self, particles: Particles) -> Floats | None:
        """g of the beginnings, at their times."""
        self.steps += 1
        if not self.every or self.steps % self.every:
            return None
        return exact_values(self.target, particles, particles.running)


class ValueTwist(Twist):
    """psi = exp(scale * V), V a value model that reads each token as the particles are written.

    Args:
        value: a packed model with the prior's tokenizer. scale: 1 / beta for values in units of the reward.

    Raises:
        ModelError: a model that cannot be packed.
    """

    def __init__(self, value: ScalarModel, scale: float):
        if not value.packed:
            raise ModelError(
                "a value model that cannot be packed has no cache of its own here",
                where=str(value.chat.tokenizer.name_or_path),
                got=value.padded_reason,
                fix="take smc, which scores the beginnings with the reward itself",
            )
        value.module.eval()
        self.scale = scale
        fast = can_use_decoder(value, PackedValues)
        self.followers = (lambda prompts, n, rows, capacity: PackedValues(value, prompts, n, rows, capacity, fast),)  # type: ignore[arg-type]

    def values(self, particles: Particles) -> Floats:
        """scale * V after each particle's last token."""
        return self.scale * particles.followed[0].logits[:, 0].double().cpu().numpy()


class TokenTwist(Twist):
    """A psi that is known for every next token, so that the proposal is prior * psi itself.

    Args:
        log_psi: (particles) -> log psi [S, V] of each running particle with each next token; of a token that ends the
            response, the estimate of g.
    """

    def __init__(self, log_psi: Callable[[Particles], Tensor]):
        self.log_psi = log_psi
        self._chosen: dict[int, float] = {}

    @torch.no_grad()
    def propose(
        self,
        particles: Particles,
        generators: Sequence[np.random.Generator],  # noqa: ARG002
        forced: Mapping[int, int] | None = None,
    ) -> Proposal:
        """Samples prior * psi, normalised over the tokens; prior / proposal is the normaliser over psi."""
        prior = torch.log_softmax(particles.next.logits.double() / particles.settings.temperature, -1)
        psi = self.log_psi(particles).double()
        rows = torch.tensor(particles.running, device=prior.device)
        lengths = torch.tensor([len(particles.ids[r]) for r in particles.running], device=prior.device)
        twisted = prior + psi
        # the sampler divides by the temperature, which these logits have behind them
        logits = twisted * particles.settings.temperature
        tokens, _ = particles.sample_with(logits, particles.uniforms.uniform_R(rows, lengths))
        tokens = with_forced(particles, tokens, forced) if forced else tokens
        at = tokens[:, None]
        chosen = psi.gather(-1, at)[:, 0]
        self._chosen = dict(zip(particles.running, chosen.tolist(), strict=True))
        log_weight = twisted.logsumexp(-1) - chosen
        return Proposal(tokens, prior.gather(-1, at)[:, 0], log_weight.cpu().numpy())

    def values(self, particles: Particles) -> Floats:
        """psi of the tokens that were chosen."""
        return np.array([self._chosen[r] for r in particles.running])
