"""Files of a run: metrics and groups of each step, and the checkpoints that it resumes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from tiltyard.batch.batch import Batch
from tiltyard.distributed import checkpoint, processes
from tiltyard.distributed.strategy import Strategy
from tiltyard.errors import CheckpointError, NonFiniteError
from tiltyard.models.finite import non_finite_weight
from tiltyard.runs.groups import group_to_dict
from tiltyard.runs.journal import JsonlFile
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.log import Sink, finite
from tiltyard.training.token_rows import token_rows


class StepRecords:
    """The main process's files of a run, `metrics.jsonl` and on request `groups.jsonl` and `tokens.jsonl`; the sinks.

    Args:
        folder: where the files go; None writes none. keep_groups: whether the sampled groups are written.
    """

    def __init__(self, folder: Path | None, keep_groups: bool, sinks: Sequence[Sink]):
        self.keep_groups, self.sinks = keep_groups, sinks
        self.files: dict[str, JsonlFile] = {}
        if folder is not None and processes.is_main():
            names = ["metrics", "groups", "tokens"] if keep_groups else ["metrics"]
            self.files = {name: JsonlFile(folder / f"{name}.jsonl") for name in names}

    def write(self, step: int, batch: Batch, means: dict[str, float]) -> None:
        """Writes a step's groups in their order over all processes, and its metrics; `step` counts from 1."""
        if self.keep_groups:
            rows = {i: {"step": step, **group_to_dict(g)} for i, g in zip(batch.index, batch.groups, strict=True)}
            rows = {i: row for part in processes.gather_objects(rows) for i, row in part.items()}
            if "groups" in self.files:
                self.files["groups"].write([rows[i] for i in sorted(rows)])
                self.files["tokens"].write(token_rows(step, batch))
        if processes.is_main():
            if "metrics" in self.files:
                self.files["metrics"].write([{"step": step, **finite(means)}])
            for sink in self.sinks:
                sink.log(step, means)

    def offsets(self) -> dict[str, int]:
        """The files' lengths in bytes, flushed to the disk: what a checkpoint keeps."""
        for file in self.files.values():
            file.sync()
        return {name: file.offset for name, file in self.files.items()}

    def truncate(self, offsets: Mapping[str, int]) -> None:
        """Removes the lines after the checkpoint's; all lines of a file that the checkpoint has no offset for."""
        for name, file in self.files.items():
            file.truncate(offsets.get(name, 0))

    def close(self) -> None:
        for file in self.files.values():
            file.close()


class Checkpoints:
    """The checkpoints of a run: weights of the models that change, optimiser, file offsets, states of the parts.

    Args:
        folder: the run's; None keeps no checkpoints.
    """

    def __init__(
        self,
        folder: Path | None,
        algorithm: Algorithm,
        models: Models,
        optimizer: torch.optim.Optimizer,
        records: StepRecords,
        strategy: Strategy,
    ):
        self.folder = None if folder is None else folder / "checkpoints"
        self.algorithm, self.models, self.optimizer, self.records = algorithm, models, optimizer, records
        self.strategy = strategy
        changing = (*algorithm.trains, *algorithm.mutable_models)
        self.modules: dict[str, nn.Module] = {role: models[role].trainable for role in changing}
        self.taught = False  # whether some optimiser step of the run had a gradient

    def save(self, step: int) -> None:
        """Writes the checkpoint after `step` steps; all processes wait for it.

        Raises:
            CheckpointError: the disk is full or cannot be written; the one before remains.
        """
        if self.folder is None:
            return
        tensors = self.strategy.state(self.modules, self.optimizer)
        # on every process: a source may gather what each of them holds
        parts = {name: part.state_dict() for name, part in self.algorithm.stateful().items()}
        state = {
            "offsets": self.records.offsets(),
            "version": self.models.version,
            "taught": self.taught,
            "parts": parts,
        }
        checkpoint.save(self.folder, step, tensors, state)

    def resume(self, steps: int) -> int:
        """Restores the newest checkpoint in place; the number of steps that it has behind it (0: there is none).

        Raises:
            CheckpointError: it belongs to another model or to a run of more than `steps` steps.
        """
        if self.folder is None:
            return 0
        state = checkpoint.load(self.folder, self.modules, self.optimizer, self.strategy)
        self.records.truncate(state["offsets"] if state else {})
        if state is None:
            return 0
        if state["step"] > steps:
            raise CheckpointError(
                "the checkpoint is of a longer run",
                where=str(self.folder),
                got=f"step {state['step']}",
                expected=f"at most {steps}",
                fix="set steps higher, or remove the folder to start again",
            )
        self.models.version = state["version"]
        self.taught = state.get("taught", True)
        for name, part in self.algorithm.stateful().items():
            part.load_state_dict(state["parts"][name])
        return int(state["step"])


def check_weights(method: str, modules: Mapping[str, nn.Module], step: int) -> None:
    """Raises a NonFiniteError if a trained weight is NaN or infinite after `step` steps: nothing like it is saved."""
    if bad := non_finite_weight(modules):
        raise NonFiniteError(
            f"the weights are not finite after step {step}; they were not saved",
            where=method,
            got=bad,
            expected="finite numbers",
            fix="lower lr; the last checkpoint stands, remove it too if the loss rose before it",
        )


def non_finite(folder: Path | None, method: str, batch: Batch, step: int, loss: float, norm: float) -> NonFiniteError:
    """The error for a loss or gradient that is NaN or infinite; writes the minibatch's groups to the run's folder."""
    saved = ""
    if folder is not None:
        path = folder / f"nonfinite-step-{step:08d}.rank{processes.rank()}.jsonl"
        file = JsonlFile(path)
        file.write([group_to_dict(g) for g in batch.groups])
        file.sync()
        file.close()
        saved = f"; the {len(batch.groups)} groups of the minibatch are in {path}"
    return NonFiniteError(
        f"the loss or its gradient is not finite at step {step}; the optimiser step was not taken{saved}",
        where=method,
        got=f"loss {loss}, gradient norm {norm}",
        expected="finite numbers",
        fix="lower lr, look at the saved groups, or use dtype=float32; the last checkpoint stands",
    )
