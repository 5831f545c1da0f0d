"""`fit` against the flat references of RLOO and GRPO, number for number over 20 steps in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.reference import grpo as ref_grpo
from tests.reference import rloo as ref_rloo

from tiltyard.methods import grpo, rloo
from tiltyard.sampling import SampleSettings
from tiltyard.training.algorithm import Models
from tiltyard.training.source import generator
from tiltyard.types import Group, Prompt, Response

from . import tiny

STEPS, LONGEST = 20, 9


def answered(n: int, seed: int, k: int = 4) -> list[Group]:
    """Groups of scored answers, some cut at the longest length; every fifth group scores alike throughout."""
    g = torch.Generator().manual_seed(seed)
    groups = []
    for i in range(n):
        answers, scores = [], []
        for j in range(k):
            cut = (i + j) % 4 == 3
            ids = tiny.ids(LONGEST, g) if cut else (*tiny.ids(tiny.length(0, LONGEST - 1, g), g), tiny.EOS)
            answers.append(Response(ids=ids, finish="length" if cut else "stop"))
            scores.append(0.1 if i % 5 == 4 else float(torch.randn((), generator=g, dtype=torch.float64)))
        prompt = Prompt(id=str(i), ids=tiny.ids(tiny.length(1, 7, g), g))
        groups.append(Group(prompt, tuple(answers), scores=tuple(scores)))
    return groups


def questions(reference: Any, groups: list[Group]) -> list[Any]:
    """The groups as a reference takes them."""
    return [
        reference.Question(
            list(g.prompt.ids),
            [reference.Answer(list(r.ids), r.finish, s) for r, s in zip(g.responses, g.scores or (), strict=True)],
        )
        for g in groups
    ]


def plain_copy(model: Any) -> Any:
    """The model's weights in a module that runs as transformers made it."""
    with model.plain():
        return copy.deepcopy(model.module)


def given(steps: list[list[Group]]) -> Any:
    return tiny.Given(steps, SampleSettings(max_tokens=LONGEST))


@pytest.mark.parametrize("missing", ["subtract", "replace", "none"])
@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_rloo(kl: float, missing: Any) -> None:
    steps = [answered(3, s) for s in range(STEPS)]
    policy, ref = tiny.policy(), tiny.frozen(2)
    batches = [questions(ref_rloo, step) for step in steps]
    own = {"beta": kl, "missing": missing, "penalty": 0.7}
    theirs, final = ref_rloo.run(plain_copy(policy), plain_copy(ref), batches, lr=1e-3, **own)
    models = Models(policy=policy, ref=ref if kl else None)
    ours = tiny.train(rloo(given(steps), beta=kl, missing_eos=missing, missing_eos_penalty=0.7), models, lr=1e-3)
    for name in ("loss", "grad_norm", "advantage_size", *(("kl",) if kl else ())):
        tiny.assert_same([row[name] for row in ours], [row[name] for row in theirs])
    tiny.assert_same(tiny.parameters(policy), final)
    assert max(row["advantage_size"] for row in ours) > 0.5


# settings of grpo, and the same under the reference's names
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({}, {}),
    "several updates": ({"ppo_epochs": 3, "minibatches": 2}, {"epochs": 3, "minibatches": 2}),
    "Dr. GRPO": (
        {"beta": 0.0, "scale": "none", "aggregate": "constant", "ppo_epochs": 2},
        {"beta": 0.0, "scale": "none", "average": "constant", "epochs": 2},
    ),
    "DAPO": (
        {"beta": 0.0, "aggregate": "token", "clip_low": 0.02, "clip_high": 0.05, "overlong": 3, "ppo_epochs": 3},
        {"beta": 0.0, "average": "token", "low": 0.02, "high": 0.05, "soft": 3, "epochs": 3},
    ),
    "batch deviation, ddof 0": (
        {"scale": "batch", "ddof": 0, "scale_eps": 0.0, "minibatches": 2},
        {"scale": "batch", "ddof": 0, "eps": 0.0, "minibatches": 2},
    ),
    "cut answers left out": (
        {"mask_truncated": True, "aggregate": "sequence", "beta": 0.3},
        {"mask_truncated": True, "beta": 0.3},
    ),
    "cut answers left out, tokens": (
        {"mask_truncated": True, "aggregate": "token", "minibatches": 2},
        {"mask_truncated": True, "average": "token", "minibatches": 2},
    ),
    "cut answers left out, constant": (
        {"mask_truncated": True, "aggregate": "constant"},
        {"mask_truncated": True, "average": "constant"},
    ),
    "KL as k2": ({"beta": 0.3, "kl_form": "loss_k2", "ppo_epochs": 2}, {"beta": 0.3, "pull": "k2", "epochs": 2}),
    "KL in the reward": (
        {"beta": 0.3, "kl_form": "reward_k1", "minibatches": 3, "ppo_epochs": 2, "clip_low": 0.01, "clip_high": 0.03},
        {"beta": 0.3, "pull": "reward", "minibatches": 3, "epochs": 2, "low": 0.01, "high": 0.03},
    ),
    "KL in the reward, batch deviation": (
        {"beta": 0.3, "kl_form": "reward_k1", "scale": "batch", "aggregate": "token", "missing_eos": "replace"},
        {"beta": 0.3, "pull": "reward", "scale": "batch", "average": "token", "missing": "replace"},
    ),
    "cut answers cost": (
        {"missing_eos": "subtract", "missing_eos_penalty": 0.7, "overlong": 2, "aggregate": "constant"},
        {"missing": "subtract", "penalty": 0.7, "soft": 2, "average": "constant"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_grpo(case: str) -> None:
    settings, own = CASES[case]
    seed, steps = 3, [answered(6, s) for s in range(STEPS)]
    policy, ref = tiny.policy(), tiny.frozen(2)

    def order(step: int, epoch: int, n: int) -> list[int]:
        if settings.get("minibatches", 1) == 1:
            return list(range(n))
        return torch.randperm(n, generator=generator(seed, 3, step, epoch)).tolist()

    batches = [questions(ref_grpo, step) for step in steps]
    theirs, final = ref_grpo.run(plain_copy(policy), plain_copy(ref), batches, order, lr=1e-3, longest=LONGEST, **own)
    models = Models(policy=policy, ref=ref if settings.get("beta") != 0 else None)
    ours = tiny.train(grpo(given(steps), **settings), models, lr=1e-3, seed=seed)
    names = ["loss", "grad_norm", "clipped", *(("kl",) if models.ref else ())]
    for name in names:
        tiny.assert_same([row[name] for row in ours], [row[name] for row in theirs])
    tiny.assert_same(tiny.parameters(policy), final)
    if "clip_high" in settings:
        assert max(row["clipped"] for row in ours) > 0.01
