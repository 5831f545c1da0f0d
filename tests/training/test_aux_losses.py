"""Auxiliary losses: the gradient is the sum, and how a run is cut, shared or resumed changes nothing.

`python -m tests.training.test_aux_losses FOLDER` trains alone or under torchrun, for the test of two processes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.reference.float64 import exact_norms
from tests.training import tiny
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.distributed import processes
from tiltyard.errors import CompositionError, NonFiniteError
from tiltyard.methods import click, dpo, sft, slic
from tiltyard.methods.sft import Nll, SequenceNll
from tiltyard.training.algorithm import Algorithm, AuxLoss, Forward, Mean, Models, StepGroups
from tiltyard.training.source import Offline
from tiltyard.types import Group, Preference

ROOT = Path(__file__).parents[2]
EXACT = 1e-12
OPEN = {"max_grad_norm": 1e9}  # nothing clipped


def pairs(n: int, seed: int = 0) -> list[Group]:
    return [replace(g, responses=g.responses[:2], preference=Preference(ranks=(1, 2))) for g in tiny.rankings(n, seed)]


def judged(n: int, seed: int = 0) -> list[Group]:
    """Continuations of which every other is good."""
    found = tiny.rankings(n, seed)
    return [replace(g, preference=None, scores=tuple(float(i % 2) for i in range(len(g.responses)))) for g in found]


def step_of(algorithm: Algorithm, **settings: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(the gradient that one step takes, its metrics): plain descent with rate 1."""
    models, record = Models(policy=tiny.policy()), tiny.Record()
    before = tiny.parameters(models.policy)
    sgd = torch.optim.SGD(models["policy"].parameters(), lr=1.0)
    tiny.fit(algorithm, models, optimizer=sgd, **({"steps": 1, "sinks": [record]} | OPEN | settings))
    return {n: before[n] - p for n, p in tiny.parameters(models.policy).items()}, record.rows[0]


def gradient_of(loss: Any, groups: list[Group]) -> tuple[dict[str, Tensor], float]:
    """(gradient, value) of a mean loss over groups, straight from autograd."""
    models = Models(policy=tiny.policy())
    batch = Batch.of(groups, range(len(groups)), len(groups))
    per_item, _ = loss(Forward(models, batch, 1.0), batch)
    value = per_item.mean()
    value.backward()
    return {n: p.grad for n, p in models["policy"].module.named_parameters()}, float(value.detach())


def length(gradient: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((g**2).sum()) for g in gradient.values()))


# ------------------------------------------------------------------------------------------------------ the arithmetic


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 40.0])
@pytest.mark.parametrize("loss", [Nll(), SequenceNll()], ids=["a token", "a response"])
def test_the_gradient_is_the_sum(weight: float, loss: Any) -> None:
    """g(w) = g(0) + w g_aux; the auxiliary loss's own loss is logged without its weight."""
    main, aside = tiny.demonstrations(4), tiny.demonstrations(5, seed=3)
    plain, told = step_of(Algorithm("plain", tiny.Given([main]), Nll()))
    both = Algorithm(
        "both", tiny.Given([main]), Nll(), aux_losses=(AuxLoss("aside", tiny.Given([aside]), loss, weight),)
    )
    found, metrics = step_of(both)
    side, value = gradient_of(loss, aside)
    tiny.assert_same(found, {n: plain[n] + weight * side[n] for n in plain}, EXACT * max(1, weight))
    assert metrics["aside_loss"] == pytest.approx(value, rel=EXACT)
    assert metrics["loss"] == told["loss"]
    assert metrics["aside_grad_ratio"] == pytest.approx(weight * length(side) / length(plain), rel=1e-9)
    assert metrics["grad_norm"] == pytest.approx(length(found), rel=1e-9)


def test_several_auxiliary_losses_add_up() -> None:
    groups = [tiny.demonstrations(4, seed=s) for s in range(3)]
    sides = (
        AuxLoss("a", tiny.Given(groups[1:2]), Nll(), 0.5),
        AuxLoss("b", tiny.Given(groups[2:]), SequenceNll(), 2.0),
    )
    found, metrics = step_of(Algorithm("three", tiny.Given(groups[:1]), Nll(), aux_losses=sides))
    parts = [
        gradient_of(Nll(), groups[0])[0],
        gradient_of(Nll(), groups[1])[0],
        gradient_of(SequenceNll(), groups[2])[0],
    ]
    tiny.assert_same(found, {n: parts[0][n] + 0.5 * parts[1][n] + 2 * parts[2][n] for n in found}, 1e-11)
    for name, weight, part in (("a", 0.5, parts[1]), ("b", 2.0, parts[2])):  # each against the method's own
        assert metrics[f"{name}_grad_ratio"] == pytest.approx(weight * length(part) / length(parts[0]), rel=1e-9)


