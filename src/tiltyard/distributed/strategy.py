"""Strategies: trained parameters, their gradients and the optimiser's state over several processes.

Data are always split: each process has groups of its own (`processes.shard`). A strategy handles the parameters;
`fit` and the checkpoints use these methods alone, so that sharded parameters need no other training loop. Every
process calls every method, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """The interface of training and checkpoints to parameters that are spread over processes."""

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
        entries = optimizer.state_dict()["state"].items()
        moments = {f"{i}.{key}": _on_cpu(value) for i, entry in entries for key, value in entry.items()}
        return TrainingState(_weights(modules), moments)

    def load_state(
        self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: TrainingState
    ) -> None:
        expected, weights = _weights(modules), state.weights
        for name in sorted(expected.keys() ^ weights.keys()):
            raise KeyError(name)
        for name, tensor in expected.items():
            if tensor.shape != weights[name].shape:
                raise KeyError(name)
        for key, module in modules.items():
            part = {name[len(key) + 1 :]: t for name, t in weights.items() if name.startswith(f"{key}.")}
            module.load_state_dict(part, strict=False)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.moments.items():
            index, entry = name.split(".", 1)
            entries.setdefault(int(index), {})[entry] = tensor
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for key, module in modules.items():
        names = {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
        for name, tensor in module.state_dict().items():
            if name in names:
                weights[f"{key}.{name}"] = _on_cpu(tensor)
    return weights


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().cpu()
