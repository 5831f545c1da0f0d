"""Checkpoints that survive `kill -9` and a full disk: written beside, flushed, then renamed. No pickle.

A checkpoint is a folder `step-00000120` with `weights.safetensors` (every trained model), `optimizer.safetensors`,
`rng.safetensors` and `state.json` (step, file offsets, states of sources and controllers). It exists whole or not at
all, and the one before is removed only after the new one stands.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiltyard.distributed import processes
from tiltyard.errors import CheckpointError

FORMAT = 1
KEEP = 2  # checkpoints that stay


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and kept buffers by `model.name`; tied parameters appear once."""
    tensors: dict[str, Tensor] = {}
    for key, module in modules.items():
        names = {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
        for name, tensor in module.state_dict().items():
            if name in names:
                tensors[f"{key}.{name}"] = tensor.detach().contiguous().cpu()
    return tensors


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v.detach().contiguous().cpu() for i, s in state.items() for k, v in s.items()}


def steps_saved(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, ascending."""
    return sorted(int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit())


def clean(folder: Path) -> None:
    """Removes what a kill left behind: half-written checkpoints and half-removed ones."""
    for pattern in (".unfinished-*", ".removed-*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _prune(folder: Path) -> None:
    """Takes the old ones away. What cannot be removed may stay: it is in nobody's way."""
    for old in steps_saved(folder)[:-KEEP]:
        with contextlib.suppress(OSError):
            _remove(folder / f"step-{old:08d}")


def _remove(path: Path) -> None:
    """Takes a checkpoint away in one move, so that a kill never leaves half of one under its name."""
    gone = path.with_name(f".removed-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def save(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> Path:
    """Writes `folder/step-XXXXXXXX` atomically and keeps the newest `KEEP`.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was there before still stands.
    """
    final = folder / f"step-{step:08d}"
    unfinished = folder / f".unfinished-{step:08d}"
    try:
        clean(folder)
        unfinished.mkdir(parents=True)
        save_file(_weights(modules), unfinished / "weights.safetensors")
        save_file(_optimizer_tensors(optimizer), unfinished / "optimizer.safetensors")
        save_file({"torch": torch.random.get_rng_state()}, unfinished / "rng.safetensors")
        (unfinished / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}))
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
            fix=(f"the checkpoint of step {saved[-1]} stands; " if saved else "")
            + "free some disk space and run the same command again: it resumes",
        ) from error
    _prune(folder)
    return final


def load(folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Restores the newest checkpoint in place and returns its state, or None if there is none; cleans up after kills.

    Raises:
        CheckpointError: it belongs to another model or an incompatible version.
    """
    if processes.is_main():
        clean(folder)
        _prune(folder)  # a kill may have come between the newest checkpoint and this
    saved = steps_saved(folder)
    if not saved:
        return None
    path = folder / f"step-{saved[-1]:08d}"
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        weights = load_file(path / "weights.safetensors")
        moments = load_file(path / "optimizer.safetensors")
        rng = load_file(path / "rng.safetensors")["torch"]
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            "the checkpoint cannot be read",
            where=str(path),
            got=str(error),
            fix="remove this folder" + (f": the checkpoint of step {saved[-2]} stands" if len(saved) > 1 else ""),
        ) from error
    if state.get("format") != FORMAT:
        raise CheckpointError("the checkpoint has another format", where=str(path), got=state.get("format"))
    own = _weights(modules)
    if own.keys() != weights.keys() or any(own[k].shape != weights[k].shape for k in own):
        odd = next((k for k in sorted(own.keys() ^ weights.keys())), None) or next(
            k for k in own if own[k].shape != weights[k].shape
        )
        raise CheckpointError(
            "the checkpoint belongs to another model", where=str(path), got=odd, fix="remove the stage's folder"
        )
    for key, module in modules.items():
        part = {n[len(key) + 1 :]: t for n, t in weights.items() if n.startswith(f"{key}.")}
        module.load_state_dict(part, strict=False)
    restored: dict[int, dict[str, Tensor]] = {}
    for name, tensor in moments.items():
        index, entry = name.split(".", 1)
        restored.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({"state": restored, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.random.set_rng_state(rng)
    return state
