"""A real vLLM engine on this machine's CPU, where TILTYARD_VLLM_PYTHON names the interpreter of its environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.sampling import SampleSettings
from tiltyard.sampling.vllm import EngineError, EngineSettings, StaleWeights, VllmSampler
from tiltyard.types import Prompt

PYTHON = os.environ.get("TILTYARD_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON, reason="TILTYARD_VLLM_PYTHON names no vLLM (`make vllm`)"),
]
SETTINGS = EngineSettings(Path(PYTHON or "."), dtype="float32", memory=1 << 26, max_length=128, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A small tied Llama: its output head is the embedding."""
    folder = tmp_path_factory.mktemp("model")
    chat = tiny.chat()
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    made = tiny.causal("llama", vocab_size=len(chat.tokenizer), tie_word_embeddings=True, **shape)
    made.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return load_language_model(folder, dtype="float32")


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmSampler]:
    made = VllmSampler(tmp_path_factory.mktemp("vllm"), SETTINGS)
    yield made
    made.close()


@pytest.fixture
def killer() -> Iterator[Callable[[VllmSampler], None]]:
    """Kills an engine with SIGKILL once it has begun to answer."""
    threads: list[threading.Thread] = []

    def kill(sampler: VllmSampler) -> None:
        assert sampler.engine is not None
        process = sampler.engine.process

        def soon() -> None:
            time.sleep(1.0)
            os.killpg(process.pid, signal.SIGKILL)

        threads.append(threading.Thread(target=soon))
        threads[0].start()

    yield kill
    for thread in threads:
        thread.join()


@torch.no_grad()
def moved(model: LanguageModel, seed: int) -> LanguageModel:
    generator = torch.Generator().manual_seed(seed)
    for p in model.module.parameters():
        p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def test_pushes_reach_all_weights_the_probe_sees_when_they_do_not_and_a_killed_engine_is_started_again(
    sampler: VllmSampler, model: LanguageModel, killer: Callable[[VllmSampler], None]
) -> None:
    """One test, for one start of an engine: in another order the second part has no engine to kill."""
    prompts = [Prompt(ids=(3, 14, 15, 9)), Prompt(ids=(2, 6, 5))]
    for version in range(3):
        sampler.sync(moved(model, version) if version else model, version)
        assert sampler.gap < 1e-4
        groups = sampler.generate(prompts, 2, SampleSettings(temperature=0.8, max_tokens=12), [1, 2, 3, 4])
        recorded = torch.tensor([x for g in groups for r in g.responses for x in r.logps or ()])
        with torch.no_grad():
            logp_R = model.logp_R(pack(groups), temperature=0.8)[0]
        torch.testing.assert_close(recorded, logp_R, atol=1e-4, rtol=0)
    sampler.clients[0].post("/init_weight_transfer_engine", {"init_info": {"tied": "stale"}})  # vLLM as it is
    with pytest.raises(StaleWeights):
        sampler.sync(moved(model, 9), 9)
    # it computes with stale weights now; the next engine has those that it should have
    many = SampleSettings(max_tokens=48, max_concurrent=4)
    killer(sampler)
    with pytest.raises(EngineError, match="vLLM has ended with"):
        sampler.generate([Prompt(ids=(3, 1))] * 16, 64, many, list(range(16 * 64)))
    sampler.close()
    sampler.sync(model, 10)
    assert sampler.gap < 1e-4
    assert len(sampler.generate([Prompt(ids=(3, 1))], 1, SampleSettings(max_tokens=4), [1])) == 1


def test_of_an_adapted_model_the_adapter_alone_is_pushed(model: LanguageModel, tmp_path: Path) -> None:
    """The engine keeps the backbone; what is written for a push is the adapter, and the probe is as near."""
    from tiltyard.models.adapters import adapt
    from tiltyard.models.lora import Lora
    from tiltyard.models.saving import save_model

    save_model(model, tmp_path / "model")
    adapted = adapt(load_language_model(tmp_path / "model", dtype="float32"), Lora(rank=4))
    sampler = VllmSampler(tmp_path / "vllm", SETTINGS)
    try:
        for version in range(3):
            with torch.no_grad():
                for p in adapted.parameters():
                    p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(version)))
            sampler.sync(adapted, version)
            assert sampler.gap < 1e-4
            written = tmp_path / f"vllm/weights/version-{version}"
            assert {p.name for p in written.glob("*.safetensors")} == {"adapter_model.safetensors"}
            groups = sampler.generate([Prompt(ids=(3, 14, 15))], 2, SampleSettings(max_tokens=12), [1, 2])
            recorded = torch.tensor([x for g in groups for r in g.responses for x in r.logps or ()])
            with torch.no_grad():
                torch.testing.assert_close(recorded, adapted.logp_R(pack(groups))[0], atol=1e-4, rtol=0)
    finally:
        sampler.close()


def test_the_engine_ends_with_a_killed_trainer(model: LanguageModel, tmp_path: Path) -> None:
    from tiltyard.models.saving import save_model

    save_model(model, tmp_path / "model")
    script = (
        "import sys, time; from pathlib import Path\n"
        "from tiltyard.sampling.vllm.launch import EngineSettings, start\n"
        "python, model, work = map(Path, sys.argv[1:])\n"
        "engine = start(EngineSettings(python, 'float32', 1 << 26, 64, 1), model, work)\n"
        "print(engine.process.pid, flush=True); time.sleep(600)\n"
    )
    words = [sys.executable, "-c", script, PYTHON, str(tmp_path / "model"), str(tmp_path / "work")]
    trainer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    child = int(trainer.stdout.readline())
    trainer.kill()
    trainer.wait()
    for _ in range(100):
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    os.killpg(child, signal.SIGKILL)
    pytest.fail("the engine outlived its trainer")
