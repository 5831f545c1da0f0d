"""A scorer that abstains now and then: every online method goes on with what is left, and counts the rest."""

from __future__ import annotations

from typing import Any

import pytest

from tiltyard.methods import dapo, grpo, online_dpo, ppo, reinforce_pp, rloo
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.source import Online

from . import tiny

METHODS: dict[str, Any] = {
    "ppo": ppo,
    "grpo": grpo,
    "dapo": dapo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "online_dpo": online_dpo,
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("every", [2, 3])
def test_what_is_left_is_learnt_from(name: str, every: int) -> None:
    def score(prompt: Any, response: Any) -> float | None:
        return None if sum(response.ids) % every == 0 else float(sum(response.ids) % 7)

    prompts = [g.prompt for g in tiny.demonstrations(9)]
    n = 2 if name == "online_dpo" else 3
    source = Online(prompts, NativeSampler(), FunctionScorer(score), 4, n, SampleSettings(max_tokens=6), seed=3)
    models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar())
    rows = tiny.train(METHODS[name](source), models, steps=6)
    assert len(rows) == 6
    assert any("loss" in row for row in rows)
    shares = [row["unscored"] for row in rows if "unscored" in row]
    assert shares
    assert all(0 < share <= 1 for share in shares)
