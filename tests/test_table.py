"""Every method of the table is held to what is known about it: a new row gets all of this."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.reference.float64 import exact_norms
from torch import Tensor

from oracles import worlds
from oracles.rounds import NEGATIVE
from table import ROWS, Row
from tiltyard.batch.batch import Batch
from tiltyard.methods import METHODS
from tiltyard.training.algorithm import Algorithm, Forward, Mean, Models, StepGroups
from tiltyard.types import Group
from training import tiny

NAMES = sorted(ROWS)
SAMPLED = {
    ("online_dpo", "pi*, its own pairs"),
    *((n, w) for n in NAMES if METHODS[n].family in ("rl", "distribution") for w in ROWS[n].optima),
}
OPTIMA = [
    pytest.param(name, world, marks=[pytest.mark.statistical] * ((name, world) in SAMPLED))
    for name in NAMES
    for world in ROWS[name].optima
]
LABELLED = [name for name in NAMES if ROWS[name].pairs]
UNORDERED = [n for n in NAMES if not ROWS[n].ordered and any(len(g.responses) > 1 for g in ROWS[n].groups(5, 0))]
EXACT = 1e-10
FREE = 1e12  # no gradient is clipped
AWAY = 5  # the seed of a policy that is not the reference


@pytest.fixture(autouse=True)
def _exact_norms() -> Iterator[None]:
    with exact_norms():
        yield


def test_every_method_has_a_row() -> None:
    assert sorted(METHODS) == NAMES
    assert [name for name in NAMES if not ROWS[name].optima] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "world"), OPTIMA)
def test_it_ends_where_mathematics_says(name: str, world: str) -> None:
    toy = ROWS[name].optima[world]()
    before = toy.gap(toy.models)
    settings = {"schedule": "linear", "final_lr": 0.0, "max_grad_norm": FREE, "betas": (0.9, 0.95)}
    tiny.train(toy.algorithm, toy.models, steps=toy.steps, lr=toy.lr, **settings)
    found = toy.gap(toy.models)
    print(f"chance: {name}, {world}: {before:.3g} -> {found:.3g} within {toy.within}")
    assert found < toy.within < before / 20


# --------------------------------------------------------------------------------------------- the pieces by themselves


def composed(row: Row, groups: Sequence[Group], seed: int = AWAY) -> tuple[Algorithm, Models, Batch]:
    """The method over these groups, its models, and the batch that its prepare steps made."""
    algorithm, models = row.build(row.source([groups])), row.models(seed)
    return algorithm, models, prepared(algorithm, models, groups, range(len(groups)), len(groups))


def prepared(algorithm: Algorithm, models: Models, groups: Sequence[Group], index: Sequence[int], total: int) -> Batch:
    batch = Batch.of(groups, index, total)
    for prepare in algorithm.prepare:
        batch = prepare(models, batch)
    return batch


def mean_of(loss: Any, reduce: Mean, forward: Forward) -> Tensor:
    per_item, _ = loss(forward, forward.batch)
    return reduce.sum(per_item, forward.batch) / reduce.count(loss.item, forward.batch)


def own_loss(algorithm: Algorithm, models: Models, batch: Batch) -> Tensor:
    """The mean of the method's own loss, without auxiliary losses."""
    return mean_of(algorithm.loss, algorithm.reduce, forward_of(algorithm, models, batch))


def forward_of(algorithm: Algorithm, models: Models, batch: Batch) -> Forward:
    return Forward(models, batch, algorithm.temperature, algorithm.loss.needs)


def whole_loss(algorithm: Algorithm, models: Models, batch: Batch) -> Tensor:
    """With the first batch of every auxiliary loss."""
    loss = own_loss(algorithm, models, batch)
    for aux in algorithm.aux_losses:
        draw = aux.source(models, 0)
        forward = Forward(models, Batch.of(draw.groups, draw.index, draw.total), needs=aux.loss.needs)
        loss = loss + aux.weight * mean_of(aux.loss, aux.reduce, forward)
    return loss


