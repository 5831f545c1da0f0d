"""Self-play (SPIN): who plays whom, when the opponent is renewed, and that a cut run meets the same one again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.errors import ConfigError
from tiltyard.methods import spin
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.self_play import SelfPlay
from tiltyard.types import Group, ranks_of

from . import tiny

LAW = SampleSettings(max_tokens=6)


def source(every: int = 3, batch: int = 4, **settings: Any) -> SelfPlay:
    return SelfPlay(tiny.demonstrations(9), NativeSampler(), batch, every, LAW, **({"seed": 2} | settings))


def models(ref: int = 0) -> Models:
    return Models(policy=tiny.policy(), ref=tiny.frozen(ref))


def drawn(groups: list[Group]) -> list[tuple[int, ...]]:
    return [g.responses[1].ids for g in groups]


# ---------------------------------------------------------------------------------------------------------- the source


def test_the_data_s_answer_always_wins() -> None:
    made = source()(models(), 0)
    by_id = {g.prompt.id: g for g in tiny.demonstrations(9)}
    assert (len(made.groups), made.index, made.total) == (4, [0, 1, 2, 3], 4)
    for group in made.groups:
        assert ranks_of(group.preference) == (1, 2)
        assert group.responses[0] == by_id[group.prompt.id].responses[0]
        own = group.responses[1]
        assert own.policy_version == 0
        assert own.logps is not None
        assert len(own.logps) == len(own.ids) <= 6
        assert group.origin.endswith("against iteration 0")


def test_answers_come_from_the_reference_and_not_from_the_policy() -> None:
    """The recorded log-probs are the reference's; another policy changes nothing, another reference everything."""
    found = models(ref=5)
    groups = source()(found, 0).groups
    batch = Batch.of([replace(g, responses=g.responses[1:], preference=None) for g in groups], range(4), 4)
    with torch.no_grad():
        tiny.assert_same(batch["sampled_logp_R"], found["ref"].logp_R(batch.forest)[0], 1e-9)
    assert drawn(source()(Models(policy=tiny.policy(8), ref=tiny.frozen(5)), 0).groups) == drawn(groups)
    assert drawn(source()(models(ref=6), 0).groups) != drawn(groups)


def test_a_draw_depends_on_the_seed_and_the_step_alone() -> None:
    once = source()
    for step in range(4):
        once(models(), step)
    assert drawn(once(models(), 4).groups) == drawn(source()(models(), 4).groups)
    assert drawn(source()(models(), 4).groups) != drawn(source(seed=3)(models(), 4).groups)


