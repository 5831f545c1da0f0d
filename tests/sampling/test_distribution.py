"""The law itself: against its definition, and drawn frequencies against exact probabilities."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chance import follows, shifted

from models import tiny
from sampling import stubs
from tiltyard.kernels import backend
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings, sample
from tiltyard.sampling.distribution import probs_NV, sample_from_logits, sample_from_probs

LAWS = [
    SampleSettings(),
    SampleSettings(temperature=0.5),
    SampleSettings(top_k=3),
    SampleSettings(top_p=0.75),
    SampleSettings(temperature=1.5, top_k=6, top_p=0.8),
    SampleSettings(temperature=0),
]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 3),
    # a sum of probabilities may be 1 less a rounding error: there the order of addition decides
    top_p=st.floats(0.01, 0.999) | st.just(1.0),
    top_k=st.integers(0, 40),
    width=st.floats(0.1, 30),
)
def test_law_is_its_definition(seed: int, temperature: float, top_p: float, top_k: int, width: float) -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * width
    law = SampleSettings(temperature=temperature, top_p=top_p, top_k=top_k)
    expected = np.stack([stubs.law(row, law) for row in logits.numpy()])
    found = probs_NV(logits, law)
    torch.testing.assert_close(found, torch.as_tensor(expected), atol=1e-12, rtol=1e-9)
    assert ((found > 0) == torch.as_tensor(expected > 0)).all()


@pytest.mark.statistical
@pytest.mark.parametrize("law", LAWS)
def test_drawn_frequencies(law: SampleSettings) -> None:
    logits = torch.linspace(-2, 2, 9).repeat(20000, 1)
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(shifted(0)), dtype=torch.float64)
    tokens, logps = sample_from_probs(probs_NV(logits, law), uniform)
    p = stubs.law(logits[0].double().numpy(), law)
    follows(Counter(tokens.tolist()), dict(enumerate(p.tolist())))
    np.testing.assert_allclose(logps.numpy(), np.log(p[tokens.numpy()]), atol=1e-5)


@pytest.mark.statistical
@pytest.mark.parametrize("law", LAWS[2:5])
def test_sampled_pairs_of_tokens_follow_the_law(law: SampleSettings) -> None:
    """Two tokens from a model of 8 tokens: all 64 pairs, against probabilities summed by hand."""
    model = LanguageModel(tiny.causal("llama", vocab_size=8), stubs.Letters(frozenset()))
    prompt = tiny.group(3, low=3, high=8).prompt
    (group,) = sample(
        model, [prompt], 4000, dataclasses.replace(law, max_tokens=2, max_concurrent=4000), seed=shifted(5)
    )
    oracle = tiny.causal("llama", vocab_size=8)

    def after(*more: int) -> np.ndarray:
        with torch.no_grad():
            return stubs.law(oracle(input_ids=torch.tensor([[*prompt.ids, *more]])).logits[0, -1].double().numpy(), law)

    first = after()
    exact = {(a, b): first[a] * p for a in range(8) for b, p in enumerate(after(a))}
    follows(Counter(r.ids for r in group.responses), exact)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 3),
    width=st.floats(0.1, 30),
    vocabulary=st.sampled_from([2, 63, 64, 65, 500]),
)
def test_the_short_road_draws_the_same_tokens(seed: int, temperature: float, width: float, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, vocabulary, generator=generator, dtype=torch.float64) * width
    uniform = torch.rand(8, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53])
    tokens, logps = sample_from_probs(probs_NV(logits, SampleSettings(temperature=temperature)), uniform)
    found, found_logps = sample_from_logits(logits, temperature, uniform, backend.expected())
    assert torch.equal(found[2:], tokens[2:])
    torch.testing.assert_close(found_logps[2:], logps[2:], atol=1e-9, rtol=1e-9)
    assert (logits.gather(-1, found[:, None]) > -1e9).all()


def test_the_short_road_never_draws_what_has_no_probability() -> None:
    logits = torch.full((5, 300), -torch.inf)
    logits[:, [70, 130, 299]] = torch.tensor([0.0, 1.0, -20.0])
    uniform = torch.tensor([0.0, 0.2, 0.27, 1 - 1e-9, 1.0], dtype=torch.float64)
    tokens, logps = sample_from_logits(logits, 1.0, uniform, backend.expected())
    assert tokens.tolist()[:3] == [70, 70, 130]
    assert set(tokens.tolist()[3:]) <= {130, 299}
    assert logps.isfinite().all()


def test_edges_of_the_uniform() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    for u, token in [(0.0, 1), (0.2499, 1), (0.25, 3), (0.9999999999, 3), (1.0, 3)]:
        found, logp = sample_from_probs(probs, torch.tensor([u], dtype=torch.float64))
        assert found.item() == token
        assert logp.isfinite().all()


def test_a_large_vocabulary_never_draws_what_was_cut() -> None:
    logits = torch.randn(64, 50_000, generator=torch.Generator().manual_seed(0)) * 3
    for law in (SampleSettings(top_p=0.5), SampleSettings(top_k=50), SampleSettings()):
        probs = probs_NV(logits, law)
        for u in (0.0, 1e-12, 0.5, 1 - 1e-9, 1 - 2**-53):
            token, logp = sample_from_probs(probs, torch.full((64,), u, dtype=torch.float64))
            assert (probs.gather(-1, token[:, None]) > 0).all()
            assert logp.isfinite().all()


def test_top_k_with_ties_keeps_exactly_k() -> None:
    probs = probs_NV(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), SampleSettings(top_k=2))
    assert sorted(probs[0].tolist()) == [0.0, 0.0, 0.5, 0.5]
    assert probs[0, 3] == 0
