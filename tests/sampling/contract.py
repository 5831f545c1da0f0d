"""What every sampler promises, checked for all of them by `test_contract.py`.

A case makes a sampler, synchronised with its model, and prompts for it. `logp_R` is a second pass of the same model
over sampled groups, at a temperature: the log-probs that the sampler should have recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiltyard.errors import ConfigError
from tiltyard.sampling import Capabilities, Sampler, SampleSettings, response_seeds
from tiltyard.types import Group, Prompt


@dataclass
class Case:
    make: Callable[[], Sampler]
    prompts: list[Prompt]
    logp_R: Callable[[Sampler, list[Group], float], Tensor]
    other_model: Callable[[], Any]
    tolerance: float = 1e-5


SAMPLING = SampleSettings(temperature=0.8, max_tokens=9)
N = 3


def ids(groups: Sequence[Group]) -> list[list[tuple[int, ...]]]:
    return [[r.ids for r in g.responses] for g in groups]


def _generate(case: Case, sampler: Sampler | None = None, sampling: SampleSettings = SAMPLING) -> list[Group]:
    seeds = response_seeds(range(len(case.prompts)), N, 5)
    return (sampler or case.make()).generate(case.prompts, N, sampling, seeds)


def gives_n_responses_a_prompt_in_order(case: Case) -> None:
    groups = _generate(case)
    assert [g.prompt for g in groups] == case.prompts
    for group in groups:
        assert len(group.responses) == N
        for response in group.responses:
            assert 1 <= len(response.ids) <= SAMPLING.max_tokens
            assert response.finish in ("stop", "length")
            assert (response.finish == "length") <= (len(response.ids) == SAMPLING.max_tokens)
    assert case.make().generate([], N, SAMPLING, []) == []


def responses_depend_on_their_seed_alone(case: Case) -> None:
    """Not on neighbours, order, the split into calls (or processes) or how many are decoded at a time."""
    whole = _generate(case)
    responses = [r.ids for g in whole for r in g.responses]
    by_seed = dict(zip(response_seeds(range(len(case.prompts)), N, 5), responses, strict=True))
    sampler = case.make()

    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(
        st.permutations(range(len(case.prompts))),
        st.integers(1, len(case.prompts)),
        st.integers(1, N * len(case.prompts)),
        st.integers(1, N),
    )
    def check(order: list[int], size: int, concurrent: int, n: int) -> None:
        sampling = replace(SAMPLING, max_concurrent=concurrent)
        for first in range(0, len(order), size):
            part = order[first : first + size]
            seeds = [response_seeds([i], N, 5)[k] for i in part for k in range(n)]
            groups = sampler.generate([case.prompts[i] for i in part], n, sampling, seeds)
            assert [r.ids for g in groups for r in g.responses] == [by_seed[seed] for seed in seeds]

    check()


def other_seeds_give_other_responses(case: Case) -> None:
    sampler = case.make()
    one, again = (_generate(case, sampler) for _ in range(2))
    assert ids(one) == ids(again)
    seeds = response_seeds(range(len(case.prompts)), N, 6)
    assert ids(sampler.generate(case.prompts, N, SAMPLING, seeds)) != ids(one)
    same = sampler.generate(case.prompts[:1], N, SAMPLING, [7] * N)
    assert len({r.ids for r in same[0].responses}) == 1


def logps_are_those_of_a_second_pass(case: Case) -> None:
    sampler = case.make()
    groups = _generate(case, sampler)
    recorded = [r.logps for g in groups for r in g.responses]
    if sampler.capabilities.logps == "none":
        assert all(logps is None for logps in recorded)
        return
    flat = torch.tensor([x for logps in recorded for x in logps or ()], dtype=torch.float64)
    expected = case.logp_R(sampler, groups, SAMPLING.temperature).double()
    torch.testing.assert_close(flat, expected, atol=case.tolerance, rtol=0)


def greedy_takes_the_best_token(case: Case) -> None:
    groups = _generate(case, sampling=SampleSettings(temperature=0, max_tokens=5))
    for group in groups:
        assert len({r.ids for r in group.responses}) == 1


def hidden_states_are_kept_where_it_can(case: Case) -> None:
    sampler = case.make()
    assert isinstance(sampler.capabilities, Capabilities)
    for asked in (False, True):
        groups = _generate(case, sampler, replace(SAMPLING, keep_hidden=asked))
        for response in (r for g in groups for r in g.responses):
            if asked and sampler.capabilities.hidden:
                assert len(response.hidden) == len(response.ids)
            else:
                assert response.hidden is None


def sync_changes_the_model(case: Case) -> None:
    sampler = case.make()
    before = ids(_generate(case, sampler))
    sampler.sync(case.other_model(), 1)
    assert ids(_generate(case, sampler)) != before


def refuses_too_few_seeds(case: Case) -> None:
    with pytest.raises(ConfigError, match="one seed a response"):
        case.make().generate(case.prompts, N, SAMPLING, [1])


CONTRACT: Sequence[Callable[[Case], None]] = (
    gives_n_responses_a_prompt_in_order,
    responses_depend_on_their_seed_alone,
    other_seeds_give_other_responses,
    logps_are_those_of_a_second_pass,
    greedy_takes_the_best_token,
    hidden_states_are_kept_where_it_can,
    sync_changes_the_model,
    refuses_too_few_seeds,
)
