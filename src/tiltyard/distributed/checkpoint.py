"""Checkpoints that survive `kill -9` and a full disk: written beside, flushed, then renamed. No pickle.

A checkpoint is a folder `step-00000120` with `weights.safetensors` (every trained model), `optimizer.safetensors`,
`rng.safetensors`, `state.json` (step, file offsets, states of sources and controllers) and `sha256.json` (digests of
the others, which are compared when they are read). It exists whole or not at
all, and an older one is removed only when a newer one exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tiltyard.distributed import processes
from tiltyard.distributed.strategy import Strategy, TrainingState
from tiltyard.errors import CheckpointError
from tiltyard.files import give_usual_mode

log = logging.getLogger(__name__)
FORMAT = 1
SUMS = "sha256.json"
KEEP = 2  # checkpoints that are not removed


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def steps_saved(folder: Path) -> list[int]:
    """Returns the steps of the whole checkpoints in a folder, ascending."""
    return sorted(int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit())


def clean(folder: Path) -> None:
    """Removes checkpoints that a kill left half written or half removed."""
    for pattern in (".unfinished-*", ".removed-*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _prune(folder: Path) -> None:
    """Removes all but the newest checkpoints; one that cannot be removed does no harm."""
    for old in steps_saved(folder)[:-KEEP]:
        with contextlib.suppress(OSError):
            _remove(folder / f"step-{old:08d}")


def _remove(path: Path) -> None:
    """Removes a checkpoint by a rename first, so that a kill never leaves half of one under its name."""
    gone = path.with_name(f".removed-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def save(folder: Path, step: int, tensors: TrainingState, state: Mapping[str, Any]) -> Path:
    """Writes `folder/step-XXXXXXXX` atomically and removes all but the newest `KEEP`; for rank 0 alone.

    Args:
        tensors: weights and moments (`Strategy.state`). state: JSON: file offsets, states of sources and controllers.

    Raises:
        CheckpointError: the disk is full or cannot be written; the checkpoints before are intact.
    """
    final = folder / f"step-{step:08d}"
    unfinished = folder / f".unfinished-{step:08d}"
    try:
        clean(folder)
        unfinished.mkdir(parents=True)
        save_file(tensors.weights, unfinished / "weights.safetensors")
        save_file(tensors.moments, unfinished / "optimizer.safetensors")
        save_file({"torch": torch.random.get_rng_state()}, unfinished / "rng.safetensors")
        (unfinished / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}))
        sums = {part.name: _digest(part) for part in sorted(unfinished.iterdir())}
        (unfinished / SUMS).write_text(json.dumps(sums))
        give_usual_mode(unfinished)
        for part in unfinished.iterdir():
            _flush(part)
        _flush(unfinished)
        if final.exists():
            _remove(final)
        os.rename(unfinished, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        saved = steps_saved(folder)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written",
            where=str(final),
            got=str(error),
            fix=(f"the checkpoint of step {saved[-1]} is intact; " if saved else "")
            + "free some disk space and run the same command again: it resumes",
        ) from error
    _prune(folder)
    return final


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path: Path) -> str:
    """Names the first file of a checkpoint whose bytes are not those that were written; "" if all are.

    Those of earlier versions have no digests.
    """
    if not (path / SUMS).exists():
        return ""
    try:
        sums: dict[str, str] = dict(json.loads((path / SUMS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        return f"{SUMS} ({error})"
    for name, digest in sums.items():
        try:
            found = _digest(path / name)
        except OSError as error:
            return f"{name} ({error.strerror})"
        if found != digest:
            return f"{name} (SHA-256 {found[:12]}..., written: {digest[:12]}...)"
    return ""


def _newest(folder: Path) -> Path | None:
    """Finds the newest undamaged checkpoint; rank 0 reads them and sets damaged ones aside."""
    chosen: tuple[int | None, dict[int, str]] = (None, {})
    if processes.is_main():
        chosen = _undamaged(folder)
    newest, damaged = processes.gather_objects(chosen)[0]
    if newest is None and damaged:
        step, what = max(damaged.items())
        raise CheckpointError(
            "the checkpoint is damaged and there is no undamaged one before it",
            where=str(folder / f"step-{step:08d}"),
            got=what,
            expected="the bytes that were written",
            fix="put the file back from a copy, or remove the stage's folder to start again; check the disk",
        )
    return None if newest is None else folder / f"step-{newest:08d}"


def _undamaged(folder: Path) -> tuple[int | None, dict[int, str]]:
    damaged: dict[int, str] = {}
    for step in reversed(steps_saved(folder)):
        path = folder / f"step-{step:08d}"
        what = _damage(path)
        if not what:
            for bad, found in damaged.items():
                aside = folder / f"damaged-step-{bad:08d}"
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(folder / f"step-{bad:08d}", aside)
                line = "the checkpoint of step %d is damaged: %s; going on from that of step %d (the other is now %s)"
                log.warning(line, bad, found, step, aside)
            return step, damaged
        damaged[step] = what
    return None, damaged


def load(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, strategy: Strategy
) -> dict[str, Any] | None:
    """Restores the newest checkpoint in place and returns its state, or None if there is none; cleans up after kills.

    One whose bytes are not those that were written is set aside (`damaged-step-...`) with a warning that names the
    file, and the one before it is used.

    Raises:
        CheckpointError: it belongs to another model or an incompatible version, or no checkpoint is undamaged.
    """
    if processes.is_main():
        clean(folder)
        _prune(folder)  # a kill may have come between the newest checkpoint and this
    path = _newest(folder)
    if path is None:
        return None
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        tensors = TrainingState(load_file(path / "weights.safetensors"), load_file(path / "optimizer.safetensors"))
        rng = load_file(path / "rng.safetensors")["torch"]
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            "the checkpoint cannot be read",
            where=str(path),
            got=str(error),
            fix="remove this folder: an older checkpoint is used, or else the run starts again",
        ) from error
    if state.get("format") != FORMAT:
        raise CheckpointError("the checkpoint has another format", where=str(path), got=state.get("format"))
    try:
        strategy.load_state(modules, optimizer, tensors)
    except KeyError as error:
        raise CheckpointError(
            "the checkpoint belongs to another model",
            where=str(path),
            got=error.args[0],
            fix="remove the stage's folder",
        ) from error
    torch.random.set_rng_state(rng)
    return state
