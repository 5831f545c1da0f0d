"""Pairwise cringe on a table of one-token answers: unlikelihood, its two logits, its gate (methods sheet 5.2)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losses_oracles.tabular import ASK, Table, draw, pair
from losses_oracles.toy import F64, same
from tiltyard.batch.batch import Batch
from tiltyard.methods import cringe
from tiltyard.models.language import sample_negatives
from tiltyard.sampling import NativeSampler
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Forward, Models
from tiltyard.training.rounds import Rounds
from tiltyard.types import Group, Preference, Response

K = 5
REF, _, THETA = draw(3, K)
SOURCE = Rounds(
    [ASK], NativeSampler(), FunctionScorer(lambda prompt, response: 0.0), size=1, prompts_per_step=1, every=1, seed=2
)


class Rivalled(Table):
    """A table that also knows negatives, by the package's own rule for logits."""

    def logp_and_negative_R(self, forest: Any, k: int, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
        log = torch.log_softmax(self.theta, 0)
        rows = log.detach().expand(len(forest.target_R), -1)
        negative_R = sample_negatives(rows, forest.target_R, k, uniform_R)
        return log[forest.target_R], log[negative_R]


def cringed(theta: Tensor, groups: list[Group], **settings: Any) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """The method's losses, one a pair."""
    algorithm = cringe(SOURCE, **settings)
    models: Any = Models(policy=Rivalled(theta))  # type: ignore[arg-type]
    batch = Batch.of(groups, list(range(len(groups))), len(groups))
    for prepare in algorithm.prepare:
        batch = prepare(models, batch)
    return algorithm.loss(Forward(models, batch, 1.0, algorithm.loss.needs), batch)


WIDE = {"gate_margin": 1e9}  # the gate is wide open


@pytest.mark.parametrize("k", [1, 2, 7])
def test_of_two_tokens_the_contrast_is_unlikelihood(k: int) -> None:
    """-log(1 - pi(y-)) exactly, beside the preferred answer's likelihood; any k."""
    theta = torch.tensor([0.8, -0.5], dtype=F64, requires_grad=True)
    (loss,) = cringed(theta, [pair(0, 1)], alpha=0.6, negatives=k, **WIDE)[0]
    log = torch.log_softmax(theta, 0)
    expected = -log[0] - 0.6 * torch.log(1 - log[1].exp())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    same(torch.autograd.grad(loss, theta)[0], torch.autograd.grad(expected, theta)[0], 1e-12)


@pytest.mark.parametrize("detach_negative", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_the_contrast_touches_two_logits(k: int, detach_negative: bool) -> None:
    """+sigma(s- - s*) on the worse answer's token, minus that on its negative: none on the label as its own negative.

    The likelihood of the other answer is subtracted; with a detached negative its log-prob is constant: what is left
    is the derivative of softplus(log pi(y-) - const), which goes through the normaliser.
    """
    for worse in range(1, K):
        theta = THETA.clone().requires_grad_()
        settings: dict[str, Any] = {"alpha": 1.0, "negatives": k, "detach_negative": detach_negative, **WIDE}
        group = [pair(0, worse)]
        with_it, without = cringed(theta, group, **settings)[0], cringed(theta, group, **settings | {"alpha": 0.0})[0]
        (slope,) = torch.autograd.grad((with_it - without).sum(), theta)
        contrast = float(with_it.detach() - without.detach())
        force = 1 - math.exp(-contrast)  # sigma(x) of softplus(x)
        law, own = torch.softmax(THETA, 0), torch.eye(K, dtype=F64)[worse]
        if detach_negative:
            same(slope, force * (own - law), 1e-12)
            continue
        touched = torch.nonzero(slope.abs() > 1e-12).flatten().tolist()
        assert len(touched) == 2
        assert worse in touched
        (negative,) = set(touched) - {worse}
        assert negative in sorted((t for t in range(K) if t != worse), key=lambda t: -float(THETA[t]))[:k]
        assert force == pytest.approx(float(torch.sigmoid(THETA[worse] - THETA[negative])), abs=1e-12)
        assert float(slope[worse]) == pytest.approx(force, abs=1e-12)
        assert float(slope[negative]) == pytest.approx(-force, abs=1e-12)


def margin(i: int, j: int) -> float:
    log = torch.log_softmax(THETA, 0)
    return float(log[i] - log[j])


def test_the_gate_is_half_open_where_the_margin_is_b() -> None:
    for i, j in ((0, 1), (1, 0), (2, 4)):
        half, whole = (cringed(THETA, [pair(i, j)], gate_margin=b)[0] for b in (margin(i, j), 1e12))
        assert float(half) == pytest.approx(0.5 * float(whole), rel=1e-12)


def test_a_cold_gate_is_hard() -> None:
    """tau -> 0: all below the margin b, nothing above it."""
    cold: dict[str, Any] = {"gate_temperature": 1e-9}
    whole = cringed(THETA, [pair(0, 1)], **WIDE)[0]
    same(cringed(THETA, [pair(0, 1)], gate_margin=margin(0, 1) + 1e-3, **cold)[0], whole, 1e-15)
    assert float(cringed(THETA, [pair(0, 1)], gate_margin=margin(0, 1) - 1e-3, **cold)[0]) == 0.0


def test_an_open_gate_is_binary_cringe() -> None:
    """b -> infinity: likelihood plus alpha times the contrast, bit by bit, its metric gate exactly 1."""
    loss, metrics = cringed(THETA, [pair(0, 1)], alpha=0.3, negatives=1, **WIDE)
    log = torch.log_softmax(THETA, 0)
    negative = max((t for t in range(K) if t != 1), key=lambda t: float(log[t]))
    binary = -log[0] + 0.3 * nn.functional.softplus(log[1] - log[negative])
    assert float(loss) == float(binary)
    assert metrics["gate"] == (1.0, 1.0)


@pytest.mark.parametrize("detach", [True, False])
def test_the_gate_and_its_gradient(detach: bool) -> None:
    """sigma((b - M)/tau), M summed over tokens; detached it only scales."""
    theta = THETA.clone().requires_grad_()
    loss = cringed(theta, [pair(0, 1)], gate_margin=0.2, gate_temperature=1.5, detach_gate=detach, negatives=1)[0].sum()
    log = torch.log_softmax(theta, 0)
    negative = max((t for t in range(K) if t != 1), key=lambda t: float(THETA[t]))
    gate = torch.sigmoid((0.2 - (log[0] - log[1])) / 1.5)
    expected = (gate.detach() if detach else gate) * (-log[0] + nn.functional.softplus(log[1] - log[negative]))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    same(torch.autograd.grad(loss, theta)[0], torch.autograd.grad(expected, theta)[0], 1e-12)


def test_likelihood_and_contrast_are_means_over_tokens_and_the_margin_a_sum() -> None:
    """An answer of three tokens and one of two, the tokens alike: means are those of one token, M is not."""
    long, short = Response(ids=(0, 0, 0)), Response(ids=(1, 1))
    group = Group(ASK, (long, short), preference=Preference(ranks=(1, 2)))
    log = torch.log_softmax(THETA, 0)
    loss = cringed(THETA, [group], gate_margin=0.2, gate_temperature=1.5, negatives=1)[0]
    negative = max((t for t in range(K) if t != 1), key=lambda t: float(log[t]))
    gate = torch.sigmoid((0.2 - (3 * log[0] - 2 * log[1])) / 1.5)
    expected = gate * (-log[0] + nn.functional.softplus(log[1] - log[negative]))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