def test_the_whole_gradient_is_clipped_not_its_parts() -> None:
    main, aside = tiny.demonstrations(4), tiny.demonstrations(5, seed=3)
    both = Algorithm("both", tiny.Given([main]), Nll(), aux_losses=(AuxLoss("aside", tiny.Given([aside]), Nll(), 3.0),))
    free, _ = step_of(both)
    clipped, metrics = step_of(both, max_grad_norm=0.1)
    assert length(clipped) == pytest.approx(0.1, rel=1e-4)
    tiny.assert_same({n: g * length(free) / 0.1 for n, g in clipped.items()}, free, 1e-4)
    assert metrics["grad_norm"] == pytest.approx(length(free), rel=1e-9)


def trained(algorithm: Algorithm, **settings: Any) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    models = Models(policy=tiny.policy(), ref=tiny.frozen())
    rows = tiny.train(algorithm, models, **({"steps": 6} | settings))
    return tiny.parameters(models.policy), rows


def test_weight_zero_is_the_plain_method() -> None:
    """To the last bit; in SLiC-HF lam = 0 leaves the term out altogether."""
    plain, _ = trained(sft(Offline(tiny.demonstrations(9), 4)))
    aside = AuxLoss("aside", Offline(tiny.demonstrations(9, seed=3), 4), Nll(), 0.0)
    none, rows = trained(replace(sft(Offline(tiny.demonstrations(9), 4)), aux_losses=(aside,)))
    tiny.assert_same(none, plain, 0)
    assert all(row["aside_grad_ratio"] == 0 for row in rows)
    data, targets = Offline(pairs(9), 4), Offline(tiny.demonstrations(9), 4)
    without, rows = trained(slic(data, targets, lam=0.0))
    tiny.assert_same(without, trained(slic(data, None, lam=0.0))[0], 0)
    assert "targets_loss" not in rows[0]


def test_click_without_its_contrast_is_sft() -> None:
    """weight = 0: whatever the labelled answers are, the demonstrations alone teach."""
    demonstrations = tiny.demonstrations(9)
    found, _ = trained(click(Offline(judged(7), 3), Offline(demonstrations, 4), weight=0.0))
    tiny.assert_same(found, trained(sft(Offline(demonstrations, 4)))[0], EXACT)


def test_slic_with_a_huge_weight_goes_where_sft_goes() -> None:
    """lam -> infinity: the gradient's direction is that of the targets' likelihood."""
    targets = tiny.demonstrations(4)
    found, metrics = step_of(slic(tiny.Given([pairs(4)]), tiny.Given([targets]), lam=1e9), max_grad_norm=1e18)
    side, _ = gradient_of(SequenceNll(), targets)
    tiny.assert_same(
        {n: g / length(found) for n, g in found.items()}, {n: g / length(side) for n, g in side.items()}, 1e-6
    )
    assert metrics["targets_grad_ratio"] > 1e8


# ----------------------------------------------------------------------------------------------------------- when, what


@dataclass
class Counting:
    """Hands out one group a draw and remembers in its checkpointed state how often it was asked."""

    groups: list[Group]
    asked: list[int] = field(default_factory=list)
    drawn: int = 0

    def __call__(self, models: Models, step: int) -> StepGroups:
        self.asked.append(step)
        self.drawn += 1
        return StepGroups([self.groups[self.drawn % len(self.groups)]], [0], 1)

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


def test_every_update_draws_its_own_batch() -> None:
    source = Counting(tiny.demonstrations(5))
    main = Algorithm("four", tiny.Given([tiny.demonstrations(6)]), Nll(), epochs=2, minibatches=2)
    trained(replace(main, aux_losses=(AuxLoss("aside", source, Nll(), 1.0),)), steps=3)
    assert source.asked == list(range(12))


def test_a_step_whose_own_groups_say_nothing_still_learns_from_the_side() -> None:
    ties = [replace(g, preference=Preference(ranks=(1, 1))) for g in pairs(4)]
    aside = tiny.demonstrations(3)
    found, metrics = step_of(slic(tiny.Given([ties]), tiny.Given([aside]), lam=2.0))
    side, value = gradient_of(SequenceNll(), aside)
    tiny.assert_same(found, {n: 2 * g for n, g in side.items()}, EXACT)
    assert metrics["tied_groups"] == 1
    assert metrics["targets_loss"] == pytest.approx(value, rel=EXACT)
    assert "loss" not in metrics  # there is none
    assert "targets_grad_ratio" not in metrics


class Broken:
    """Not a number at once."""

    needs: tuple[str, ...] = ("logp_R",)
    item: Literal["R", "B", "G"] = "R"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        return forward.logp_R * math.nan, {}


