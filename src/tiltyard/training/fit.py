"""`fit`: the only training loop. Sources vary, methods vary, this does not.

A step: draw groups, run the prepare steps, then for each epoch and minibatch one optimiser step made of micro-batches.
Counts are added up over micro-batches and processes BEFORE the backward pass, so a loss never depends on how a batch
was cut. The gradient is checked before every optimiser step; a step that is not finite is not taken.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tiltyard.batch.batch import Batch, Metrics, summed
from tiltyard.distributed import checkpoint, processes
from tiltyard.errors import CheckpointError, ConfigError, NonFiniteError
from tiltyard.models.load import set_dropout
from tiltyard.profiler import STEP, span, tally
from tiltyard.runs.groups import group_to_dict
from tiltyard.runs.journal import JsonlFile
from tiltyard.training.algorithm import Algorithm, AuxLoss, Forward, Loss, Mean, Models, device_of
from tiltyard.training.log import Sink, finite
from tiltyard.training.source import generator
from tiltyard.types import MICRO_TOKENS

ITEMS = {"R": "tokens", "B": "responses", "G": "groups"}  # what a loss is averaged over: counted each update
Evaluation = Callable[[Models, int], dict[str, float]]


@dataclass
class Run:
    """How long, how fast, where to.

    Args:
        steps: outer steps. lr: peak learning rate, or one a model (`{"policy": 1e-5, "value": 1e-4}`).
        schedule, final_lr, warmup: see `TrainSettings`.
        tokens_per_microbatch: packed tokens a forward pass may hold.
        dropout: of every dropout layer of the trained models; 0 is off, `model` keeps what the architecture says. Off
            by default: policy, reference and value must agree at step 0.
        folder: where metrics.jsonl, groups.jsonl and checkpoints go; None keeps nothing.
        save_every: steps between checkpoints (0: at the end only). keep_groups: write sampled groups to groups.jsonl.
        evaluate, eval_every: held-out measurements, merged into the metrics of that step.
        sinks: besides the file.
    """

    steps: int
    lr: float | Mapping[str, float] = 1e-4
    schedule: str = "constant"
    final_lr: float = 0.1
    warmup: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    tokens_per_microbatch: int = MICRO_TOKENS
    dropout: float | Literal["model"] = 0.0
    seed: int = 0
    folder: Path | None = None
    save_every: int = 0
    keep_groups: bool = False
    evaluate: Evaluation | None = None
    eval_every: int = 0
    sinks: Sequence[Sink] = field(default_factory=tuple)


def fit(algorithm: Algorithm, models: Models, run: Run, optimizer: torch.optim.Optimizer | None = None) -> Models:
    """Trains `algorithm.trains` of `models` in place and returns them; resumes if the folder holds a checkpoint.

    Raises:
        NonFiniteError: a loss or gradient was NaN or infinite; the groups are saved, the step was not taken.
        ConfigError: nothing to train, or no steps to do it in.
        CheckpointError: a checkpoint could not be written or belongs to another model.
    """
    return _Loop(algorithm, models, run, optimizer).run_all()


def lr_factor(step: int, run: Run) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then the schedule down to `final_lr`."""
    warmup = run.warmup * run.steps if run.warmup < 1 else run.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if run.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1.0, run.steps - warmup))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if run.schedule == "cosine" else 1 - done
    return run.final_lr + (1 - run.final_lr) * shape


