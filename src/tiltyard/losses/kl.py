"""KL divergence: estimators per token, their sum per response, and the controllers of the KL coefficient.

Samples y ~ pi; the per-token log-ratio is `log pi(y_t|.) - log pi_ref(y_t|.)`. With rho = pi_ref/pi
(Schulman 2020, "Approximating KL divergence"):

| | formula | expectation under pi | gradient when used AS A LOSS on frozen on-policy samples |
|---|---|---|---|
| k1 | -log rho | KL(pi‖ref), unbiased; may be negative | 0: pure noise |
| k2 | (log rho)²/2 | biased: KL(pi‖ref) + third order | that of KL(pi‖ref), the reverse KL |
| k3 | rho - 1 - log rho | KL(pi‖ref), unbiased; >= 0 | that of KL(ref‖pi), the FORWARD KL |

In a reward use k1: it alone gives the policy gradient of the reverse KL. Off-policy each needs the ratio pi/pi_old.
k3 needs ref's support within pi's. On sequences the gradients hold token by token, with the distribution of prefixes
held fixed.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from tiltyard.errors import ConfigError, NonFiniteError


def k1(logp_R: Tensor, ref_logp_R: Tensor) -> Tensor:
    """`log pi - log ref`. Unbiased for KL(pi‖ref); zero expected gradient as a loss. The one to put in a reward."""
    return logp_R - ref_logp_R


def k2(logp_R: Tensor, ref_logp_R: Tensor) -> Tensor:
    """`(log pi - log ref)^2 / 2`. Biased at third order; as a loss its gradient is that of KL(pi‖ref)."""
    return 0.5 * (logp_R - ref_logp_R) ** 2


def k3(logp_R: Tensor, ref_logp_R: Tensor) -> Tensor:
    """`rho - 1 - log rho`, rho = ref/pi. Unbiased for KL(pi‖ref), >= 0; as a loss its gradient is KL(ref‖pi)'s."""
    log_rho_R = ref_logp_R - logp_R
    return torch.expm1(log_rho_R) - log_rho_R


def sum_per_response(x_R: Tensor, response_R: Tensor, responses: int) -> Tensor:
    """Sum of a token quantity over each response, [R] -> [B]. `response_R`: each token's response, 0..B-1."""
    return torch.zeros(responses, dtype=x_R.dtype, device=x_R.device).index_add(0, response_R, x_R)


class KLController(Protocol):
    """Holds the KL coefficient `beta` and may change it after each batch of rollouts."""

    beta: float

    def update(self, kl_mean_per_sequence: float, n: int) -> float: ...

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


@dataclass
class FixedKL:
    """A constant coefficient."""

    beta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ConfigError("the KL coefficient must be a finite number >= 0", where="beta", got=self.beta)

    def update(self, kl_mean_per_sequence: float, n: int) -> float:  # noqa: ARG002 - the controllers' common signature
        """Leaves beta as it is and returns it."""
        return self.beta

    def state_dict(self) -> dict[str, float]:
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.beta = state["beta"]


@dataclass
class AdaptiveKL:
    """Ziegler et al. 2019, §2.2: `e = clip(KL/target - 1, -0.2, 0.2);  beta *= 1 + e n/horizon`.

    `target` is in nats a SEQUENCE, so `update` takes the mean over responses of the SUM over tokens of k1, never a mean
    over tokens. A negative sample mean is legal (k1 is noisy) and lowers beta. `n` counts the responses of the batch.
    """

    LIMIT: ClassVar[float] = 0.2

    beta: float = 0.2
    target: float = 6.0
    horizon: float = 10_000

    def __post_init__(self) -> None:
        for key, value in (("beta", self.beta), ("target", self.target), ("horizon", self.horizon)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError("adaptive KL control needs a finite number > 0", where=key, got=value)

    def update(self, kl_mean_per_sequence: float, n: int) -> float:
        """Updates beta after `n` responses whose mean KL was `kl_mean_per_sequence`; returns the new beta."""
        if not math.isfinite(kl_mean_per_sequence):
            raise NonFiniteError("the measured KL is not finite; beta was left as it was", got=kl_mean_per_sequence)
        if self.LIMIT * n >= self.horizon:
            raise ConfigError(
                "one update could turn the KL coefficient to zero or below",
                where="horizon",
                got=self.horizon,
                expected=f"> {self.LIMIT * n:g} for {n} responses an update",
            )
        error = min(max(kl_mean_per_sequence / self.target - 1, -self.LIMIT), self.LIMIT)
        self.beta *= 1 + error * n / self.horizon
        return self.beta

    def state_dict(self) -> dict[str, float]:
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.beta = state["beta"]


def kl_controller(beta: float, target: float | None, horizon: float) -> KLController:
    """A fixed coefficient, or an adaptive one where a target (nats a response) is given.

    Raises:
        ConfigError: an adaptive coefficient that starts at 0 and so could never change.
    """
    if target is None:
        return FixedKL(beta)
    if beta <= 0:
        raise ConfigError("an adaptive KL coefficient must start above 0", where="beta", got=beta, fix="set beta=0.1")
    return AdaptiveKL(beta, target, horizon)
