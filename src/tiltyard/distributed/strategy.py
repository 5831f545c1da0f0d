"""Strategies: trained parameters, their gradients and the optimiser's state over several processes.

Data are always split: each process has groups of its own (`processes.shard`). A strategy handles the parameters;
`fit` and the checkpoints use these methods alone, so that sharded parameters need no other training loop. Every
process calls every method, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tiltyard.distributed import processes


class TrainingState(NamedTuple):
    """Whole tensors on the CPU, whatever the strategy: a checkpoint of one strategy can be read by another.

    Attributes:
        weights: `model.parameter` -> tensor, buffers that are kept included; tied parameters appear once.
        moments: `index.entry` -> tensor of the optimiser, by the index of the parameter in its groups.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


class Strategy(Protocol):
    """The interface of training and checkpoints to parameters that are spread over processes.

    Attributes:
        same_passes: whether every process must run as many passes with gradient as the others.
    """

    @property
    def same_passes(self) -> bool: ...

    def place(self, modules: Sequence[nn.Module], blocks: Iterable[nn.Module]) -> None:
        """Spreads the parameters of a run's modules, before its optimiser is made. `blocks`: their layers."""

    def release(self) -> None:
        """Makes the modules ordinary ones again, after the last step."""

    def gathered(self) -> AbstractContextManager[None]:
        """Context: every process has all parameters, for passes without gradient."""

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
        """The state that a checkpoint holds; complete on rank 0, elsewhere it may be empty."""

    def load_state(
        self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: TrainingState
    ) -> None:
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

    @contextmanager
    def gathered(self) -> Iterator[None]:
        yield

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
        named, entries = trained_names(modules), trained_entries(optimizer)
        return TrainingState(*({name: _on_cpu(t) for name, t in tensors.items()} for tensors in (named, entries)))

    def load_state(
        self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: TrainingState
    ) -> None:
        weights = state.weights
        check_names(trained_names(modules), weights)
        for key, module in modules.items():
            part = {name[len(key) + 1 :]: t for name, t in weights.items() if name.startswith(f"{key}.")}
            module.load_state_dict(part, strict=False)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.moments.items():
            index, entry = name.split(".", 1)
            entries.setdefault(int(index), {})[entry] = tensor
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


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


def check_names(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raises a KeyError with the first name that only one of them has, or whose shapes differ."""
    for name in sorted(expected.keys() ^ weights.keys()):
        raise KeyError(name)
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            raise KeyError(name)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().cpu()
