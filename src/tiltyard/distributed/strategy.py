"""Strategies: trained parameters, their gradients and the optimiser's state over several processes.

Data are always split: each process has groups of its own (`processes.shard`). A strategy handles the parameters;
`fit` and the checkpoints use these methods alone, so that sharded parameters need no other training loop. Every
process calls every method, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tiltyard.distributed import processes
from tiltyard.distributed.parts import Rows, first_row, local, of_rows, rows_of


class TrainingState(NamedTuple):
    """One process's part of a checkpoint: its rows of each tensor.

    Attributes:
        weights: `model.parameter` -> rows, buffers that are kept included; tied parameters appear once.
        moments: `index.entry` -> rows of a tensor of the optimiser, by the index of the parameter in its groups.
        files: processes that write; 1: rank 0 alone has all rows.
    """

    weights: dict[str, Rows]
    moments: dict[str, Rows]
    files: int = 1


class SavedTensors(Protocol):
    """Tensors of a checkpoint, whatever the strategy that wrote it: rows are read as they are asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, key: str, first: int = 0, end: int | None = None) -> Tensor:
        """Rows `first` to `end` of a tensor; all of them by default."""


class SavedState(NamedTuple):
    """The tensors of a checkpoint; the names are those of `TrainingState`."""

    weights: SavedTensors
    moments: SavedTensors


class Strategy(Protocol):
    """The interface of training and checkpoints to parameters that are spread over processes.

    Attributes:
        same_passes: whether every process must run as many passes as the others.
    """

    @property
    def same_passes(self) -> bool: ...

    def place(self, modules: Sequence[nn.Module], blocks: Iterable[nn.Module]) -> None:
        """Spreads the parameters of a run's modules, before its optimiser is made. `blocks`: their layers."""

    def release(self) -> None:
        """Makes the modules ordinary ones again, after the last step."""

    def run(self, modules: Sequence[nn.Module], call: Callable[[], Tensor]) -> Tensor:
        """Calls a pass with gradient of these modules; its result is differentiated before the next pass."""

    def anchor(self, total: Tensor, columns: Iterable[Tensor]) -> Tensor:
        """The loss of a pass, as a function of the columns that it computed."""

    def reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Makes each gradient the sum over processes, after the backward passes of an optimiser step."""

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> float:
        """L2 norm of the gradient of all parameters together, after `reduce_gradients`."""

    def clip_gradients(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Scales gradients in place to a norm of at most `max_norm`; returns the norm before."""

    def state(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> TrainingState:
        """The rows that this process writes into a checkpoint."""

    def load_state(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: SavedState) -> None:
        """Restores a state in place.

        Raises:
            KeyError: the weights are of other modules; its argument is the first name or shape that differs.
        """


class Replicated:
    """Every process holds all parameters and takes the same optimiser steps; gradients are summed before each.

    One process alone is the case without anything to sum.
    """

    same_passes = False

    def place(self, modules: Sequence[nn.Module], blocks: Iterable[nn.Module]) -> None:
        """Nothing: every process has them all."""

    def release(self) -> None:
        """Nothing was changed."""

    def run(self, modules: Sequence[nn.Module], call: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002 - protocol
        return call()

    def anchor(self, total: Tensor, columns: Iterable[Tensor]) -> Tensor:  # noqa: ARG002 - protocol
        return total

    def reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """One message of all gradients. A process without a gradient of a parameter contributes zero."""
        if processes.world() == 1:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = processes.sum_all(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        done = 0
        for p in parameters:
            assert p.grad is not None
            p.grad.copy_(flat[done : done + p.numel()].view_as(p))
            done += p.numel()

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> float:
        return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def clip_gradients(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        return float(nn.utils.clip_grad_norm_(parameters, max_norm))

    def state(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> TrainingState:
        if not processes.is_main():
            return TrainingState({}, {})
        weights, moments = trained_names(modules), trained_entries(optimizer)
        return TrainingState(all_rows(weights), all_rows(moments))

    def load_state(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: SavedState) -> None:
        load_rows(modules, optimizer, state)


def all_rows(tensors: Mapping[str, Tensor]) -> dict[str, Rows]:
    return {name: rows_of(tensor) for name, tensor in tensors.items()}


def trained_names(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """`model.parameter` -> the tensor itself, buffers that are kept included; tied parameters appear once."""
    weights: dict[str, Tensor] = {}
    for key, module in modules.items():
        names = {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
        weights |= {f"{key}.{name}": tensor for name, tensor in module.state_dict().items() if name in names}
    return weights


def trained_entries(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`index.entry` -> tensor of the optimiser, by the index of the parameter in its groups."""
    entries = optimizer.state_dict()["state"].items()
    return {f"{i}.{key}": value for i, entry in entries for key, value in entry.items()}


@torch.no_grad()
def load_rows(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: SavedState) -> None:
    """Restores weights and moments in place, tensor by tensor; of those that are spread this process's rows alone.

    Raises:
        KeyError: see `Strategy.load_state`.
    """
    own = trained_names(modules)
    check_names(own, state.weights.shapes)
    for name, tensor in own.items():
        rows = local(tensor)
        rows.copy_(_read(state.weights, name, tensor))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for name, shape in state.moments.shapes.items():
        index, entry = name.split(".", 1)
        like = parameters[int(index)]
        if shape and shape == tuple(like.shape):
            found = of_rows(_read(state.moments, name, like).to(like.dtype, copy=True), like)
        else:
            found = state.moments.read(name).clone()
        entries.setdefault(int(index), {})[entry] = found
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _read(saved: SavedTensors, name: str, like: Tensor) -> Tensor:
    """The rows of a saved tensor that this process has of another one."""
    if not like.ndim:
        return saved.read(name)
    first = first_row(like)
    return saved.read(name, first, first + len(local(like)))


def check_names(expected: Mapping[str, Tensor], saved: Mapping[str, tuple[int, ...]]) -> None:
    """Raises a KeyError with the first name that only one of them has, or whose shapes differ."""
    for name in sorted(expected.keys() ^ saved.keys()):
        raise KeyError(name)
    for name, tensor in expected.items():
        if tuple(tensor.shape) != saved[name]:
            raise KeyError(name)