def make_optimizer(models: Models, trains: Sequence[str], run: Run) -> torch.optim.AdamW:
    """AdamW over the trained models' parameters; weight decay on matrices only, never on norms and biases."""
    groups: list[dict[str, Any]] = []
    for name in trains:
        lr = run.lr if isinstance(run.lr, (int, float)) else run.lr.get(name)
        if lr is None:
            raise ConfigError(f"no learning rate is given for the model '{name}'", where="lr", got=run.lr)
        parameters = models.get(name).parameters()
        for decay, chosen in (
            (run.weight_decay, [p for p in parameters if p.ndim >= 2]),
            (0.0, [p for p in parameters if p.ndim < 2]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": lr, "peak": lr, "weight_decay": decay})
    if not groups:
        raise ConfigError(
            "nothing to train: every parameter is frozen", where="freeze_layers", fix="freeze fewer layers"
        )
    return torch.optim.AdamW(groups, betas=run.betas, eps=run.eps, fused=True)


def _norm(grads: Sequence[torch.Tensor | None]) -> float:
    return float(nn.utils.get_total_norm([g for g in grads if g is not None]))


class _Loop:
    def __init__(self, algorithm: Algorithm, models: Models, run: Run, optimizer: torch.optim.Optimizer | None):
        self.algorithm, self.models, self.run = algorithm, models, run
        self.modules: dict[str, nn.Module] = {name: models.get(name).module for name in algorithm.trains}
        self.kept: dict[str, nn.Module] = {
            n: models.get(n).trainable for n in (*algorithm.trains, *algorithm.mutable_models)
        }
        self.parameters = [p for name in algorithm.trains for p in models.get(name).parameters()]
        self.optimizer = optimizer or make_optimizer(models, algorithm.trains, run)
        for group in self.optimizer.param_groups:
            group.setdefault("peak", group["lr"])
        for module in self.modules.values():
            set_dropout(module, run.dropout)
            module.eval()
        self.metrics: Metrics = {}
        self.tokens = 0
        self.files: dict[str, JsonlFile] = {}
        if run.steps < 1:
            raise ConfigError("there are no steps to train", where="steps", got=run.steps, expected="at least 1")
        if run.folder is not None and processes.is_main():
            names = ["metrics", "groups"] if run.keep_groups else ["metrics"]
            self.files = {name: JsonlFile(run.folder / f"{name}.jsonl") for name in names}

    def run_all(self) -> Models:
        try:
            for step in range(self._resume(), self.run.steps):
                with torch.random.fork_rng(self._devices()):
                    # dropout draws from streams of the step alone, so that a resumed run draws what it would have
                    self._seed(generator(self.run.seed, 4, step, processes.rank()).initial_seed())
                    with span(STEP):
                        self._one(step)
        finally:
            for file in self.files.values():
                file.close()
        for module in self.modules.values():
            module.eval()
        return self.models

    def _devices(self) -> list[int]:
        device = device_of(self.models)
        return [device.index or 0] if device.type == "cuda" else []

    def _seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` writes down the stack for every other device
        if self._devices():
            torch.cuda.manual_seed_all(seed)

    def _one(self, step: int) -> None:
        began = time.perf_counter()
        self.metrics, self.tokens = {}, 0
        batch = self._prepared(step)
        scale = self.algorithm.lr_scale(step) if self.algorithm.lr_scale else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor(step, self.run) * scale
        if step and self.algorithm.reset_optimizer_every and step % self.algorithm.reset_optimizer_every == 0:
            self.optimizer.state.clear()
        sampled = time.perf_counter() - began
        self._mode(training=True)
        for epoch in range(self.algorithm.epochs):
            for place, part in enumerate(self._minibatches(batch, step, epoch)):
                self._update(part, step, epoch * self.algorithm.minibatches + place)
        self.models.version += 1
        for after in self.algorithm.after:
            self._add(after(self.models, batch, step))
        self._report(batch, step, time.perf_counter() - began, sampled)
        last = step + 1 == self.run.steps
        if self.run.folder is not None and (last or (self.run.save_every and (step + 1) % self.run.save_every == 0)):
            with span("save"):
                self._save(step + 1)

    def _prepared(self, step: int) -> Batch:
        with span("overhead/data"):
            draw = self.algorithm.source(self.models, step)
            self._add(draw.metrics)
            batch = Batch.of(
                draw.groups, draw.index, draw.total, device_of(self.models), self.run.tokens_per_microbatch
            )
        if self.algorithm.prepare:
            self._mode(training=False)
        for prepare in self.algorithm.prepare:
            with span(f"score/{type(prepare).__name__}"):
                batch = prepare(self.models, batch)
        self._add(batch.metrics)
        return batch

    def _mode(self, *, training: bool) -> None:
        for module in self.modules.values():
            if module.training != training:  # it goes through all parts: half a millisecond for a small model
                module.train(training)

    def _minibatches(self, batch: Batch, step: int, epoch: int) -> list[Batch]:
        """The step's groups in a fresh order, cut into minibatches; every process cuts the same whole list.

        No group is left out: where they do not divide evenly, some minibatches have one more.
        """
        parts = self.algorithm.minibatches
        if parts == 1:
            return [batch]
        order = torch.randperm(batch.total, generator=generator(self.run.seed, 3, step, epoch)).tolist()
        place = {index: g for g, index in enumerate(batch.index)}
        bounds = [round(batch.total * i / parts) for i in range(parts + 1)]
        chosen = [[place[i] for i in order[a:b] if i in place] for a, b in itertools.pairwise(bounds)]
        return [batch.select(part) for part in chosen]

    def _update(self, minibatch: Batch, step: int, place: int) -> None:
        """One optimiser step; `place` is its number within the outer step."""
        algorithm = self.algorithm
        self.optimizer.zero_grad(set_to_none=True)  # whatever a caller's own backward pass may have left
        everyone, count = self._backward(minibatch, algorithm.loss, algorithm.reduce, algorithm.temperature, place)
        alone = _norm([p.grad for p in self.parameters]) if algorithm.aux_losses else 0.0
        for side in algorithm.aux_losses:
            self._side(side, step * algorithm.epochs * algorithm.minibatches + place, alone)
        if count == 0 and not algorithm.aux_losses:
            return  # nothing in this minibatch says anything (all groups tied)
        with span("optimiser"):
            norm = nn.utils.clip_grad_norm_(self.parameters, self.run.max_grad_norm)
            if not (math.isfinite(everyone) and math.isfinite(float(norm))):
                self._not_finite(minibatch, step, everyone / max(count, 1), float(norm))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if processes.is_main():
            self._add({"loss": (everyone, count), "grad_norm": (float(norm), 1.0)})
            self._add({ITEMS[algorithm.loss.item]: (count, 1.0)})

    def _backward(
        self,
        batch: Batch,
        loss: Loss,
        reduce: Mean,
        temperature: float,
        place: int,
        weight: float = 1.0,
        prefix: str = "",
    ) -> tuple[float, float]:
        """Adds `weight` times the gradient of the mean loss over all processes; (sum of the loss, count).

        `place`: number of the update within the outer step.
        """
        parts = batch.micro() if batch.groups else []
        own = sum(reduce.count(loss.item, part) for part in parts)
        count = float(processes.sum_all(torch.tensor(own, dtype=torch.float64)))
        loss_sum = 0.0
        for part in parts if count else []:
            forward = self._forward(loss, part, temperature)
            with span("forward"):
                per_item, metrics = loss(forward, part)
                total = reduce.sum(per_item, part)
            if place == 0:  # the weights are still those that sampled
                self._show_gap(forward)
            with span("backward"):
                if total.requires_grad:
                    (total * (weight / count)).backward()
            loss_sum += float(total.detach())
            self.tokens += part.forest.T
            tally("tokens", part.forest.T)
            self._add({prefix + name: value for name, value in metrics.items()})
        if count:
            with span("backward"):
                processes.sum_gradients(self.parameters)
        elif place == 0:
            with torch.no_grad():
                for part in parts:
                    self._show_gap(self._forward(loss, part, temperature))
        return float(processes.sum_all(torch.tensor(loss_sum, dtype=torch.float64))), count

    def _forward(self, loss: Loss, part: Batch, temperature: float) -> Forward:
        return Forward(self.models, part, temperature, "entropy_R" in loss.needs, getattr(loss, "negatives", 0))

    def _show_gap(self, forward: Forward) -> None:
        """How far the trainer's log-probs are from those that were taken from the sampler, if any were."""
        if "sampler_logp_R" in forward.batch.columns:
            gap_R = (forward.logp_R.detach() - forward.batch["sampler_logp_R"]).abs()
            self._add({"sampler_gap": (float(gap_R.sum()), float(gap_R.numel()))})

    def _side(self, side: AuxLoss, number: int, alone: float) -> None:
        """An auxiliary loss of the optimiser step with this number; its gradient is measured by itself, then added.

        `alone`: the norm of the method's own gradient, without any auxiliary loss.
        """
        own = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        draw = side.source(self.models, number)
        batch = Batch.of(draw.groups, draw.index, draw.total, device_of(self.models), self.run.tokens_per_microbatch)
        loss, count = self._backward(batch, side.loss, side.reduce, 1.0, -1, side.weight, f"{side.name}_")
        aside = _norm([p.grad for p in self.parameters])
        for p, before in zip(self.parameters, own, strict=True):
            if before is not None:
                p.grad = before if p.grad is None else p.grad.add_(before)
        if processes.is_main() and count:
            self._add({f"{side.name}_loss": (loss, count)})
            if alone > 0:
                self._add({f"{side.name}_grad_ratio": (aside / alone, 1.0)})

    def _not_finite(self, batch: Batch, step: int, loss: float, norm: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        saved = ""
        if self.run.folder is not None:
            path = self.run.folder / f"nonfinite-step-{step:08d}.rank{processes.rank()}.jsonl"
            file = JsonlFile(path)
            file.write([group_to_dict(g) for g in batch.groups])
            file.sync()
            file.close()
            saved = f"; the {len(batch.groups)} groups of the minibatch are in {path}"
        raise NonFiniteError(
            f"the loss or its gradient is not finite at step {step}; the optimiser step was not taken{saved}",
            where=self.algorithm.name,
            got=f"loss {loss}, gradient norm {norm}",
            expected="finite numbers",
            fix="lower lr, look at the saved groups, or use dtype=float32; the last checkpoint stands",
        )

    def _add(self, metrics: Mapping[str, tuple[float, float]]) -> None:
        self.metrics = summed((self.metrics, metrics))

    def _report(self, batch: Batch, step: int, seconds: float, sampled: float) -> None:
        means = self._means()
        tokens = float(processes.sum_all(torch.tensor(float(self.tokens), dtype=torch.float64)))
        means["lr"] = self.optimizer.param_groups[0]["lr"]
        last = step + 1 == self.run.steps
        if self.run.evaluate and (last or (self.run.eval_every and (step + 1) % self.run.eval_every == 0)):
            with span("evaluate"):
                means |= self.run.evaluate(self.models, step + 1)
        means["time/seconds"], means["time/prepare_seconds"] = seconds, sampled
        means["time/tokens_per_second"] = tokens / seconds
        if self.run.keep_groups:
            own = [(i, {"step": step + 1, **group_to_dict(g)}) for i, g in zip(batch.index, batch.groups, strict=True)]
            everyone = [pair for part in processes.gather_objects(own) for pair in part]
            if "groups" in self.files:
                self.files["groups"].write([row for _, row in sorted(everyone, key=lambda pair: pair[0])])
        if processes.is_main():
            if "metrics" in self.files:
                self.files["metrics"].write([{"step": step + 1, **finite(means)}])
            for sink in self.run.sinks:
                sink.log(step + 1, means)

    def _means(self) -> dict[str, float]:
        """Means over micro-batches and processes. Every process has the same names: they come from the same pieces."""
        if processes.world() > 1:
            self.metrics = summed(processes.gather_objects(self.metrics))
        return {name: value / count for name, (value, count) in self.metrics.items() if count}

    def _save(self, step: int) -> None:
        if processes.is_main() and self.run.folder is not None:
            for file in self.files.values():
                file.sync()
            state = {
                "offsets": {name: file.offset for name, file in self.files.items()},
                "version": self.models.version,
                "parts": {name: part.state_dict() for name, part in self.algorithm.stateful().items()},
            }
            checkpoint.save(self.run.folder / "checkpoints", step, self.kept, self.optimizer, state)
        processes.barrier()

    def _resume(self) -> int:
        if self.run.folder is None:
            return 0
        state = checkpoint.load(self.run.folder / "checkpoints", self.kept, self.optimizer)
        for name, file in self.files.items():
            file.truncate(state["offsets"].get(name, 0) if state else 0)
        if state is None:
            return 0
        if state["step"] > self.run.steps:
            raise CheckpointError(
                "the checkpoint is of a longer run",
                where=str(self.run.folder / "checkpoints"),
                got=f"step {state['step']}",
                expected=f"at most {self.run.steps}",
                fix="set steps higher, or remove the folder to start again",
            )
        self.models.version = state["version"]
        for name, part in self.algorithm.stateful().items():
            part.load_state_dict(state["parts"][name])
        return int(state["step"])
