"""`fit`: the only training loop. Sources and methods vary, the loop does not.

A step: draw groups, run the prepare steps, then for each epoch and minibatch one optimiser step made of micro-batches
(`training.gradients`). The gradient is checked before every optimiser step; a step that is not finite is not taken.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tiltyard.batch.batch import Batch
from tiltyard.distributed import processes
from tiltyard.distributed.parts import gathered
from tiltyard.distributed.strategy import Replicated, Strategy
from tiltyard.errors import ConfigError, TiltyardError
from tiltyard.models.load import set_dropout
from tiltyard.models.lora import blocks_of
from tiltyard.profiler import STEP, record
from tiltyard.stopping import Stopped, requested, resumable
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.gradients import GradientAccumulator, StepMetrics
from tiltyard.training.log import Sink
from tiltyard.training.optimizer import lr_factor, make_optimizer, set_lr
from tiltyard.training.records import Checkpoints, StepRecords, check_weights, non_finite
from tiltyard.training.run import Run
from tiltyard.training.source import Offline, generator

ITEMS = {"R": "tokens", "B": "responses", "G": "groups"}  # what a loss is averaged over: counted each update
Evaluation = Callable[[Models, int], dict[str, float]]


@dataclass(frozen=True)
class Output:
    """Output settings of a run: files, measurements and sinks.

    Args:
        folder: of metrics.jsonl, groups.jsonl and checkpoints; None keeps nothing.
        keep_groups: whether sampled groups are written to groups.jsonl.
        evaluate: held-out measurements, merged into the metrics of their step.
        sinks: receive the metrics of every step, besides the file.
    """

    folder: Path | None = None
    keep_groups: bool = False
    evaluate: Evaluation | None = None
    sinks: Sequence[Sink] = ()


def fit(
    algorithm: Algorithm,
    models: Models,
    run: Run,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    strategy: Strategy | None = None,
    folder: Path | None = None,
    keep_groups: bool = False,
    evaluate: Evaluation | None = None,
    sinks: Sequence[Sink] = (),
) -> Models:
    """Trains `algorithm.trains` of `models` in place and returns them; resumes if the folder holds a checkpoint.

    Args:
        run: how long, how fast and how; the settings of a training stage are one.
        optimizer: in place of AdamW with the settings of `run`.
        strategy: how parameters are spread over processes; the caller releases them. None: as `shard` of the run
            says, and every process has the whole models after the run.
        folder, keep_groups, evaluate, sinks: see `Output`.

    Raises:
        NonFiniteError: a loss or gradient was NaN or infinite (the groups are saved, the step was not taken), or the
            weights were when they were to be saved.
        ConfigError: nothing to train, or no steps to do it in.
        DataError: before the first step, a row of a file lacks what a prepare step needs.
        CheckpointError: a checkpoint could not be written or belongs to another model.
        TiltyardError: no step taught anything.
        Stopped: a signal asked for it (`stopping`); a checkpoint of the last step is written.
    """
    if isinstance(algorithm.source, Offline):
        algorithm.check_rows(algorithm.source.groups)
    output = Output(folder, keep_groups, evaluate, sinks)
    return _Loop(algorithm, models, run, optimizer, strategy, output).run_all()


def chosen_strategy(run: Run) -> Strategy:
    """The strategy that `shard` asks for; one process has all parameters in any case."""
    if not run.models.shard or processes.world() == 1:
        return Replicated()
    from tiltyard.distributed.sharded import Sharded

    return Sharded(half=run.models.shard_dtype == "bfloat16")


class _Loop:
    """One run of `fit`: its models and optimiser, and the metrics of the step that it is in."""

    def __init__(
        self,
        algorithm: Algorithm,
        models: Models,
        run: Run,
        optimizer: torch.optim.Optimizer | None,
        strategy: Strategy | None,
        output: Output,
    ):
        if run.steps < 1:
            raise ConfigError("there are no steps to train", where="steps", got=run.steps, expected="at least 1")
        self.algorithm, self.models, self.run, self.output = algorithm, models, run, output
        self.strategy = strategy or chosen_strategy(run)
        self.releases = strategy is None
        strategy = self.strategy
        if optimizer is not None and strategy.same_passes:
            raise ConfigError(
                "an optimiser that was made before the parameters were spread over processes holds others",
                where="optimizer",
                got=type(optimizer).__name__,
                fix="leave it out: AdamW is made of the settings of the run",
            )
        present = models.present().values()
        blocks = [block for m in present if m.calls_blocks_once for block in blocks_of(m.backbone)]
        strategy.place([m.module for m in present], blocks)
        self.modules: list[nn.Module] = [models[role].module for role in algorithm.trains]
        self.parameters = [p for role in algorithm.trains for p in models[role].parameters()]
        self.optimizer = optimizer or make_optimizer(models, algorithm.trains, run)
        for module in self.modules:
            set_dropout(module, run.models.dropout)
            module.eval()
        self.metrics = StepMetrics()
        self.unscored = 0.0  # share of the last step's responses that the scorer left out
        self.records = StepRecords(output.folder, output.keep_groups, output.sinks)
        self.checkpoints = Checkpoints(output.folder, algorithm, models, self.optimizer, self.records, strategy)

    def run_all(self) -> Models:
        try:
            with resumable():
                for step in range(self.checkpoints.resume(self.run.steps), self.run.steps):
                    with torch.random.fork_rng(self._cuda_devices()):
                        # dropout draws from a stream of the step alone, so that a resumed run draws the same
                        self._seed(generator(self.run.seed, 4, step, processes.rank()).initial_seed())
                        with record(STEP):
                            self._step(step)
        finally:
            self.records.close()
            if (sampler := getattr(self.algorithm.source, "sampler", None)) is not None:
                sampler.close()
        self._set_training(False)
        self._check_taught()
        if self.releases:
            self.strategy.release()
        return self.models

    def _check_taught(self) -> None:
        """Raises a TiltyardError if no optimiser step of the whole run had a gradient: the model is as it was."""
        if not self.checkpoints.taught:
            scorer = getattr(getattr(self.algorithm.source, "scorer", None), "name", "")
            silent = f"; '{scorer}' gave None, no score, for every response of the last" if self.unscored == 1 else ""
            raise TiltyardError(
                "no step taught anything: the model is what it was before",
                where=self.algorithm.name,
                got=f"{self.run.steps:,} steps, each without a loss or with a gradient of zero{silent}",
                expected="at least one step with a gradient",
                fix="look at the data and the scores: are all responses of a prompt scored alike, all pairs tied, all "
                "groups left out?",
            )

    def _cuda_devices(self) -> list[int]:
        device = self.models.device
        return [device.index or 0] if device.type == "cuda" else []

    def _seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` formats a stack trace for every other device
        if self._cuda_devices():
            torch.cuda.manual_seed_all(seed)

    def _step(self, step: int) -> None:
        """One outer step: groups, prepare steps, updates, hooks, records, and a checkpoint where one is due."""
        start = time.perf_counter()
        self.metrics = StepMetrics()
        batch = self._prepare(step)
        algorithm = self.algorithm
        set_lr(self.optimizer, lr_factor(step, self.run), algorithm.lr_scale(step) if algorithm.lr_scale else 1.0)
        if step and algorithm.reset_optimizer_every and step % algorithm.reset_optimizer_every == 0:
            self.optimizer.state.clear()
        prepared = time.perf_counter()
        self._set_training(True)
        for epoch in range(algorithm.epochs):
            for i, minibatch in enumerate(self._minibatches(batch, step, epoch)):
                self._update(minibatch, step, epoch * algorithm.minibatches + i)
        self.models.version += 1
        for hook in algorithm.after:
            self.metrics.add(hook(self.models, batch, step))
        due = self._due(step, self.run.run.save_every)
        if due:
            self._check_weights(step)
        self._record(batch, step, time.perf_counter() - start, prepared - start)
        stopped = self._stopped()
        if stopped and not due:
            self._check_weights(step)
        if self.output.folder is not None and (due or stopped):
            with record("save"):
                self.checkpoints.save(step + 1)
        if stopped and step + 1 < self.run.steps:
            raise Stopped(stopped)

    def _check_weights(self, step: int) -> None:
        check_weights(self.algorithm.name, {role: self.models[role].module for role in self.algorithm.trains}, step + 1)

    def _stopped(self) -> int:
        """Returns the number of a signal to stop after this step, equal on all processes; 0: none."""
        return int(processes.max_all(torch.tensor(requested()))) if processes.world() > 1 else requested()

    def _due(self, step: int, every: int) -> bool:
        """True after the last step, and after every `every` steps unless that is 0."""
        return step + 1 == self.run.steps or (every > 0 and (step + 1) % every == 0)

    def _prepare(self, step: int) -> Batch:
        """The step's groups with the columns of the prepare steps."""
        with record("overhead/data"):
            draw = self.algorithm.source(self.models, step)
            self.metrics.add(draw.metrics)
            left_out, responses = draw.metrics.get("unscored", (0.0, 1.0))
            self.unscored = left_out / max(responses, 1.0)
            batch = Batch.of(
                draw.groups, draw.index, draw.total, self.models.device, self.run.run.tokens_per_microbatch
            )
        if self.algorithm.prepare:
            self._set_training(False)
        for prepare in self.algorithm.prepare:
            with record(f"score/{type(prepare).__name__}"):
                batch = prepare(self.models, batch)
        self.metrics.add(batch.metrics)
        return batch

    def _set_training(self, training: bool) -> None:
        for module in self.modules:
            if module.training != training:  # a pass over all submodules: half a millisecond for a small model
                module.train(training)

    def _minibatches(self, batch: Batch, step: int, epoch: int) -> list[Batch]:
        """The step's groups in a fresh order, cut into minibatches; every process cuts the same whole list.

        No group is left out: where they do not divide evenly, some minibatches have one more.
        """
        count = self.algorithm.minibatches
        if count == 1:
            return [batch]
        order = torch.randperm(batch.total, generator=generator(self.run.seed, 3, step, epoch)).tolist()
        local = {index: g for g, index in enumerate(batch.index)}
        bounds = [round(batch.total * i / count) for i in range(count + 1)]
        chosen = [[local[i] for i in order[a:b] if i in local] for a, b in itertools.pairwise(bounds)]
        return [batch.select(groups) for groups in chosen]

    def _update(self, minibatch: Batch, step: int, number: int) -> None:
        """One optimiser step; `number` counts those of the outer step from 0."""
        algorithm, run = self.algorithm, self.run
        self.optimizer.zero_grad(set_to_none=True)  # gradients that a caller's own backward pass may have left
        gradient = GradientAccumulator(self.models, self.parameters, self.metrics, self.strategy)
        loss = gradient.backward(
            minibatch,
            algorithm.loss,
            algorithm.reduce,
            temperature=algorithm.temperature,
            first_pass=algorithm.first_pass if number == 0 else None,  # the weights are still those that sampled
        )
        update = (step * algorithm.epochs * algorithm.minibatches) + number
        gradient.backward_aux(algorithm.aux_losses, update, run.run.tokens_per_microbatch)
        if loss.count == 0 and not algorithm.aux_losses:
            return  # no item of this minibatch counts (all groups tied)
        with record("optimiser"):
            norm = self.strategy.clip_gradients(self.parameters, run.optimizer.max_grad_norm)
            if not (math.isfinite(loss.sum) and math.isfinite(norm)):
                self.optimizer.zero_grad(set_to_none=True)
                raise non_finite(self.output.folder, algorithm.name, minibatch, step, loss.mean, norm)
            self.optimizer.step()
            self.checkpoints.taught |= norm > 0
            self.optimizer.zero_grad(set_to_none=True)
        if processes.is_main():
            self.metrics.add({"loss": (loss.sum, loss.count), "grad_norm": (norm, 1.0)})
            self.metrics.add({ITEMS[algorithm.loss.item]: (loss.count, 1.0)})

    def _record(self, batch: Batch, step: int, seconds: float, prepare_seconds: float) -> None:
        """Writes the step's metrics and groups; evaluates where it is due."""
        means = self.metrics.means()
        tokens = float(processes.sum_all(torch.tensor(float(self.metrics.tokens), dtype=torch.float64)))
        means["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.output.evaluate and self._due(step, self.run.run.eval_every):
            with record("evaluate"):
                means |= self.output.evaluate(self.models, step + 1)
        means["time/seconds"], means["time/prepare_seconds"] = seconds, prepare_seconds
        means["time/tokens_per_second"] = tokens / seconds
        samples = self.run.run.sample_every and (step + 1) % self.run.run.sample_every == 0
        policy = self.models.policy
        with gathered(policy.module) if samples and policy else nullcontext():  # a sink on rank 0 alone prints samples
            self.records.write(step + 1, batch, means)
