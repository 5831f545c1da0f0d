"""What a method is: a composition of a source, prepare steps and a loss, checked when it is built.

Source  (models, step)  -> StepGroups              where groups come from
Prepare (models, batch) -> batch                   columns computed without gradient; declares .needs and .writes
Loss    (forward, batch) -> (per_item, metrics)    pure, unreduced; declares .needs and .item ("R", "B" or "G")
Reduce  batch -> count, per_item -> sum            counts are added up over micro-batches and processes first
After   (models, batch, step) -> metrics           what happens after the updates of a step
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from tiltyard.batch.batch import RECORDS, Batch, Metrics
from tiltyard.errors import CompositionError, ConfigError
from tiltyard.losses.kl import sum_per_response
from tiltyard.models.encoder import MaskedModel
from tiltyard.models.language import Backbone, LanguageModel, ScalarModel
from tiltyard.types import Group

Item = Literal["R", "B", "G"]  # what a loss has one value for: response tokens, responses or groups
FORWARD = ("logp_R", "logp_B", "negative_logp_R", "entropy_R", "value_R", "model_score_B", "cloze_logp_R")


class RefLogps(Protocol):
    """Log-probs of a reference, looked up."""

    def logp_R(self, groups: Sequence[Group]) -> Tensor: ...


@dataclass
class Models:
    """The models of one run. A method says which it trains; `version` counts the policy's updates.

    `ref_cache`: what the reference said of fixed data, computed before (`training.refcache`); it stands for `ref`.
    """

    policy: LanguageModel | None = None
    ref: LanguageModel | None = None
    reward: ScalarModel | None = None
    value: ScalarModel | None = None
    encoder: MaskedModel | None = None
    version: int = 0
    ref_cache: RefLogps | None = None

    def get(self, name: str) -> Any:
        model = getattr(self, name)
        if model is None:
            raise CompositionError(
                f"the method needs a model '{name}' and none was given", fix=f"pass Models({name}=...)"
            )
        return model

    def present(self) -> dict[str, Backbone]:
        pairs = ((n, getattr(self, n)) for n in ("policy", "ref", "reward", "value", "encoder"))
        return {name: model for name, model in pairs if model is not None}

    @property
    def in_memory(self) -> int:
        """How many models' weights there are; heads on one backbone are one model."""
        return len({id(model.backbone) for model in self.present().values()})

    def value_shares_policy_states(self) -> bool:
        """Whether the value model reads the policy's own states, so that one pass of the backbone serves both."""
        return self.policy is not None and self.value is not None and self.value.shares_hidden_states(self.policy)


class StepGroups(NamedTuple):
    """This process's groups of one step, their places in the whole step's list, its length, and what was measured."""

    groups: list[Group]
    index: list[int]  # type: ignore[assignment]  # the name is the field's; tuple.index is not missed
    total: int
    metrics: Mapping[str, tuple[float, float]] = {}


@runtime_checkable
class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Source(Protocol):
    """Where a step's groups come from: a file (`Offline`), or prompts, a sampler and a scorer (`Online`)."""

    def __call__(self, models: Models, step: int) -> StepGroups: ...


class Prepare(Protocol):
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def writes(self) -> tuple[str, ...]: ...

    def __call__(self, models: Models, batch: Batch) -> Batch: ...


class Forward:
    """What the models say about a micro-batch, with gradient, computed when the loss first asks for it."""

    def __init__(self, models: Models, batch: Batch, temperature: float, entropy: bool, negatives: int = 0):
        self.models, self.batch, self.temperature, self.entropy = models, batch, temperature, entropy
        self.negatives = negatives

    @cached_property
    def _states(self) -> dict[str, Tensor]:
        """The policy's states, where a value head reads them too: one pass, and one backward pass."""
        return (
            {"hidden_R": self.models.get("policy").hidden_R(self.batch.forest)}
            if self.models.value_shares_policy_states()
            else {}
        )

    @cached_property
    def _policy(self) -> tuple[Tensor, Tensor | None]:
        policy: LanguageModel = self.models.get("policy")
        forest, t = self.batch.forest, self.temperature
        if self.negatives:
            return policy.logp_and_negative_R(forest, self.negatives, self.batch["uniform_R"])
        return policy.logp_R(forest, temperature=t, entropy=self.entropy, **self._states)

    @property
    def logp_R(self) -> Tensor:
        return self._policy[0]

    @cached_property
    def logp_B(self) -> Tensor:
        """Log-probs of whole responses: the sum over their (loss) tokens, never an average."""
        return sum_per_response(self.logp_R, self.batch.forest.response_R, self.batch.forest.B)

    @property
    def negative_logp_R(self) -> Tensor:
        """Log-prob of a negative in each response token's place, sampled from the `loss.negatives` likeliest others."""
        negative_R = self._policy[1]
        if negative_R is None or not self.negatives:
            raise CompositionError(
                "the loss reads negative_logp_R without `negatives`", fix="give it `negatives`, an int"
            )
        return negative_R

    @property
    def entropy_R(self) -> Tensor:
        entropy_R = self._policy[1]
        if entropy_R is None:
            raise CompositionError("the loss reads entropy_R without declaring it", fix="add 'entropy_R' to its needs")
        return entropy_R

    @cached_property
    def value_R(self) -> Tensor:
        return self.models.get("value").value_R(self.batch.forest, **self._states)

    @cached_property
    def model_score_B(self) -> Tensor:
        return self.models.get("reward").score_B(self.batch.forest)

    @cached_property
    def cloze_logp_R(self) -> Tensor:
        """The encoder's log-probs of the tokens that a `Mask` chose; 0 at the others."""
        batch = self.batch
        return self.models.get("encoder").cloze_logp_R(batch.forest, batch["corrupt_R"], batch["masked_R"])