def read_from(x: Tensor, of: str, forward: Forward) -> Forward:
    """A forward pass whose column is `x` instead of a model's, and the same number at every negative token."""
    column = "logp_R" if of == "logp_B" else of
    forward.columns |= {column: x, "negative_logp_R": torch.full_like(x, NEGATIVE)}
    return forward


def slopes(algorithm: Algorithm, models: Models, batch: Batch, of: str, x: Tensor | None = None) -> tuple[Tensor, ...]:
    """(the loss, what it is a function of, its derivative by that), a column along R or B."""
    forward = forward_of(algorithm, models, batch)
    column = "logp_R" if of == "logp_B" else of
    x = (forward[column].detach() if x is None else x).clone().requires_grad_()
    loss = mean_of(algorithm.loss, algorithm.reduce, read_from(x, of, forward))
    return loss.detach(), x.detach(), torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_at_the_start_are_the_closed_form(name: str) -> None:
    row = ROWS[name]
    algorithm, models, batch = composed(row, row.groups(9, 1), seed=0)
    loss, x, found = slopes(algorithm, models, batch, row.of)
    if row.of == "logp_B":
        response_R = batch.forest.response_R
        expected_loss, slope_B = row.start(batch, torch.zeros(batch.forest.B).double().index_add(0, response_R, x))
        slope = slope_B[response_R]
    else:
        expected_loss, slope = row.start(batch, x)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-12, abs=1e-12)
    assert float(slope.abs().max()) > 1e-3
    tiny.assert_same(found, slope, EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    """In float64, along random directions of all parameters, away from the reference and from the columns' models."""
    row = ROWS[name]
    algorithm, models, batch = composed(row, row.groups(6, 2))
    stream = torch.Generator().manual_seed(0)
    parameters = [p for n in algorithm.trains for p in models[n].parameters()]
    draw = lambda: [torch.randn(p.shape, generator=stream, dtype=p.dtype) for p in parameters]  # noqa: E731

    @torch.no_grad()
    def move(direction: Sequence[Tensor], size: float) -> None:
        for p, d in zip(parameters, direction, strict=True):
            p += size * d

    move(draw(), 0.02)
    gradient = torch.autograd.grad(whole_loss(algorithm, models, batch), parameters, allow_unused=True)
    for _ in range(3):
        direction, sizes, step = draw(), {}, 1e-4
        for place in (-2, -1, 1, 2):
            move(direction, place * step)
            sizes[place] = float(whole_loss(algorithm, models, batch).detach())
            move(direction, -place * step)
        found = (8 * (sizes[1] - sizes[-1]) - (sizes[2] - sizes[-2])) / (12 * step)
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True) if g is not None)
        assert abs(slope) > 1e-3
        assert found == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_places_of_answers_have_a_gradient(name: str) -> None:
    """At the last hidden states, padded: none at a prompt's places but its last, none outside the loss's spans.

    A policy or value model is read before each token of the loss, a reward model at an answer's last token, an
    encoder where a token was masked.
    """
    row = ROWS[name]
    algorithm, models, batch = composed(row, row.groups(6, 3))
    read = 0
    for trained in algorithm.trains:
        model, kept = models[trained], []
        model.force_padded("asked for by this test")

        def keep(module: Any, inputs: Any, output: Any, kept: list[Tensor] = kept) -> None:
            output.last_hidden_state.retain_grad()
            kept.append(output.last_hidden_state)

        handle = model.backbone.register_forward_hook(keep)
        for g in range(len(batch.groups)):
            part = batch.select([g])
            if not algorithm.reduce.count(algorithm.loss.item, part):
                continue
            kept.clear()
            own_loss(algorithm, models, part).backward()
            (hidden,) = kept
            found = {tuple(place) for place in hidden.grad.abs().sum(-1).nonzero().tolist()}
            may = places(row.of if trained != "value" else "logp_R", part)
            assert found <= {place for answer in may for place in answer}
            assert all(answer <= found or not answer & found for answer in may), "part of an answer is not read"
            read += len(found)
        handle.remove()
    assert read > 6