def test_an_auxiliary_loss_that_is_not_finite_stops_the_run() -> None:
    models = Models(policy=tiny.policy())
    before = tiny.parameters(models.policy)
    aux_losses = (AuxLoss("aside", tiny.Given([tiny.demonstrations(3)]), Broken(), 1.0),)
    with pytest.raises(NonFiniteError, match="step 0"):
        tiny.fit(replace(sft(Offline(tiny.demonstrations(5), 2)), aux_losses=aux_losses), models, steps=2)
    tiny.assert_same(tiny.parameters(models.policy), before, 0)


class Lacking(Nll):
    needs = ("logp_R", "ref_logp_R")


def test_an_auxiliary_loss_reads_no_column_of_the_method() -> None:
    """Prepare steps work on the method's own groups, so what they write is not there for others."""
    main = dpo(Offline(pairs(4), 2))
    with pytest.raises(CompositionError, match="the auxiliary loss 'aside' needs column 'ref_logp_R'"):
        replace(main, aux_losses=(AuxLoss("aside", Offline(tiny.demonstrations(4), 2), Lacking(), 1.0),))


# -------------------------------------------------------------------------------------------- cut, shared, interrupted

METHODS = ("slic", "click", "weighted")


def make(name: str) -> Algorithm:
    """Odd batches; `weighted` has a side of one group a step, fewer than processes, and several updates."""
    demonstrations = Offline(tiny.demonstrations(7, seed=2), 3, seed=5)
    if name == "slic":
        return slic(Offline(pairs(11), 5), demonstrations, lam=0.3)
    if name == "click":
        return click(Offline(judged(11), 5), demonstrations, weight=0.7, pairing="random")
    main = Algorithm("weighted", Offline(tiny.demonstrations(11), 5), SequenceNll(), epochs=2, minibatches=2)
    return replace(main, aux_losses=(AuxLoss("aside", Offline(tiny.demonstrations(7, seed=2), 1), Nll(), 0.3, Mean()),))


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_change_nothing(name: str) -> None:
    whole, rows = trained(make(name), lr=1e-2)
    for tokens_per_microbatch in (70, 1):
        found, cut = trained(make(name), lr=1e-2, tokens_per_microbatch=tokens_per_microbatch)
        tiny.assert_same(cut, rows, 1e-9)
        tiny.assert_same(found, whole, 1e-9)
    assert any(key.endswith("_grad_ratio") for key in rows[0])


def attempt(algorithm: Algorithm, folder: Path, until: int = 0) -> dict[str, Tensor] | None:
    models = Models(policy=tiny.policy(), ref=tiny.frozen())
    keep = {"folder": folder, "save_every": 2, "sinks": [tiny.CutAt(until)]}
    try:
        tiny.fit(algorithm, models, steps=7, lr=1e-2, warmup=2, schedule="cosine", **keep)
    except tiny.Cut:
        return None
    return tiny.parameters(models.policy)


def lines(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


def stateful(name: str) -> Algorithm:
    if name in METHODS:
        return make(name)
    aside = AuxLoss("aside", Counting(tiny.demonstrations(5)), Nll(), 0.5)
    return replace(sft(Offline(tiny.demonstrations(9), 4)), aux_losses=(aside,))


@pytest.mark.parametrize("name", [*METHODS, "a source with a state"])
def test_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    whole = attempt(stateful(name), tmp_path / "whole")
    for cut in (1, 3, 6):
        assert attempt(stateful(name), tmp_path / "cut", cut) is None
    tiny.assert_same(attempt(stateful(name), tmp_path / "cut"), whole, 0)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def main(folder: Path) -> None:
    """Trains every method and leaves its curve and parameters."""
    processes.start()
    for name in METHODS:
        models = Models(policy=tiny.policy())
        tiny.fit(make(name), models, steps=5, lr=1e-2, tokens_per_microbatch=60, folder=folder / name)
        save_file(tiny.parameters(models.policy), folder / f"{name}.rank{processes.rank()}.safetensors")
    processes.barrier()


def launch(folder: Path, *before: str) -> None:
    folder.mkdir()
    command = [sys.executable, *before, "-m", "tests.training.test_aux_losses", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one)
    launch(two, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for name in METHODS:
        ours, theirs = lines(two / name), lines(one / name)
        assert [row.keys() for row in ours] == [row.keys() for row in theirs]
        tiny.assert_same(ours, theirs, 1e-9)
        ends = [load_file(two / f"{name}.rank{rank}.safetensors") for rank in (0, 1)]
        tiny.assert_same(ends[0], ends[1], 0)
        tiny.assert_same(ends[0], load_file(one / f"{name}.rank0.safetensors"), 1e-9)


if __name__ == "__main__":
    with exact_norms():
        main(Path(sys.argv[1]))