class Loss(Protocol):
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def item(self) -> Literal["R", "B", "G"]: ...

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]: ...


@dataclass(frozen=True)
class Mean:
    """Sum of items divided by the number of items of the whole minibatch: tokens (R), responses (B) or groups (G).

    `weight`: a column that says how much each item counts (0 leaves it out), e.g. groups without any pair.
    """

    weight: str | None = None

    def count(self, item: str, batch: Batch) -> float:
        if self.weight is not None:
            return float(batch[self.weight].sum())
        return float({"R": batch.forest.R, "B": batch.forest.B, "G": batch.forest.G}[item])

    def sum(self, per_item: Tensor, batch: Batch) -> Tensor:
        return (per_item * batch[self.weight]).sum() if self.weight is not None else per_item.sum()


@dataclass(frozen=True)
class AuxLoss:
    """A weighted auxiliary loss with data of its own: PPO-ptx's pretraining, SLiC-HF's targets, CLICK's LM loss.

    Every optimiser step draws a fresh batch of `source` and adds `weight` times the gradient of its mean loss. Logged:
    `NAME_loss` and `NAME_grad_ratio`, the norm of the weighted auxiliary gradient over that of the main loss.
    """

    name: str
    source: Source
    loss: Loss
    weight: float
    reduce: Mean = Mean()


@dataclass(frozen=True)
class Algorithm:
    """A method, composed. Building it checks that every column that is read has been written.

    Attributes:
        trains: names of the models that are updated, e.g. ("policy", "value").
        epochs, minibatches: passes over each step's groups, and optimiser steps a pass.
        aux_losses: weighted auxiliary losses on data of their own.
        mutable_models: models that hooks change besides the trained ones (a reference that is renewed); checkpoints
            hold them.
        reset_optimizer_every: steps after which the optimiser's moments are reset (a round from the base model); 0:
            never.
        lr_scale: a factor on the learning rate, by step (ReST's improve steps have falling rates).
        temperature: the law the policy is trained under (the one its answers were sampled from).
    """

    name: str
    source: Source
    loss: Loss
    trains: tuple[str, ...] = ("policy",)
    prepare: tuple[Prepare, ...] = ()
    reduce: Mean = Mean()
    epochs: int = 1
    minibatches: int = 1
    after: tuple[Callable[[Models, Batch, int], Metrics], ...] = ()
    aux_losses: tuple[AuxLoss, ...] = ()
    mutable_models: tuple[str, ...] = ()
    reset_optimizer_every: int = 0
    lr_scale: Callable[[int], float] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        known = {*FORWARD, *RECORDS}
        for step in self.prepare:
            self._check(type(step).__name__, step.needs, known)
            known |= set(step.writes)
        self._check("the loss", self.loss.needs, known)
        if self.reduce.weight is not None:
            self._check("the mean", (self.reduce.weight,), known)
        for aux in self.aux_losses:
            self._check(f"the auxiliary loss '{aux.name}'", aux.loss.needs, {*FORWARD, *RECORDS})
        for hook in self.after:
            self._check(type(hook).__name__, getattr(hook, "needs", ()), known)
        for key in ("epochs", "minibatches"):
            if getattr(self, key) < 1:
                raise ConfigError("a step needs at least one pass", where=f"{self.name}.{key}", got=getattr(self, key))

    @property
    def reads_ref(self) -> bool:
        """Whether some piece reads the reference; without one none has to be in memory."""
        wanted = any(getattr(part, "reads_ref", False) for part in (*self.prepare, *self.after, self.source))
        return wanted or "ref" in self.mutable_models

    def _check(self, who: str, needs: Sequence[str], known: set[str]) -> None:
        for column in needs:
            if column not in known:
                raise CompositionError(
                    f"{who} needs column '{column}' and no earlier step writes it",
                    where=self.name,
                    got=", ".join(sorted(known)),
                    fix=f"add a prepare step that writes '{column}'",
                )

    def stateful(self) -> Mapping[str, Stateful]:
        """Everything whose state a checkpoint must hold, by a stable name."""
        parts: dict[str, object] = {"source": self.source}
        parts |= {f"prepare.{i}": p for i, p in enumerate(self.prepare)}
        parts |= {f"after.{i}": a for i, a in enumerate(self.after)}
        parts |= {f"aux_losses.{aux.name}": aux.source for aux in self.aux_losses}
        return {name: part for name, part in parts.items() if isinstance(part, Stateful)}


def device_of(models: Models) -> torch.device:
    return next(iter(models.present().values())).device
