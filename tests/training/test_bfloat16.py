"""bfloat16 arithmetic with float32 master weights: the same curve of losses as far as the noise of training goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from tiltyard.methods import dpo, sft
from tiltyard.models.backbone import DType
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import frozen_copy
from tiltyard.training.algorithm import Models
from tiltyard.training.source import Offline
from tiltyard.types import Preference

from . import tiny

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
STEPS = 60


def curve(method: str, dtype: DType, seed: int = 0) -> tuple[torch.Tensor, Models]:
    """Losses of a run whose data and first weights are the same whatever the arithmetic; the seed is of the order."""
    module = tiny.module(LlamaForCausalLM, **SHAPE).float()
    policy = LanguageModel(module, tiny.CHAT, dtype)
    if method == "sft":
        algorithm, models = sft(Offline(tiny.demonstrations(64), 8, seed=seed)), Models(policy=policy)
    else:
        ref = frozen_copy(policy)
        pairs = [replace(g, responses=g.responses[:2], preference=Preference(ranks=(1, 2))) for g in tiny.rankings(64)]
        algorithm, models = dpo(Offline(pairs, 8, seed=seed), beta=0.3), Models(policy=policy, ref=ref)
    rows = tiny.train(algorithm, models, steps=STEPS, lr=1e-3)
    return torch.tensor([row["loss"] for row in rows]), models


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_curve_of_losses_stays_within_the_noise(method: str) -> None:
    """The gap between the arithmetics, a step, is at most a fifth of that between two orders of the same data."""
    exact, models = curve(method, "float32")
    half, halved = curve(method, "bfloat16")
    other, _ = curve(method, "float32", seed=1)
    assert exact[-10:].mean() < 0.8 * exact[:5].mean()  # it does learn
    gap, noise = (half - exact).abs().mean(), (other - exact).abs().mean()
    assert 0 < gap < noise / 5
    assert abs(half[-10:].mean() - exact[-10:].mean()) < noise / 5
    for run in (models, halved):  # what is trained and kept is float32
        assert {p.dtype for p in run.get("policy").module.parameters()} == {torch.float32}
    one, two = (tiny.parameters(run.get("policy")) for run in (models, halved))
    assert not all(one[k].equal(two[k]) for k in one)
