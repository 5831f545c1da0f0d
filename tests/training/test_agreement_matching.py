"""The methods that match a distribution against flat references, number for number over twenty updates."""

from __future__ import annotations

from typing import Any

import pytest
from tests.oracles import matching, rl
from tests.reference import matching as reference
from tests.reference import rloo as questions_of

from tiltyard.methods import dpg, f_dpg, gdc, kl_dpg, vbon
from tiltyard.training.algorithm import Models

from . import tiny
from .test_agreement_rl import STEPS, answered, given, plain_copy, questions

BETA = 0.6


def agree(
    algorithm: Any, steps: Any, models: Models, names: tuple[str, ...] = (), **own: Any
) -> list[dict[str, float]]:
    policy, ref = models["policy"], models["ref"]
    batches = [questions(questions_of, step) for step in steps]
    if "proposal" in models:
        own |= {"proposal": plain_copy(models["proposal"])}
    theirs, final = reference.run(plain_copy(policy), plain_copy(ref), batches, lr=1e-3, **own)
    ours = tiny.train(algorithm, models, lr=1e-3)
    for name in ("loss", "grad_norm", "advantage_size", *names):
        tiny.assert_same([row[name] for row in ours], [row[name] for row in theirs])
    tiny.assert_same(tiny.parameters(policy), final)
    assert max(row["advantage_size"] for row in ours) > 0.3
    return ours


def pair() -> Models:
    return Models(policy=tiny.policy(), ref=tiny.frozen(2))


@pytest.mark.parametrize("missing", ["subtract", "replace", "none"])
@pytest.mark.parametrize("baseline", [True, False])
def test_dpg(baseline: bool, missing: Any) -> None:
    steps = [answered(3, s) for s in range(STEPS)]
    settings = {"beta": BETA, "missing_eos": missing, "missing_eos_penalty": 0.7, "baseline": baseline}
    loss = "dpg" if baseline else "dpg without baseline"
    agree(dpg(given(steps), **settings), steps, pair(), kind=("scores", BETA, missing, 0.7), loss=loss)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "tv", "js"])
def test_f_dpg(divergence: Any) -> None:
    steps = [answered(3, s) for s in range(STEPS)]
    algorithm = f_dpg(given(steps), divergence=divergence, beta=BETA, missing_eos="none")
    agree(algorithm, steps, pair(), kind=("scores", BETA, "none", 0.0), loss=divergence)


def test_kl_dpg() -> None:
    """The proposal begins away from the policy, and is replaced where that is known to help."""
    steps = [answered(6, s) for s in range(STEPS)]
    models = pair().replace(proposal=tiny.frozen(3))
    algorithm = kl_dpg(matching.Proposed(steps), beta=BETA, adapt_every=2, missing_eos="none")
    own = {"kind": ("scores", BETA, "none", 0.0), "loss": "dpg", "adapt_every": 2}
    rows = agree(algorithm, steps, models, ("proposals",), **own)
    assert rows[-1]["proposals"] > 0


def test_gdc() -> None:
    steps = [answered(3, s) for s in range(STEPS)]
    algorithm = gdc(matching.Scored(steps), moments={"reward": 2.2}, moment_prompts=5, moment_samples=12)
    agree(algorithm, steps, pair(), kind=("factor",), loss="dpg")


def test_vbon() -> None:
    steps = [matching.ranked(3, s) for s in range(STEPS)]
    assert {len(g.responses) for g in rl.answered(3)} == {2, 3, 4}
    algorithm = vbon(matching.Ladder(steps), n=5.0, ref_samples=len(matching.LADDER))
    agree(algorithm, steps, pair(), kind=("best", 5.0, matching.LADDER), loss="reverse_kl")
