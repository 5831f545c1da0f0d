"""Runs under torchrun: trains on responses of engines that run elsewhere, and leaves its parameters.

`python -m tests.sampling.ranks FOLDER URL...`
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file
from tests.training import tiny

from tiltyard.distributed import processes
from tiltyard.methods import rloo
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings
from tiltyard.sampling.vllm import VllmSampler, push
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.source import Online

from . import stubs


def save(model: LanguageModel, folder: Path, **_: object) -> None:
    """These models have no tokenizer that could be saved."""
    save_file(dict(model.module.state_dict()), folder / "model.safetensors")


def main(folder: Path, *urls: str) -> None:
    processes.start()
    push.save_model = save  # type: ignore[assignment]
    models = Models(policy=stubs.model("llama", "float64"))
    rule = FunctionScorer(lambda prompt, response: float(sum(response.ids) % 5))
    sampler = VllmSampler(folder / "vllm", urls=urls, bound=1e-6)
    source = Online(stubs.prompts(5, 2, 9), sampler, rule, 3, 2, SampleSettings(max_tokens=4), seed=1)
    tiny.fit(rloo(source, beta=0.0), models, steps=3, lr=1e-2, save_every=1, folder=folder)
    save_file(tiny.parameters(models["policy"]), folder / f"rank{processes.rank()}.safetensors")
    processes.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
