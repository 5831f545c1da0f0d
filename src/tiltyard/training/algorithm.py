"""A method: a composition of a source, prepare steps and a loss, checked when it is built.

Source  (models, step)  -> StepGroups              where groups come from
Prepare (models, batch) -> batch                   columns computed without gradient; declares .needs and .writes
Loss    (forward, batch) -> (per_item, metrics)    pure, unreduced; declares .needs and .item ("R", "B" or "G")
Reduce  batch -> count, per_item -> sum            counts are added up over micro-batches and processes first
After   (models, batch, step) -> metrics           hooks that run after the updates of a step
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from tiltyard.batch.batch import RECORDS, Batch, Metrics
from tiltyard.errors import CompositionError, ConfigError
from tiltyard.training.forward import FORWARD_PASSES, Forward, ForwardPass, Need, column_names, register_forward
from tiltyard.training.models import Models, RefLogps
from tiltyard.types import Group

__all__ = [
    "Algorithm",
    "AuxLoss",
    "FirstPass",
    "Forward",
    "ForwardPass",
    "Item",
    "Loss",
    "Mean",
    "Models",
    "Need",
    "Prepare",
    "RefLogps",
    "RowCheck",
    "Source",
    "Stateful",
    "StepGroups",
    "register_forward",
]

Item = Literal["R", "B", "G"]  # what a loss has one value for: response tokens, responses or groups


class StepGroups(NamedTuple):
    """This process's groups of one step, their indices in the whole step's list, its length, and metrics."""

    groups: list[Group]
    index: list[int]  # type: ignore[assignment]  # hides tuple.index
    total: int
    metrics: Mapping[str, tuple[float, float]] = {}


@runtime_checkable
class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Source(Protocol):
    """The source of a step's groups: a file (`Offline`), or prompts, a sampler and a scorer (`Online`)."""

    def __call__(self, models: Models, step: int) -> StepGroups: ...


class Prepare(Protocol):
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def writes(self) -> tuple[str, ...]: ...

    def __call__(self, models: Models, batch: Batch) -> Batch: ...


@runtime_checkable
class FirstPass(Protocol):
    """A prepare step that also measures the step's first forward pass, whose weights are still those that sampled."""

    def first_pass(self, forward: Forward) -> Metrics: ...


@runtime_checkable
class RowCheck(Protocol):
    """A prepare step that needs something of each row: `check` raises a DataError for a group that lacks it."""

    def check(self, group: Group) -> None: ...


class Loss(Protocol):
    @property
    def needs(self) -> tuple[Need, ...]: ...
    @property
    def item(self) -> Item: ...

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]: ...


@dataclass(frozen=True)
class Mean:
    """Sum of items divided by the number of items of the whole minibatch: tokens (R), responses (B) or groups (G).

    `weight`: a column of weights, one an item (0 leaves it out), e.g. 0 for groups without any pair.
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
        temperature: of the policy's distribution in the loss (the one that the responses were sampled at).
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
        records = set(RECORDS)
        columns = set(records)
        for step in self.prepare:
            self._check(type(step).__name__, step.needs, columns)
            columns |= set(step.writes)
        self._check_loss("the loss", self.loss, columns)
        if self.reduce.weight is not None:
            self._check("the mean", (self.reduce.weight,), columns)
        for aux in self.aux_losses:
            self._check_loss(f"the auxiliary loss '{aux.name}'", aux.loss, records)
        for hook in self.after:
            self._check(type(hook).__name__, getattr(hook, "needs", ()), columns)
        for key in ("epochs", "minibatches"):
            if getattr(self, key) < 1:
                raise ConfigError("a step needs at least one pass", where=f"{self.name}.{key}", got=getattr(self, key))

    @property
    def reads_ref(self) -> bool:
        """True if some piece reads the reference; without one none has to be in memory."""
        pieces = (*self.prepare, *self.after, self.source)
        return any(getattr(piece, "reads_ref", False) for piece in pieces) or "ref" in self.mutable_models

    def _check_loss(self, name: str, loss: Loss, columns: set[str]) -> None:
        """Checks the loss's own needs, and those of the forward passes whose columns it reads."""
        steps = [need for need in loss.needs if not isinstance(need, str)]
        passes = FORWARD_PASSES | {column: step for step in steps for column in step.writes}
        self._check(name, column_names(loss.needs), columns | set(passes))
        for column in column_names(loss.needs):
            if column in passes:
                self._check(f"the forward pass for '{column}'", passes[column].needs, columns)

    def _check(self, name: str, needs: Iterable[str], columns: set[str]) -> None:
        for column in needs:
            if column not in columns:
                raise CompositionError(
                    f"{name} needs column '{column}' and no earlier step writes it",
                    where=self.name,
                    got=", ".join(sorted(columns)),
                    fix=f"add a prepare step that writes '{column}'",
                )

    def check_rows(self, groups: Iterable[Group]) -> None:
        """Checks before the first step that every group of a file has what the prepare steps need of it.

        Raises:
            DataError: one lacks it; the error names its row.
        """
        steps = [step for step in self.prepare if isinstance(step, RowCheck)]
        for group in groups if steps else ():
            for step in steps:
                step.check(group)

    def first_pass(self, forward: Forward) -> Metrics:
        """Metrics that prepare steps take from the step's first forward pass."""
        metrics: Metrics = {}
        for step in self.prepare:
            if isinstance(step, FirstPass):
                metrics |= step.first_pass(forward)
        return metrics

    def stateful(self) -> Mapping[str, Stateful]:
        """The parts whose state a checkpoint holds, by a stable name."""
        parts: dict[str, object] = {"source": self.source}
        parts |= {f"prepare.{i}": p for i, p in enumerate(self.prepare)}
        parts |= {f"after.{i}": a for i, a in enumerate(self.after)}
        parts |= {f"aux_losses.{aux.name}": aux.source for aux in self.aux_losses}
        return {name: part for name, part in parts.items() if isinstance(part, Stateful)}
