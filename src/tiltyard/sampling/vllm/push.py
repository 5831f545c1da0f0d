"""Puts the trainer's weights into an engine by a folder, and proves that the engine computes with them.

The sequence: write, pause, load, name the version, drop the prefix cache, go on, and compare the log-probs of a fixed
sequence with the trainer's own forward pass (the probe). A checksum of the weights does not do: on CPUs vLLM can keep
an old packed copy of a tied output head beside new weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.distributed import processes
from tiltyard.distributed.parts import gathered, in_pass, spread
from tiltyard.errors import TiltyardError
from tiltyard.models.adapters import write_adapter
from tiltyard.models.language import LanguageModel
from tiltyard.models.lora import adapter_settings
from tiltyard.models.pretrained import write_errors
from tiltyard.models.saving import SaveDType, save_model, save_spread
from tiltyard.sampling.vllm.client import Client
from tiltyard.sampling.vllm.disk_engine import DONE
from tiltyard.types import Group, Prompt, Response

PROBE_TOKENS = 32
ADAPTER = "policy-adapter"  # the name under which an engine serves it
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices of --max-lora-rank


class StaleWeights(TiltyardError, RuntimeError):
    """The engine computes with other weights than the trainer's."""


def write_weights(
    model: LanguageModel, folder: Path, version: int, *, adapter: bool = False, dtype: SaveDType = "source"
) -> Path:
    """Writes a model, or its adapter alone, as a folder for engines, whole or not at all; the ones before are removed.

    Every process calls it for a model that is spread over them: each tensor is gathered by itself, and rank 0 writes.

    Args:
        dtype: width of a model's weights, see `save_model`: not narrower than the engine's.

    Returns `folder/version-N`, which holds a file `STABLE` once all else is on disk.
    """
    final, unfinished = folder / f"version-{version}", folder / f".unfinished-{version}"
    parted = bool(spread(model.module))
    main = processes.is_main() or not parted
    if main:
        for old in (*folder.glob(".unfinished-*"), *folder.glob("version-*")):
            shutil.rmtree(old, ignore_errors=True)
    with write_errors(unfinished):
        if main:
            unfinished.mkdir(parents=True)
        if not (parted and not adapter and save_spread(model, unfinished, dtype=dtype)):
            with gathered(model.module):
                if main:
                    write_adapter(model, unfinished) if adapter else save_model(model, unfinished, dtype=dtype)
        if main:
            (unfinished / DONE).write_text(f"{version}\n")
            os.rename(unfinished, final)
    return final


def push(clients: Sequence[Client], written: Path, label: str) -> None:
    """Makes the engines sample from the weights of a folder, one engine after the other.

    Args:
        written: by `write_weights`; the engines must be able to read it. label: the name of these weights.

    Raises:
        EngineError: an engine does not answer or refuses. It stays paused: its weights may be half new.
    """
    update = {"update_info": {"folder": str(written.resolve())}}
    for client in clients:
        client.post("/pause?mode=wait")
        client.post("/start_weight_update")
        client.post("/update_weights", update, limit=client.limits.load)
        client.post("/finish_weight_update", {"weight_version": label}, limit=client.limits.load)
        client.post("/reset_prefix_cache")
        client.post("/resume")


def push_adapter(clients: Sequence[Client], written: Path, label: str) -> None:
    """Makes engines that hold the backbone sample with the adapter of a folder; see `push`."""
    body = {"lora_name": ADAPTER, "lora_path": str(written.resolve()), "load_inplace": True}
    for client in clients:
        client.post("/pause?mode=wait")
        client.post("/v1/load_lora_adapter", body, limit=client.limits.load, plain=True)
        client.post("/update_weight_version", {"new_version": label})
        client.post("/reset_prefix_cache")
        client.post("/resume")
        client.model = ADAPTER


def adapter_rank(model: LanguageModel) -> int:
    """Returns the smallest rank of vLLM's that holds the policy's adapter; 0: it has none, or a larger one."""
    if model.binding is None or not model.binding.trainable:
        return 0
    rank = adapter_settings(model.backbone, model.binding.trainable)[0].rank
    return next((known for known in RANKS if known >= rank), 0)


def probe_ids(vocabulary: int) -> tuple[int, ...]:
    """A fixed sequence of tokens from all over the vocabulary."""
    return tuple((7 + 7919 * k) % vocabulary for k in range(PROBE_TOKENS))


class Probed(NamedTuple):
    """A fixed sequence of tokens, and the trainer's log-probs of all but its first, float64 on the CPU."""

    ids: tuple[int, ...]
    logp_R: Tensor


@torch.no_grad()
def probed(model: LanguageModel) -> Probed:
    """Computes the log-probs of the fixed sequence; every process calls it for a model that is spread over them."""
    ids = probe_ids(model.vocab_size)
    forest = pack([Group(Prompt(ids=ids[:1]), (Response(ids=ids[1:]),))], model.device)
    return Probed(ids, in_pass(lambda: model.logp_R(forest)[0], model.module).double().cpu())


def probe(client: Client, own: Probed, version: int, bound: float) -> float:
    """Returns the mean absolute difference of log-probs, in nats a token, of a fixed sequence in engine and trainer.

    Raises:
        StaleWeights: it is above `bound`.
    """
    theirs = torch.tensor(client.prompt_logps(own.ids), dtype=torch.float64)
    gap = float((own.logp_R - theirs).abs().mean())
    if not gap <= bound:
        raise StaleWeights(
            "the engine computes with other weights than the trainer's",
            where=f"{client.url}, version {version}",
            got=f"log-probs of a fixed sequence differ by {gap:.3g} nats a token",
            expected=f"at most {bound:g}",
            fix="the push did not reach all of the engine's weights, or the engine serves another model: restart the "
            "engine; the last checkpoint is intact, and the same command resumes",
        )
    return gap
