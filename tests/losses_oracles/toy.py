"""The toy worlds: T1 (a bandit of five one-token answers) and T3 (every sequence of a three-token world)."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

F64 = torch.float64


@dataclass
class Bandit:
    """T1: one prompt, K one-token completions, pi = softmax(theta)."""

    ref: Tensor  # log pi_ref [K]
    reward: Tensor  # [K]
    theta: Tensor  # [K]
    beta: float = 0.7

    @property
    def optimum(self) -> Tensor:
        """log pi* = log pi_ref + r/beta - log Z."""
        return torch.log_softmax(self.ref + self.reward / self.beta, 0)


def bandit(seed: int = 0, k: int = 5) -> Bandit:
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(k, generator=g, dtype=F64)  # noqa: E731
    return Bandit(torch.log_softmax(draw(), 0), draw(), draw().requires_grad_())


class SequenceWorld:
    """T3: tokens 0 (EOS), 1, 2; at most T tokens; one row of logits for every prefix. All sequences are enumerated.

    Flat layout as in `tiltyard.losses`: R tokens of all B sequences, one after the other.
    """

    V, T = 3, 3

    def __init__(self, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        prefixes = [p for t in range(self.T) for p in product(range(1, self.V), repeat=t)]
        row = {p: i for i, p in enumerate(prefixes)}
        self.sequences = [(*p, 0) for p in prefixes] + list(product(range(1, self.V), repeat=self.T))
        self.prefix_R = torch.tensor([row[y[:t]] for y in self.sequences for t in range(len(y))])
        self.token_R = torch.tensor([v for y in self.sequences for v in y])
        self.length_B = torch.tensor([len(y) for y in self.sequences])
        self.start_B = self.length_B.cumsum(0) - self.length_B
        self.end_B = self.start_B + self.length_B - 1
        self.B = len(self.sequences)
        self.response_R = torch.repeat_interleave(torch.arange(self.B), self.length_B)
        self.stopped_B = torch.tensor([y[-1] == 0 for y in self.sequences])
        shape = (len(prefixes), self.V)
        self.theta = torch.randn(shape, generator=g, dtype=F64).requires_grad_()
        self.ref_theta = torch.randn(shape, generator=g, dtype=F64)
        self.score_B = torch.randn(self.B, generator=g, dtype=F64)

    def logp_R(self, theta: Tensor) -> Tensor:
        return torch.log_softmax(theta, -1)[self.prefix_R, self.token_R]

    def sum_B(self, x_R: Tensor) -> Tensor:
        return torch.stack([x_R[s : s + n].sum() for s, n in zip(self.start_B, self.length_B, strict=True)])

    def p_B(self, theta: Tensor) -> Tensor:
        """Probability of every sequence; sums to one."""
        return self.sum_B(self.logp_R(theta)).exp()

    def prefix_law(self, theta: Tensor) -> Tensor:
        """Probability that a sequence passes through each prefix."""
        p_B = self.p_B(theta)
        return torch.zeros(len(theta), dtype=F64).index_add(0, self.prefix_R, p_B[self.response_R])


def grad(x: Tensor, wrt: Tensor) -> Tensor:
    return torch.autograd.grad(x, wrt, retain_graph=True, allow_unused=True)[0]


def same(a: Tensor, b: Tensor, tol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tol)