def places(of: str, batch: Batch) -> list[set[tuple[int, int]]]:
    """(row, place) that a loss may read of each response, from the records alone.

    The first tokens of all responses are predicted by one place, the prompt's last; it is a set of its own.
    """
    masked, (group,) = batch.columns.get("masked_R"), batch.groups
    begin = len(group.prompt.ids)
    shared = (len(group.responses) - 1, begin - 1)
    found: list[set[tuple[int, int]]] = [{shared}] if of.startswith("logp") else []
    for row, response in enumerate(group.responses):
        spans = response.loss_spans or ((0, len(response.ids)),)
        if of == "model_score_B":
            taken = [len(response.ids) - 1]
        elif of == "cloze_logp_R":
            taken = [t for t in range(len(response.ids)) if masked is not None and masked[t] > 0]
        else:
            taken = [t - 1 for a, b in spans for t in range(a, b) if t > 0]
        found.append({(row, begin + t) for t in taken})
    return found


@pytest.mark.parametrize("name", LABELLED)
def test_the_opposite_label_turns_the_gradient_round(name: str) -> None:
    """Where two answers of one length are equally likely: dloss/dh of the pair changes its sign and nothing else."""
    row, groups = ROWS[name], worlds.level_pairs(6)
    found = []
    for labelled in (groups, [replace(g, **worlds.labels_turned(g)) for g in groups]):
        algorithm, models, batch = composed(row, labelled)
        level_R = torch.full((batch.forest.R,), -1.3, dtype=torch.float64)
        if "ref_logp_R" in batch.columns:
            batch = batch.with_columns(ref_logp_R=level_R)
        _, _, slope_R = slopes(algorithm, models, batch, row.of, level_R)
        slope_G2 = slope_R.view(-1, 2, 4).sum(-1)
        found.append(slope_G2[:, 0] - slope_G2[:, 1])
    assert float(found[0].abs().max()) > 1e-3
    tiny.assert_same(found[0], -found[1], EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_two_groups_are_the_mean_of_each_alone(name: str) -> None:
    """Of different lengths, each by its weight: tokens, responses, rankings with a pair, or what the method says."""
    row = ROWS[name]
    many = row.groups(6, 4)
    groups = [many[1], many[3]]
    assert groups[0].tokens != groups[1].tokens
    algorithm, models, both = composed(row, groups)
    names = [(n, p) for n in algorithm.trains for p in models[n].parameters()]

    def gradient(batch: Batch) -> list[Tensor]:
        found = torch.autograd.grad(own_loss(algorithm, models, batch), [p for _, p in names], allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, (_, p) in zip(found, names, strict=True)]

    alone = [both.select([i]) if row.whole else prepared(algorithm, models, [groups[i]], [i], 2) for i in range(2)]
    weights = [row.weight(batch) for batch in alone]
    parts = [gradient(batch) for batch in alone]
    mean = [(weights[0] * a + weights[1] * b) / sum(weights) for a, b in zip(*parts, strict=True)]
    assert max(float((a - b).abs().max()) for a, b in zip(*parts, strict=True)) > 1e-6
    tiny.assert_same(gradient(both), mean, EXACT)


# ------------------------------------------------------------------------------------------------------ one step of fit


@dataclass
class Arranged:
    """Hands out the groups in another order, each with its place in the step's list, as a process of several may."""

    source: Any
    order: Sequence[int]

    def __call__(self, models: Models, step: int) -> StepGroups:
        draw = self.source(models, step)
        return draw._replace(groups=[draw.groups[i] for i in self.order], index=[draw.index[i] for i in self.order])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


class Taken(torch.optim.Optimizer):
    """Takes down the gradient of each step and moves nothing."""

    def __init__(self, models: Models, trains: Sequence[str]):
        named = [(f"{n}.{k}", p) for n in trains for k, p in models[n].module.named_parameters()]
        super().__init__([p for _, p in named], {"lr": 0.0})
        self.named, self.found = named, {}

    def step(self, closure: Any = None) -> None:
        self.found = {name: p.grad.clone() for name, p in self.named if p.grad is not None}


def step_of(
    name: str,
    groups: Sequence[Group],
    order: Sequence[int] = (),
    padded: bool = False,
    **settings: Any,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """(metrics, gradient) of one step that `fit` takes over these groups, auxiliary losses and all."""
    row = ROWS[name]
    algorithm, models = row.build(row.source([groups])), row.models(AWAY)
    if order:
        algorithm = replace(algorithm, source=Arranged(algorithm.source, order))
    for model in models.present().values() if padded else ():
        model.force_padded("asked for by this test")
    taken, record = Taken(models, algorithm.trains), tiny.Record()
    tiny.fit(algorithm, models, optimizer=taken, steps=1, sinks=[record], max_grad_norm=FREE, **settings)
    assert max(float(g.abs().max()) for g in taken.found.values()) > 1e-6
    assert math.isfinite(record.rows[0]["loss"])
    return record.rows[0], taken.found


@pytest.mark.parametrize("name", NAMES)
def test_order_packing_and_cutting_change_nothing(name: str) -> None:
    """One forest of all groups, a forest each, padded rows, another order: one loss, one gradient, the same metrics."""
    groups = ROWS[name].groups(7, 5)
    whole = step_of(name, groups)
    ways: dict[str, dict[str, Any]] = {
        "one group a micro-batch": {"tokens_per_microbatch": 1},
        "some groups a micro-batch": {"tokens_per_microbatch": 60},
        "padded": {"padded": True},
        "another order": {"order": (4, 0, 6, 2, 5, 1, 3)},
    }
    for way, settings in ways.items():
        print(way)
        tiny.assert_same(step_of(name, groups, **settings), whole, EXACT)


@pytest.mark.parametrize("name", UNORDERED)
def test_the_order_of_the_responses_changes_nothing(name: str) -> None:
    """Turned round together with all that is said of them."""
    groups = ROWS[name].groups(7, 5)
    tiny.assert_same(step_of(name, [worlds.turned(g) for g in groups]), step_of(name, groups), EXACT)


# ------------------------------------------------------------------------------------------------------------ resuming


class Killed(Exception):
    """The run ends here."""


@dataclass
class KilledAt(tiny.Record):
    at: int = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        if step == self.at:
            raise Killed


def run(row: Row, folder: Path, killed_at: int = 0) -> tuple[list[dict[str, float]], dict[str, Any], dict[str, Any]]:
    """One attempt: (metrics it logged, all models' parameters before, and after)."""
    steps = 6
    source = row.live() if row.live else row.source([row.groups(5, s) for s in range(steps)])
    algorithm, models = row.build(source), row.models(AWAY)
    before = {n: tiny.parameters(m) for n, m in models.present().items()}
    record = KilledAt(at=killed_at)
    settings: dict[str, Any] = {"lr": 1e-2, "schedule": "cosine", "warmup": 2, "weight_decay": 0.1}
    try:
        tiny.fit(algorithm, models, steps=steps, folder=folder, save_every=2, sinks=[record], **settings)
    except Killed:
        return record.rows, before, {}
    return record.rows, before, {n: tiny.parameters(m) for n, m in models.present().items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Bit for bit, after a kill that lost a step; frozen models are what they were."""
    row = ROWS[name]
    rows, before, whole = run(row, tmp_path / "whole")
    lost, _, _ = run(row, tmp_path / "cut", killed_at=5)
    rest, _, resumed = run(row, tmp_path / "cut")
    assert (len(lost), len(rest)) == (5, 2)
    tiny.assert_same(lost[:4] + rest, rows, 0)
    tiny.assert_same(resumed, whole, 0)
    method = METHODS[name]
    mutable = {*method.trains, *row.build(row.live() if row.live else row.source([[]])).mutable_models}
    for model, parameters in whole.items():
        same = all(p.equal(before[model][key]) for key, p in parameters.items())
        assert same == (model not in mutable), model
