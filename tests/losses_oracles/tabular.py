"""A policy that is a table of K whole answers, under the real methods: their prepare steps, losses and means.

Answer i is the token i, `length[i]` times over; its log-probability log softmax(theta)_i is spread evenly over its
tokens. So whole answers have any law, and any lengths besides. The expected loss under soft labels q and a law of pairs
W is a weighted sum, with no sampling; its minimum comes from Newton's method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tiltyard.batch.batch import Batch
from tiltyard.kernels.base import TORCH
from tiltyard.training.algorithm import Algorithm, Forward, Models
from tiltyard.types import Group, Preference, Prompt, Response

from .toy import F64

ASK = Prompt(id="ask", ids=(7, 8))
SOURCE: Any = SimpleNamespace(iteration=0, every=1)


class Table:
    """What a method asks of a policy, a reference or a cache of the reference."""

    chat = SimpleNamespace(max_length=None)
    backend = TORCH
    module = nn.Module()

    def __init__(self, theta: Tensor, length: Sequence[int] | None = None):
        self.theta = theta
        self.vocab_size = len(theta)
        self.length = torch.ones(len(theta), dtype=F64) if length is None else torch.tensor(length, dtype=F64)

    def logp_R(self, forest: Any, *, temperature: float = 1.0, entropy: bool = False) -> tuple[Tensor, None]:
        assert temperature == 1.0
        return self._law_V()[forest.target_R], None

    def full_log_probs(self, forest: Any, rows: int, temperature: float, at: float) -> Iterator[tuple[Tensor, Tensor]]:
        assert temperature == at == 1.0
        for target in forest.target_R.split(rows):
            yield self._law_V().repeat(len(target), 1), self._law_V()[target]

    def _law_V(self) -> Tensor:
        return torch.log_softmax(self.theta, 0) / self.length


def answers(*items: int, length: Sequence[int] | None = None) -> tuple[Response, ...]:
    return tuple(Response(ids=(i,) * (1 if length is None else length[i])) for i in items)


def pair(i: int, j: int, q: float | None = None, length: Sequence[int] | None = None) -> Group:
    """Answer i against answer j: hard (i wins) or i is preferred with probability q."""
    return Group(
        ASK,
        answers(i, j, length=length),
        preference=Preference(ranks=(1, 2)) if q is None else Preference(shares=(q, 1 - q)),
    )


class World:
    """A data set of weighted groups under one method; `loss(theta)` is the weighted sum of its losses of groups."""

    def __init__(
        self,
        algorithm: Algorithm,
        ref: Tensor,
        groups: Sequence[Group],
        weights: Tensor | None = None,
        length: Sequence[int] | None = None,
        policy: Tensor | None = None,
    ):
        self.algorithm, self.length = algorithm, length
        start: Any = Table(ref if policy is None else policy, length)
        self.models = Models(policy=start, ref=Table(ref, length))  # type: ignore[arg-type]
        batch = Batch.of(list(groups), list(range(len(groups))), len(groups))
        for prepare in algorithm.prepare:
            batch = prepare(self.models, batch)
        self.batch = batch
        self.weights = torch.full((len(groups),), 1 / len(groups), dtype=F64) if weights is None else weights

    def items(self, theta: Tensor) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """The method's losses, one an item, and its metrics."""
        policy: Any = Table(theta, self.length)
        forward = Forward(Models(policy=policy), self.batch, 1.0)
        return self.algorithm.loss(forward, self.batch)

    def loss(self, theta: Tensor) -> Tensor:
        return (self.weights * self.items(theta)[0]).sum()

    def slope(self, theta: Tensor) -> Tensor:
        theta = theta.detach().clone().requires_grad_()
        return torch.autograd.grad(self.loss(theta), theta)[0]

    def mean(self, theta: Tensor) -> Tensor:
        """The loss as `fit` takes it: the method's own mean over what it counts."""
        reduce, items = self.algorithm.reduce, self.items(theta)[0]
        return reduce.sum(items, self.batch) / reduce.count(self.algorithm.loss.item, self.batch)

    def optimum(self, start: Tensor) -> Tensor:
        """log pi at the minimum."""
        return torch.log_softmax(minimise(self.loss, start), 0)


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, flat: int = 1) -> Tensor:
    """Newton's method, shortened where it does not descend. Ends at a zero gradient or fails.

    `flat`: how many directions leave the loss as it is (a constant added to all is one); there the curvature is zero
    and nothing moves. All others must curve upward, so what is found is a strict minimum.
    """
    x = start.detach().clone()
    for _ in range(200):
        slope, curve = torch.func.grad(loss)(x), torch.autograd.functional.hessian(loss, x)
        if float(slope.abs().max()) < 1e-13:
            break
        step = -torch.linalg.pinv(curve, rtol=1e-12, hermitian=True) @ slope
        size, before = 1.0, float(loss(x))
        while float(loss(x + size * step)) > before + 1e-14 and size > 1e-9:
            size /= 2
        x = x + size * step
    assert float(slope.abs().max()) < 1e-11, slope
    bent = torch.linalg.eigvalsh(curve)
    assert float(bent[flat]) > 1e3 * abs(float(bent[:flat].abs().max() if flat else 0.0)), bent
    return x


def all_pairs(p: Tensor, length: Sequence[int] | None = None) -> list[Group]:
    """Every unordered pair once, with the soft label p[i, j]."""
    return [pair(i, j, float(p[i, j]), length) for i, j in combinations(range(len(p)), 2)]


def law_of_pairs(w: Tensor) -> Tensor:
    """The weights of `all_pairs` under a law over ordered pairs, brought to a sum of one."""
    both = torch.stack([w[i, j] + w[j, i] for i, j in combinations(range(len(w)), 2)])
    return both / both.sum()


def bradley_terry(r: Tensor) -> Tensor:
    return torch.sigmoid(r[:, None] - r[None])


def tilt(ref: Tensor, r: Tensor, beta: float) -> Tensor:
    """log pi* = log ref + r/beta - log Z."""
    return torch.log_softmax(ref + r / beta, 0)


def tv(logp: Tensor, logq: Tensor) -> float:
    return 0.5 * float((logp.exp() - logq.exp()).abs().sum())


def draw(seed: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(log ref, reward, theta) of a random world."""
    g = torch.Generator().manual_seed(seed)
    ref, r, theta = (torch.randn(k, generator=g, dtype=F64) for _ in range(3))
    return torch.log_softmax(ref, 0), r, theta
