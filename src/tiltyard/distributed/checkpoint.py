"""Checkpoints that survive `kill -9` and a full disk: written beside, flushed, then renamed. No pickle.

A checkpoint is a folder `step-00000120` with `weights.safetensors` (every trained model), `optimizer.safetensors`,
`rng.safetensors`, `state.json` (step, file offsets, states of sources and controllers) and `sha256.json` (digests of
the others, which are compared when they are read). Where parameters are spread over processes each writes its rows to
files of its own, and `parts.json` says which rows of which tensor are where (`part_files`). A checkpoint exists whole
or not at all: rank 0 gives the folder its name when all processes have written and flushed their files; an older one is
removed only when a newer one exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tiltyard.distributed import part_files, processes
from tiltyard.distributed.strategy import SavedState, Strategy, TrainingState
from tiltyard.errors import CheckpointError
from tiltyard.files import give_usual_mode

log = logging.getLogger(__name__)
FORMAT, BY_PARTS = 1, 2  # whole tensors; rows of them in a file of each process
SUMS, INDEX = "sha256.json", "parts.json"
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
    """Writes `folder/step-XXXXXXXX` atomically and removes all but the newest `KEEP`; every process calls it.

    Args:
        tensors: the rows of weights and moments that this process has (`Strategy.state`). state: JSON: file offsets,
            states of sources and controllers; rank 0's counts.

    Raises:
        CheckpointError: in every process, if one could not write: the checkpoints before are intact.
    """
    final = folder / f"step-{step:08d}"
    unfinished = folder / f".unfinished-{step:08d}"
    with _together(final, unfinished):
        if processes.is_main():
            clean(folder)
            unfinished.mkdir(parents=True)
    with _together(final, unfinished):
        own = {"weights": tensors.weights, "optimizer": tensors.moments} if _writes(tensors) else {}
        entries = {group: part_files.write(unfinished, group, rows, tensors.files) for group, rows in own.items()}
        names = [part_files.file_name(group, processes.rank(), tensors.files) for group in own]
        sums = {name: _digest(unfinished / name) for name in names}
        for name in names:
            _flush(unfinished / name)
    written = processes.gather_objects((entries, sums))
    with _together(final, unfinished):
        if processes.is_main():
            sums = {name: digest for _, part in written for name, digest in part.items()}
            index = {group: part_files.merged(part.get(group, {}) for part, _ in written) for group in entries}
            _finish(unfinished, step, {} if tensors.files == 1 else index, state, sums)
            if final.exists():
                _remove(final)
            os.rename(unfinished, final)
            _flush(folder)
    if processes.is_main():
        _prune(folder)
    return final


def _writes(tensors: TrainingState) -> bool:
    return tensors.files > 1 or processes.is_main()


def _finish(
    unfinished: Path, step: int, index: Mapping[str, Any], state: Mapping[str, Any], sums: dict[str, str]
) -> None:
    """Writes generator, state, index and the digests of all files; for rank 0."""
    save_file({"torch": torch.random.get_rng_state()}, unfinished / "rng.safetensors")
    version = BY_PARTS if index else FORMAT
    texts = {"state.json": json.dumps({"format": version, "step": step, **state})}
    if index:
        texts[INDEX] = json.dumps(index)
    for name, text in texts.items():
        (unfinished / name).write_text(text)
    sums |= {name: _digest(unfinished / name) for name in ("rng.safetensors", *texts)}
    (unfinished / SUMS).write_text(json.dumps(dict(sorted(sums.items()))))
    give_usual_mode(unfinished)
    for name in ("rng.safetensors", *texts, SUMS):
        _flush(unfinished / name)
    _flush(unfinished)


@contextlib.contextmanager
def _together(final: Path, unfinished: Path) -> Iterator[None]:
    """Context: an error of one process while it writes is an error of all, so that none waits for it.

    Raises:
        CheckpointError: see `save`.
    """
    caught: Exception | None = None
    try:
        yield
    except (OSError, SafetensorError) as error:
        caught = error
    texts = processes.gather_objects("" if caught is None else str(caught) or type(caught).__name__)
    at = next((rank for rank, text in enumerate(texts) if text), None)
    if at is None:
        return
    if processes.is_main():
        shutil.rmtree(unfinished, ignore_errors=True)
    saved = steps_saved(final.parent)
    raise CheckpointError(
        f"the checkpoint of step {int(final.name[5:])} could not be written",
        where=str(final),
        got=texts[at] + (f" (process {at})" if at else ""),
        fix=(f"the checkpoint of step {saved[-1]} is intact; " if saved else "")
        + "free some disk space and run the same command again: it resumes",
    ) from caught


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path: Path) -> str:
    """Names the first file of a checkpoint whose bytes are not those that were written; "" if all are.

    Those of earlier versions have no digests. Every process reads its share of the files.
    """
    found: tuple[dict[str, str], str] = ({}, "")
    if processes.is_main() and (path / SUMS).exists():
        try:
            found = dict(json.loads((path / SUMS).read_text())), ""
        except (OSError, ValueError, TypeError) as error:
            found = {}, f"{SUMS} ({error})"
    sums, what = processes.gather_objects(found)[0]
    own = (_changed(path / name, digest) for _, (name, digest) in processes.shard(list(sums.items())))
    return what or next((text for text in processes.gather_objects(next(filter(None, own), "")) if text), "")


def _changed(path: Path, digest: str) -> str:
    try:
        found = _digest(path)
    except OSError as error:
        return f"{path.name} ({error.strerror})"
    return "" if found == digest else f"{path.name} (SHA-256 {found[:12]}..., written: {digest[:12]}...)"


def _newest(folder: Path) -> Path | None:
    """Finds the newest undamaged checkpoint; rank 0 sets damaged ones aside."""
    damaged: dict[int, str] = {}
    for step in reversed(processes.gather_objects(steps_saved(folder))[0]):
        path = folder / f"step-{step:08d}"
        what = _damage(path)
        if what:
            damaged[step] = what
            continue
        if processes.is_main():
            for bad, found in damaged.items():
                _set_aside(folder, bad, found, step)
        return path
    if damaged:
        step, what = max(damaged.items())
        raise CheckpointError(
            "the checkpoint is damaged and there is no undamaged one before it",
            where=str(folder / f"step-{step:08d}"),
            got=what,
            expected="the bytes that were written",
            fix="put the file back from a copy, or remove the stage's folder to start again; check the disk",
        )
    return None


def _set_aside(folder: Path, bad: int, what: str, step: int) -> None:
    aside = folder / f"damaged-step-{bad:08d}"
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder / f"step-{bad:08d}", aside)
    line = "the checkpoint of step %d is damaged: %s; going on from that of step %d (the other is now %s)"
    log.warning(line, bad, what, step, aside)


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
        if state.get("format") not in (FORMAT, BY_PARTS):
            raise CheckpointError("the checkpoint has another format", where=str(path), got=state.get("format"))
        index: dict[str, Any] = json.loads((path / INDEX).read_text()) if state["format"] == BY_PARTS else {}
        with (
            part_files.Reader(path, "weights", index.get("weights")) as weights,
            part_files.Reader(path, "optimizer", index.get("optimizer")) as moments,
        ):
            _restore(modules, optimizer, strategy, SavedState(weights, moments), path)
        rng = load_file(path / "rng.safetensors")["torch"]
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            "the checkpoint cannot be read",
            where=str(path),
            got=str(error),
            fix="remove this folder: an older checkpoint is used, or else the run starts again",
        ) from error
    torch.random.set_rng_state(rng)
    return state


def _restore(
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    saved: SavedState,
    path: Path,
) -> None:
    try:
        strategy.load_state(modules, optimizer, saved)
    except KeyError as error:
        raise CheckpointError(
            "the checkpoint belongs to another model",
            where=str(path),
            got=error.args[0],
            fix="remove the stage's folder",
        ) from error