@pytest.mark.parametrize("every", [1, 2, 3, 10])
def test_iterations_are_counted(every: int) -> None:
    made = source(every)
    for step in range(7):
        groups = made(models(), step).groups
        assert made.iteration == step // every
        assert {g.responses[1].policy_version for g in groups} == {step // every}


def test_no_steps_make_no_iteration() -> None:
    with pytest.raises(ConfigError, match="at least one step"):
        source(every=0)


def test_of_several_turns_the_first_is_taken() -> None:
    """The paper's rule: later turns answer questions that the opponent was not asked."""
    [group] = tiny.demonstrations(1)
    answer = replace(group.responses[0], ids=(4, 5, tiny.EOS, 9, 9, 6, tiny.EOS), loss_spans=((0, 3), (5, 7)))
    made = SelfPlay([replace(group, responses=(answer,), scores=(1.0,))], NativeSampler(), 1, 1, LAW)(
        models(), 0
    ).groups[0]
    assert made.responses[0].ids == (4, 5, tiny.EOS)
    assert made.responses[0].loss_spans is None
    assert made.scores is None


# ---------------------------------------------------------------------------------------------------------- the method


def test_the_reference_is_renewed_and_held_in_between() -> None:
    """After every third step it is the policy, to the last bit; before that it does not move."""
    kept: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def look(m: Models, batch: Any, step: int) -> None:
        kept.append((tiny.parameters(m.ref), tiny.parameters(m.policy)))

    start = tiny.parameters(tiny.frozen())
    rows = tiny.train(tiny.watch(spin(source(every=3)), look), models(), steps=7)
    refs = [ref for ref, _ in kept]
    for step, old in ((0, start), (1, start), (2, kept[2][1]), (3, kept[2][1]), (4, kept[2][1]), (5, kept[5][1])):
        tiny.assert_same(refs[step], old, 0)
    assert not torch.equal(refs[2]["lm_head.weight"], start["lm_head.weight"])
    # each iteration begins where policy and reference are one: ln 2 and no margin
    for step in (0, 3, 6):
        assert rows[step]["loss"] == pytest.approx(math.log(2), abs=1e-9)
        assert rows[step]["margin"] == pytest.approx(0, abs=1e-9)
    assert abs(rows[2]["margin"]) > 1e-4


def test_the_first_gradient_is_half_the_difference_of_likelihoods() -> None:
    """-(lam/2) grad [log pi(data) - log pi(own)]: its mean over own answers is lam/2 times SFT's gradient."""
    lam, found = 0.8, models()
    groups = source()(models(), 0).groups
    before = tiny.parameters(found.policy)
    descent = torch.optim.SGD(found["policy"].parameters(), lr=1.0)
    tiny.fit(spin(source(), beta=lam), found, optimizer=descent, steps=1, max_grad_norm=1e9)
    step = {n: before[n] - p for n, p in tiny.parameters(found.policy).items()}
    plain = tiny.policy()
    batch = Batch.of(groups, range(4), 4)
    sign_R = 1.0 - 2.0 * (batch.forest.response_R % 2)
    (-(lam / 2) * (sign_R * plain.logp_R(batch.forest)[0]).sum() / 4).backward()
    tiny.assert_same(step, {n: p.grad for n, p in plain.module.named_parameters()}, 1e-9)


def test_the_schedule_of_lam() -> None:
    rows = tiny.train(spin(source(every=2), beta=[0.1, 5.0]), models(), steps=7)
    assert [row["beta"] for row in rows] == [0.1, 0.1, 5.0, 5.0, 5.0, 5.0, 5.0]  # the last one holds
    with pytest.raises(ConfigError, match="empty"):
        spin(source(), beta=[])


def test_the_hinge_starts_at_one() -> None:
    rows = tiny.train(spin(source(), loss="hinge"), models(), steps=1)
    assert rows[0]["loss"] == pytest.approx(1, abs=1e-9)


# --------------------------------------------------------------------------------------------------------- interrupted


def attempt(algorithm: Algorithm, folder: Path, until: int = 0) -> Models | None:
    found = models()
    keep = {"folder": folder, "save_every": 2, "keep_groups": True, "sinks": [tiny.CutAt(until)]}
    try:
        return tiny.fit(algorithm, found, steps=8, lr=1e-2, warmup=2, schedule="cosine", **keep)
    except tiny.Cut:
        return None


def written(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return found


@pytest.mark.parametrize("cuts", [(1,), (3,), (5,), (6,), (2, 4, 7)])
def test_the_snapshot_comes_back(cuts: tuple[int, ...], tmp_path: Path) -> None:
    """A fresh process has the model it started from as reference; the checkpoint holds the one it played against."""
    whole = attempt(spin(source(every=3)), tmp_path / "whole")
    assert whole is not None
    for cut in cuts:
        assert attempt(spin(source(every=3)), tmp_path / "cut", cut) is None
    found = attempt(spin(source(every=3)), tmp_path / "cut")
    assert found is not None
    tiny.assert_same(tiny.parameters(found.policy), tiny.parameters(whole.policy), 0)
    tiny.assert_same(tiny.parameters(found.ref), tiny.parameters(whole.ref), 0)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")
    assert len(written(tmp_path / "cut")["groups.jsonl"]) == 8 * 4
