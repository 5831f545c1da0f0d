"""Cringe's negatives: which token they are, what their log-probs are, and where gradients go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.chance import follows, shifted
from tests.reference.float64 import exact_norms
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.models.language import sample_negatives
from tiltyard.types import Group, Prompt, Response

from . import tiny

WORDS = 11


@pytest.fixture(autouse=True)
def _exact_norms() -> Iterator[None]:
    with exact_norms():
        yield


def logits(seed: int, rows: int = 200) -> Tensor:
    return 2 * torch.randn(rows, WORDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets(seed: int, rows: int = 200) -> Tensor:
    return torch.randint(WORDS, (rows,), generator=torch.Generator().manual_seed(seed + 50))


def uniforms(seed: int, rows: int = 200) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed + 90), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 5, WORDS - 1, WORDS, 50])
def test_a_rival_is_one_of_the_likeliest_others(k: int) -> None:
    """Sorted by hand: never the target, and among the k best of the rest (all the rest, where k is larger)."""
    z, y = logits(0), targets(0)
    found = sample_negatives(z, y, k, uniforms(0))
    inside = 0
    for row, target, negative in zip(z.tolist(), y.tolist(), found.tolist(), strict=True):
        order = sorted((t for t in range(WORDS) if t != target), key=lambda t: -row[t])
        assert negative in order[:k]
        inside += target in sorted(range(WORDS), key=lambda t: -row[t])[: k + 1]
    assert inside > 0  # the target is among the best of some rows,
    assert (inside < 200) == (k < WORDS - 1)  # and not of all, unless all are looked at


def test_of_one_rival_the_draw_does_not_matter() -> None:
    """k = 1: the best other token, whatever the uniform number."""
    z, y = logits(1), targets(1)
    best = z.scatter(1, y[:, None], -math.inf).argmax(1)
    for u in (0.0, 0.3, 1 - 2**-53):
        assert sample_negatives(z, y, 1, torch.full((200,), u, dtype=torch.float64)).equal(best)


@pytest.mark.parametrize("draw", [0.0, 1.0 - 2**-53, 1.0])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_at_the_edges_of_the_draw_it_is_never_the_target(draw: float, k: int) -> None:
    z = logits(2).float()
    z[::2] *= 40  # nearly all weight on one token: sums of the others round away
    for place in range(WORDS):
        y = torch.full((200,), place)
        assert not (sample_negatives(z, y, k, torch.full((200,), draw, dtype=torch.float64)) == y).any()


@pytest.mark.statistical
@pytest.mark.parametrize("target", [0, 2, 4])
def test_rivals_come_as_often_as_their_softmax_says(target: int) -> None:
    """40,000 draws over k = 3; the label the best, inside, and outside."""
    z = torch.tensor([1.5, 0.9, 0.4, -0.2, -1.0], dtype=torch.float64)
    chosen = [t for t in range(5) if t != target][:3]
    p, n = z[chosen].softmax(0).tolist(), 40_000
    found = sample_negatives(z.expand(n, -1), torch.full((n,), target), 3, uniforms(shifted(3), n))
    follows(Counter(found.tolist()), dict(zip(chosen, p, strict=True)))


def test_the_draw_is_the_inverse_of_the_cumulated_weights() -> None:
    """Down from the likeliest: u below the first weight is the first, and so on, at the borders too."""
    z = torch.tensor([[0.0, math.log(5), math.log(3), math.log(2), math.log(9)]], dtype=torch.float64)
    y = torch.tensor([4])  # leaves weights .5 .3 .2 of tokens 1, 2, 3
    cases = {0.0: 1, 0.4999: 1, 0.5001: 2, 0.7999: 2, 0.8001: 3, 0.9999: 3}
    for u, token in cases.items():
        assert sample_negatives(z, y, 3, torch.tensor([u], dtype=torch.float64)).item() == token


# --------------------------------------------------------------------------------------------------- with a whole model


def groups(seed: int = 0, vocab: int = 64) -> list[Group]:
    """Pairs, one with a turn that no loss may use; no row is padded by more than the tiny models' windows."""
    g = torch.Generator().manual_seed(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocab, (n,), generator=g).tolist())

    made = [
        Group(Prompt(id=str(i), ids=ids(5 - i % 2)), tuple(Response(ids=ids(2 + (i + j) % 4)) for j in range(2)))
        for i in range(4)
    ]
    spans = Response(ids=ids(7), loss_spans=((0, 2), (4, 7)))
    return [*made, Group(Prompt(id="turns", ids=ids(3)), (spans, Response(ids=ids(4))))]


