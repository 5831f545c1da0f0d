"""Seeds and streams of uniform numbers: against the definition of splitmix64, and for their distribution."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chance import follows, near, shifted

from tiltyard.sampling import UniformStream, response_seeds

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The mixing function, in Python's integers."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5), st.integers(0, 2**40))
def test_numbers_are_splitmix64_of_seed_and_token(seeds: list[int], token: int) -> None:
    rows = torch.arange(len(seeds))
    found = UniformStream(seeds).uniform_R(rows, torch.full_like(rows, token))
    expected = [(splitmix64(splitmix64(s) + (token + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53 for s in seeds]
    assert found.tolist() == expected
    assert found.dtype == torch.float64
    assert ((found >= 0) & (found < 1)).all()


def test_the_reference_sequence() -> None:
    """The published generator, started at 1234567: its first outputs."""
    golden, state = 0x9E3779B97F4A7C15, 1234567
    outputs = [splitmix64(state + (i + 1) * golden) for i in range(5)]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6), st.integers(1, 5), st.lists(st.integers(0, 2**40)))
def test_a_seed_depends_on_its_prompt_and_place_alone(prompts: list[int], n: int, keys: list[int]) -> None:
    seeds = response_seeds(prompts, n, *keys)
    assert seeds == [response_seeds([p], k + 1, *keys)[k] for p in prompts for k in range(n)]
    assert all(0 <= s < 2**63 for s in seeds)


def test_seeds_differ() -> None:
    seeds = [s for step in range(50) for s in response_seeds(range(40), 8, 3, 2, step)]
    assert len(set(seeds)) == len(seeds)
    assert response_seeds(range(3), 2, 1) != response_seeds(range(3), 2, 2)
    assert response_seeds([], 4, 1) == []


@pytest.mark.statistical
def test_numbers_are_uniform_along_tokens_rows_and_steps() -> None:
    """Each of 16 intervals as often as the others: over the tokens of a row, over rows, over steps; neighbours too."""
    base = shifted(11)
    tokens = torch.arange(20_000)
    zero = torch.zeros_like(tokens)
    along = UniformStream(response_seeds([0], 1, base)).uniform_R(zero, tokens)
    across = UniformStream(response_seeds(range(5_000), 4, base)).uniform_R(tokens, zero)
    plain = UniformStream(range(20_000)).uniform_R(tokens, zero)  # seeds that a user counts up
    steps = UniformStream([response_seeds([0], 1, base, t)[0] for t in range(20_000)]).uniform_R(tokens, zero)
    for numbers in (along, across, plain, steps):
        even = dict.fromkeys(range(16), 1 / 16)
        follows(Counter((numbers * 16).long().tolist()), even)
        pairs = (numbers[::2] * 4).long() * 4 + (numbers[1::2] * 4).long()
        follows(Counter(pairs.tolist()), even)
        near(float(numbers.mean()), 0.5, 1 / math.sqrt(12 * len(numbers)))
        correlation = float(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1])
        assert abs(correlation) < 4 / math.sqrt(len(numbers))
