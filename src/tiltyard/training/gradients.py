"""The gradient of one optimiser step: accumulated over micro-batches, processes and auxiliary losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from tiltyard import allocator
from tiltyard.batch.batch import Batch, Metrics, summed
from tiltyard.batch.passes import same_passes
from tiltyard.distributed import processes
from tiltyard.distributed.parts import in_pass
from tiltyard.distributed.strategy import Strategy
from tiltyard.profiler import add_count, record
from tiltyard.training.algorithm import AuxLoss, Forward, Loss, Mean, Models
from tiltyard.training.forward import roles_of


@dataclass
class StepMetrics:
    """(sum, count) of each metric of one outer step, and the packed tokens of its backward passes, on this process."""

    sums: Metrics = field(default_factory=dict)
    tokens: int = 0

    def add(self, metrics: Mapping[str, tuple[float, float]], prefix: str = "") -> None:
        """Adds sums and counts, each name with the prefix."""
        named = {prefix + name: value for name, value in metrics.items()} if prefix else metrics
        self.sums = summed((self.sums, named))

    def means(self) -> dict[str, float]:
        """Means over micro-batches and processes. The names are those of all processes."""
        if processes.world() > 1:
            self.sums = summed(processes.gather_objects(self.sums))
        return {name: value / count for name, (value, count) in self.sums.items() if count}


@dataclass(frozen=True)
class MinibatchLoss:
    """A loss over one minibatch, on all processes together: the sum over its items, and how many items count."""

    sum: float
    count: float

    @property
    def mean(self) -> float:
        return self.sum / max(self.count, 1)


@dataclass(frozen=True)
class GradientAccumulator:
    """Adds gradients to `parameters`, one micro-batch at a time.

    Items are counted over all micro-batches and processes before the first backward pass, so the gradient is that of
    the mean over the whole minibatch, however it is cut.
    """

    models: Models
    parameters: Sequence[nn.Parameter]
    metrics: StepMetrics
    strategy: Strategy

    def backward(
        self,
        batch: Batch,
        loss: Loss,
        reduce: Mean,
        *,
        temperature: float = 1.0,
        weight: float = 1.0,
        prefix: str = "",
        first_pass: Callable[[Forward], Metrics] | None = None,
    ) -> MinibatchLoss:
        """Adds `weight` times the gradient of the mean loss over all processes.

        Args:
            prefix: of the names of the loss's metrics.
            first_pass: metrics that are taken from each forward pass; also where no item counts.
        """
        parts = batch.micro() if batch.groups else []
        here = sum(reduce.count(loss.item, part) for part in parts)
        count = float(processes.sum_all(torch.tensor(here, dtype=torch.float64)))
        loss_sum = 0.0
        modules = [self.models[role].module for role in roles_of(loss.needs)]
        passes = [(part, True) for part in parts]
        if self.strategy.same_passes:
            passes = same_passes(parts, self.models.device)
        for part, counts in passes if count else []:
            found: list[Metrics] = []
            run = partial(self._total, part, loss, reduce, temperature, first_pass, found)
            with record("forward"):
                total = self.strategy.run(modules, run)
            allocator.note_use()
            with record("backward"):
                if total.requires_grad:
                    (total * (weight / count if counts else 0.0)).backward()
            allocator.give_back()
            if counts:
                loss_sum += float(total.detach())
                self.metrics.tokens += part.forest.T
                add_count("tokens", part.forest.T)
                self.metrics.add(found[0], prefix)
                for measured in found[1:]:
                    self.metrics.add(measured)
        if count:
            with record("backward"):
                self.strategy.reduce_gradients(self.parameters)
        elif first_pass is not None:
            for part, counts in passes:
                forward = Forward(self.models, part, temperature, loss.needs)
                measured = in_pass(partial(first_pass, forward), *modules)
                self.metrics.add(measured if counts else {})
        return MinibatchLoss(float(processes.sum_all(torch.tensor(loss_sum, dtype=torch.float64))), count)

    def _total(
        self,
        part: Batch,
        loss: Loss,
        reduce: Mean,
        temperature: float,
        first_pass: Callable[[Forward], Metrics] | None,
        found: list[Metrics],
    ) -> Tensor:
        """The sum of a micro-batch's losses; adds the loss's metrics to `found`, then those of `first_pass`."""
        forward = Forward(self.models, part, temperature, loss.needs)
        per_item, metrics = loss(forward, part)
        total = self.strategy.anchor(reduce.sum(per_item, part), forward.columns.values())
        found.append(metrics)
        if first_pass is not None:
            found.append(first_pass(forward))
        return total

    def backward_aux(self, losses: Sequence[AuxLoss], update: int, budget: int) -> None:
        """Adds the gradients of auxiliary losses to that of the main loss.

        Logs each one's loss, and the norm of its weighted gradient over that of the main loss.

        Args:
            update: number of the optimiser step, which the auxiliary sources draw for.
            budget: packed tokens of a micro-batch.
        """
        main_norm = self.strategy.gradient_norm(self.parameters)
        for aux in losses:
            before = [p.grad for p in self.parameters]
            for p in self.parameters:
                p.grad = None
            draw = aux.source(self.models, update)
            batch = Batch.of(draw.groups, draw.index, draw.total, self.models.device, budget)
            loss = self.backward(batch, aux.loss, aux.reduce, weight=aux.weight, prefix=f"{aux.name}_")
            norm = self.strategy.gradient_norm(self.parameters)
            for p, grad in zip(self.parameters, before, strict=True):
                if grad is not None:
                    p.grad = grad if p.grad is None else p.grad.add_(grad)
            if processes.is_main() and loss.count:
                self.metrics.add({f"{aux.name}_loss": (loss.sum, loss.count)})
                if main_norm > 0:
                    self.metrics.add({f"{aux.name}_grad_ratio": (norm / main_norm, 1.0)})