def rounding(family: str) -> float:
    """The norms of other families than Llama (made exact above) and GPT-2 compute in float32."""
    return 1e-9 if family in ("llama", "gpt2") else 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere", "granite"])
def test_packed_is_padded(family: str) -> None:
    """Both log-probs and all gradients; caps and scales of the head are in both."""
    found = []
    for padded in (False, True):
        model = tiny.language(family, "float64")
        assert model.packed
        if padded:
            model.force_padded("asked for by this test")
        forest = pack(groups())
        u = uniforms(4, forest.R)
        logp_R, negative_R = model.logp_and_negative_R(forest, 4, u)
        weight_R = torch.linspace(0.5, 2, forest.R, dtype=torch.float64)
        (weight_R * (logp_R - 0.7 * negative_R)).sum().backward()
        grads = {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}
        found.append((logp_R.detach(), negative_R.detach(), grads))
    close = rounding(family)
    torch.testing.assert_close(found[0], found[1], rtol=close, atol=close)
    assert not torch.allclose(found[0][0], found[0][1])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_log_probs_are_those_of_a_plain_forward_pass(family: str) -> None:
    """transformers' own logits, one answer at a time, and the negative looked up in them."""
    model = tiny.language(family, "float64")
    forest = pack(groups())
    u = uniforms(5, forest.R)
    with torch.no_grad():
        logp_R, negative_R = model.logp_and_negative_R(forest, 3, u)
        expected: list[tuple[float, float]] = []
        draws = iter(u)
        with model.plain():
            for group in groups():
                for response in group.responses:
                    ids = torch.tensor([[*group.prompt.ids, *response.ids]])
                    log = model.module(input_ids=ids).logits[0].double().log_softmax(-1)
                    for a, b in response.loss_spans or ((0, len(response.ids)),):
                        for t in range(a, b):
                            row, own = log[len(group.prompt.ids) + t - 1], response.ids[t]
                            expected.append((float(row[own]), drawn_by_hand(row, own, 3, float(next(draws)))))
    close = rounding(family)
    both = torch.stack([logp_R, negative_R], 1)
    torch.testing.assert_close(both, torch.tensor(expected, dtype=torch.float64), rtol=close, atol=close)


def drawn_by_hand(row: Tensor, own: int, k: int, u: float) -> float:
    """The log-prob of the negative that this uniform number means."""
    order = sorted((t for t in range(len(row)) if t != own), key=lambda t: -float(row[t]))[:k]
    weights = [math.exp(float(row[t])) for t in order]
    reached = 0.0
    for token, weight in zip(order, weights, strict=True):
        reached += weight / sum(weights)
        if u < reached:
            return float(row[token])
    return float(row[order[-1]])


def test_chunks_change_nothing(monkeypatch: Any) -> None:
    """The head is read in parts of a few rows: the same negatives and log-probs as in one."""
    from tiltyard.batch import logp

    forest = pack(groups())
    u = uniforms(6, forest.R)
    model = tiny.language("llama", "float64")
    whole = model.logp_and_negative_R(forest, 4, u)
    monkeypatch.setattr(logp, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(logp, "MIN_ROWS", 3)
    torch.testing.assert_close(model.logp_and_negative_R(forest, 4, u), whole, rtol=1e-12, atol=1e-12)
