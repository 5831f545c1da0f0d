"""Twisted SMC: particles whose beginnings are judged by a value model, e.g. the one that PPO trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiltyard.errors import ConfigError
from tiltyard.models.language import ScalarModel
from tiltyard.posterior.infer.base import posterior_sampler
from tiltyard.posterior.infer.smc import SMC
from tiltyard.posterior.infer.twists import Twist, ValueTwist
from tiltyard.posterior.measure import check_comparable
from tiltyard.posterior.target import Target


@posterior_sampler(
    formula="particles at prior(y_1..t) exp(V(y_1..t) / beta), exact at the end",
    exact="pi* as the number of particles grows; Z is unbiased for any V, and exact with one particle for the best V "
    "and its proposal",
    needs="particles, a value model or a learned twist (--twist); with most and score_bound bounds of KL to pi*",
    paper="Zhao, Brekelmans, Makhzani & Grosse 2024 (2404.17546)",
    pitfalls="PPO's value is that of its own policy and beta: elsewhere it is a worse guess, and samples stay right.",
)
@dataclass(frozen=True)
class TwistedSMC(SMC):
    """K particles a prompt; a value model that reads each token decides which go on.

    Args:
        value: a value model with the prior's tokenizer; scale: psi = exp(scale * V), 1 / beta for a V in units of the
            reward. twist_with: another twist in its place.
    """

    value: ScalarModel | None = None
    scale: float = 1.0
    twist_with: Twist | None = None
    every: int = 1

    name: ClassVar[str] = "twisted_smc"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value is None and self.twist_with is None:
            raise ConfigError(
                "twisted SMC needs a value model",
                where="twisted_smc.twist",
                expected="the value model of a PPO run: runs/NAME/ppo/value",
                fix="add --twist, or --twist learn, or take smc, which scores the beginnings with the reward itself",
            )

    def twist(self, target: Target) -> Twist:
        """exp(scale * V) of the beginnings, computed along with the particles.

        Raises:
            DataError: a value model of another tokenizer. ModelError: one that cannot be packed.
        """
        if self.twist_with is not None:
            return self.twist_with
        assert self.value is not None
        check_comparable(self.value, target.prior.model)
        return ValueTwist(self.value, self.scale)
