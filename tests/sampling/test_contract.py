"""Every sampler keeps the contract of `contract.py`: the native one with packed and with padded models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.errors import CompositionError
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import NativeSampler, Sampler, SampleSettings
from tiltyard.types import Group

from . import stubs
from .contract import CONTRACT, Case


def native(family: str, dtype: str) -> Case:
    def make() -> NativeSampler:
        sampler = NativeSampler()
        sampler.sync(stubs.model(family, dtype), 0)
        return sampler

    def other() -> LanguageModel:
        model = stubs.model(family, dtype)
        with torch.no_grad():
            for p in model.module.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
        return model

    def logp_R(sampler: Sampler, groups: list[Group], temperature: float) -> Tensor:
        assert isinstance(sampler, NativeSampler)
        assert sampler.model is not None
        with torch.no_grad():
            return sampler.model.logp_R(pack(groups), temperature=temperature)[0]

    return Case(make, stubs.prompts(5, 2, 9, 4), logp_R, other)


CASES = {
    "packed": lambda: native("llama", "float64"),
    "packed_fused": lambda: native("llama", "float32"),
    "packed_window": lambda: native("gemma2", "float64"),
    "padded": lambda: native("bloom", "float32"),
}


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, promise: Callable[[Case], None]) -> None:
    promise(CASES[name]())


def test_a_sampler_without_a_model_says_so() -> None:
    with pytest.raises(CompositionError, match="no model yet"):
        NativeSampler().generate(stubs.prompts(3), 1, SampleSettings(), [0])
