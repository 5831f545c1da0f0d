"""A method from outside the package brings its own forward columns, its own model roles and its own hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.errors import CompositionError
from tiltyard.models.heads import value_head
from tiltyard.training.algorithm import Algorithm, Forward, Models, Need, register_forward
from tiltyard.training.forward import FORWARD_PASSES, ResponseScores, TokenValues
from tiltyard.training.prepare import per_microbatch

from . import tiny


@pytest.fixture
def registry() -> Iterator[None]:
    """Passes that the test registers are removed after it."""
    before = dict(FORWARD_PASSES)
    yield
    FORWARD_PASSES.clear()
    FORWARD_PASSES.update(before)


@dataclass(frozen=True)
class Margins:
    """`margin_R`: how far the policy's log-prob of each token is above the reference's, with gradient."""

    scale: float = 1.0
    role: ClassVar[str] = "policy"
    needs: ClassVar[tuple[str, ...]] = ("proposal_logp_R",)
    writes: ClassVar[tuple[str, ...]] = ("margin_R",)

    def __call__(self, forward: Forward) -> Mapping[str, Tensor]:
        return {"margin_R": self.scale * (forward["logp_R"] - forward.batch["proposal_logp_R"])}


@dataclass(frozen=True)
class ProposalLogps:
    """`proposal_logp_R` of a model in a role that the package does not know."""

    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("proposal_logp_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:
        logp_R = per_microbatch(batch, lambda part: models["proposal"].logp_R(part.forest)[0])
        return batch.with_columns(proposal_logp_R=logp_R)

    def first_pass(self, forward: Forward) -> Metrics:
        return {"first_margin": (float(forward["margin_R"].detach().sum()), float(forward.batch.forest.R))}


@dataclass(frozen=True)
class SquaredMargin:
    """margin^2 of each token."""

    scale: float
    item: ClassVar[Any] = "R"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Margins(self.scale),)

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        return forward["margin_R"] ** 2, {}


@dataclass(frozen=True)
class TwoScores:
    """(first reward - second reward - 1)^2 of each response: both models are trained."""

    needs: ClassVar[tuple[Need, ...]] = ("model_score_B", "safety_score_B")
    item: ClassVar[Any] = "B"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        return (forward.model_score_B - forward["safety_score_B"] - 1) ** 2, {}


def test_a_column_of_ones_own_reaches_the_loss_and_a_model_of_any_role_the_prepare_steps() -> None:
    groups = tiny.demonstrations(5)
    models = Models(policy=tiny.policy(1), proposal=tiny.frozen(0))
    prepare = (ProposalLogps(),)
    algorithm = Algorithm("margin", tiny.Given([groups]), SquaredMargin(3.0), prepare=prepare)
    batch = Batch.of(groups, range(5), 5)
    before = [m.logp_R(batch.forest)[0].detach() for m in (models["policy"], models["proposal"])]
    rows = tiny.train(algorithm, models, steps=30, tokens_per_microbatch=20)
    expected = 3 * (before[0] - before[1])
    assert rows[0]["loss"] == pytest.approx(float((expected**2).mean()), rel=1e-10)
    assert rows[0]["first_margin"] == pytest.approx(float(expected.mean()), rel=1e-10)
    assert rows[-1]["loss"] < rows[0]["loss"] / 5  # it becomes the proposal, which stays
    assert models["proposal"].logp_R(batch.forest)[0].equal(before[1])


def test_a_second_reward_model(registry: None) -> None:
    register_forward(ResponseScores("safety", "safety_score_B"))
    groups = tiny.rankings(4)
    models = Models(reward=tiny.scalar(0), safety=tiny.scalar(1))
    algorithm = Algorithm("two", tiny.Given([groups]), TwoScores(), trains=("reward", "safety"))
    before = tiny.parameters(models["safety"])
    rows = tiny.train(algorithm, models, steps=40, lr={"reward": 1e-2, "safety": 1e-2})
    assert rows[-1]["loss"] < rows[0]["loss"] / 10
    assert not before["score.weight"].equal(tiny.parameters(models["safety"])["score.weight"])
    assert list(models.present()) == ["reward", "safety"]
    assert models.in_memory == 2


def test_a_head_of_any_role_shares_the_policys_pass() -> None:
    """A twist head on the policy's own states: one pass of the backbone gives log-probs and twist."""
    policy = tiny.policy()
    models = Models(policy=policy, twist=value_head(policy))
    assert models.shares_states("twist")
    assert models.in_memory == 1
    batch = Batch.of(tiny.demonstrations(3), range(3), 3)
    forward = Forward(models, batch, needs=(TokenValues("twist", "twist_R"),))
    calls = []
    policy.backbone.register_forward_hook(lambda *_: calls.append(1))
    forward["logp_R"], forward["twist_R"]
    assert len(calls) == 1


def test_models_by_role() -> None:
    policy, twist = tiny.policy(), tiny.scalar()
    models = Models(twist=twist, policy=policy, ref=None)
    assert (models["policy"], models.policy, models["twist"], models.get("ref")) == (policy, policy, twist, None)
    assert list(models) == ["policy", "twist"]  # the usual roles first
    assert "twist" in models
    assert "ref" not in models
    models.ref = policy
    assert models["ref"] is policy
    models["ref"] = None
    assert models.ref is None
    assert models.replace(version=3).version == 3
    assert list(models.replace(policy=None)) == ["twist"]
    with pytest.raises(CompositionError, match=r"needs a model 'critic'(.|\n)*Models\(critic=...\)"):
        models["critic"]


def test_what_does_not_fit_is_named(registry: None) -> None:
    source = tiny.Given([tiny.demonstrations(2)])
    with pytest.raises(CompositionError, match="the forward pass for 'margin_R' needs column 'proposal_logp_R'"):
        Algorithm("margin", source, SquaredMargin(1.0))
    with pytest.raises(CompositionError, match="the loss needs column 'safety_score_B'"):
        Algorithm("two", source, TwoScores())
    with pytest.raises(CompositionError, match="two forward passes write the column 'value_R'"):
        register_forward(TokenValues("twist"))
    batch = Batch.of(tiny.demonstrations(2), range(2), 2)
    forward = Forward(Models(policy=tiny.policy()), batch)
    with pytest.raises(CompositionError, match=r"no forward pass writes 'logp_Q'(.|\n)*did you mean 'logp_R'"):
        forward["logp_Q"]
    with pytest.raises(CompositionError, match="reads entropy_R without declaring it"):
        forward["entropy_R"]
    assert torch.equal(forward.logp_R, forward["logp_R"])
