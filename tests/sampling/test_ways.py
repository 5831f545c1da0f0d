"""An answer's numbers do not depend on its neighbours, whatever the architecture: alone, batched, in a second pass."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers as hf

from models import every, tiny
from sampling import stubs
from tiltyard.batch.forest import pack
from tiltyard.errors import ModelError
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings, engine, sample, ways
from tiltyard.types import Group, Prompt, Response

LENGTHS = (5, 11, 3, 40, 5)
SMALL = {"vocab_size": tiny.VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# architectures that were sampled wrongly or not at all, and a few that differ in how they keep what they have read
EXPECTED = {
    "llama": "packed",
    "bloom": "batched",
    "gpt_oss": "batched",
    "diffllama": "batched",  # computes attention twice a layer: its keys would share one place of the packed cache
    "bart": "equal",  # numbers positions by what the cache holds
    "mbart": "equal",
    "minimax": "recomputed",  # its linear attention reads the padding
    "mamba": "recomputed",
    "rwkv": "recomputed",
    "openai-gpt": "recomputed",  # has no cache
    "roberta": "recomputed",  # numbers positions by comparing ids with pad
}


def model(name: str) -> LanguageModel:
    return LanguageModel(every.build(name), stubs.Letters(frozenset()), "float32")


def prompts() -> list[Prompt]:
    return [tiny.group(n, seed=i).prompt for i, n in enumerate(LENGTHS)]


def second_pass(module: Any, group: Group, response: Response) -> list[float]:
    """Log-probs by transformers alone: one row without padding, cache or positions."""
    ids = torch.tensor([group.prompt.ids + response.ids])
    with torch.no_grad():
        law = module(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    return [float(law[len(group.prompt.ids) - 1 + i, t]) for i, t in enumerate(response.ids)]


def check(made: LanguageModel) -> None:
    """Sampled log-probs equal a second pass, alone and as the training step computes it; so does each row alone."""
    groups = sample(made, prompts(), 2, SampleSettings(max_tokens=12), seed=0)
    recorded = [x for g in groups for r in g.responses for x in r.logps or ()]
    with torch.no_grad():
        trained = made.logp_R(pack(groups))[0].tolist()
    with made.plain():
        alone = [x for g in groups for r in g.responses for x in second_pass(made.module, g, r)]
    assert max(abs(a - b) for a, b in zip(recorded, alone, strict=True)) < 1e-3
    assert max(abs(a - b) for a, b in zip(trained, alone, strict=True)) < 1e-3
    seeds = [7, 8]
    (one,) = sample(made, prompts()[:1], 2, SampleSettings(max_tokens=12), seeds=seeds)
    beside = sample(made, prompts(), 2, SampleSettings(max_tokens=12), seeds=seeds + [9] * 8)[0]
    assert [r.ids for r in one.responses] == [r.ids for r in beside.responses]


@pytest.mark.parametrize("name", EXPECTED)
def test_each_way_of_sampling_gives_the_numbers_of_a_row_alone(name: str) -> None:
    made = model(name)
    assert ways.way_of(made) == EXPECTED[name]
    assert bool(ways.decoding_note(made)) == (name not in ("llama", "bloom", "gpt_oss"))
    check(made)


# those that hold more than a language model, or that want more than a few sizes to be made tiny
NOT_TRIED = {
    "bamba",
    "blt",
    "cohere_compass_text",
    "dbrx",
    "deepseek_v2",
    "dots1",
    "dots3_note",
    "dots3_note_text",
    "emu3",
    "falcon_h1",
    "fuyu",
    "gemma3",
    "gemma3n",
    "gemma3n_text",
    "gemma4",
    "gemma4_assistant",
    "gemma4_text",
    "gemma4_unified",
    "gemma4_unified_assistant",
    "gemma4_unified_text",
    "git",
    "got_ocr2",
    "granitemoehybrid",
    "lfm2_moe",
    "llama4",
    "mllama",
    "moss_transcribe_diarize",
    "musicgen",
    "musicgen_melody",
    "phi4_multimodal",
    "prophetnet",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen4_exp",
    "qwen4_exp_text",
    "recurrent_gemma",
    "reformer",
    "roc_bert",
    "xlnet",
    "xlstm",
    "xmod",
    "zamba",
    "zamba2",
    "zaya",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", every.names())
def test_every_architecture_of_transformers_samples_its_own_numbers_or_is_refused(name: str) -> None:
    if name in NOT_TRIED:
        with pytest.raises(every.Unbuildable):
            every.build(name)
    elif name in ("cpmant", "xlm"):  # reads its prompt both ways; takes pad ids in a text for padding
        with pytest.raises(ModelError, match="reads ahead"):
            model(name)
    else:
        check(model(name))


def test_most_architectures_are_among_those_that_are_tried() -> None:
    assert len(every.names()) - len(NOT_TRIED) > 140


def test_a_model_that_reads_ahead_is_refused_when_it_is_loaded() -> None:
    config = hf.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **SMALL)
    with pytest.raises(ModelError, match=r"reads ahead(.|\n)*is_decoder=true"):
        LanguageModel(hf.BertLMHeadModel(config).eval(), stubs.Letters(), "float32")


def test_a_model_with_which_no_way_agrees_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("bart")
    monkeypatch.setattr(ways, "_gap", lambda *args: 0.5)
    with pytest.raises(
        ModelError, match=r"BartForCausalLM: (.|\n)*cannot be sampled from(.|\n)*batched: (.|\n)*recomputed: "
    ):
        sample(made, prompts(), 1, SampleSettings(max_tokens=2))
    assert made.decoding == ""


def test_it_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("bloom")
    tried: list[str] = []
    real = ways._tried
    monkeypatch.setattr(ways, "_tried", lambda m: (tried.append("x"), real(m))[1])
    for _ in range(3):
        sample(made, prompts(), 1, SampleSettings(max_tokens=2))
    assert tried == ["x"]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
def test_the_rounding_of_bfloat16_chooses_no_slower_way(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep models differ by more than any fixed share of their scale, so here none at all is allowed."""
    expected = ways.way_of(LanguageModel(tiny.causal(family), stubs.Letters(frozenset()), "float32"))
    half = LanguageModel(tiny.causal(family), stubs.Letters(frozenset()), "bfloat16")
    monkeypatch.setattr("tiltyard.models.padding.CLOSE_HALF", 0.0)
    assert ways.way_of(half) == expected
    assert half.dtype == "bfloat16"


def test_a_decoder_that_disagrees_in_bfloat16_is_left_for_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    half = LanguageModel(tiny.causal("llama"), stubs.Letters(frozenset()), "bfloat16")
    step = engine.Packed.step
    wrong = lambda self, ids: step(self, (ids + 1) % tiny.VOCAB if self.decoder else ids)  # noqa: E731
    monkeypatch.setattr(engine.Packed, "step", wrong)
    assert ways.way_of(half) == "packed"
    assert half.backend.decoder == "modules"


def test_two_threads_try_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial changes the model's attention for a while: a trainer and a sampler's thread must not do so at a time."""
    tried: list[Any] = []
    found = ways._tried

    def slow(one: LanguageModel) -> ways.Way:
        tried.append(one)
        time.sleep(0.2)
        return found(one)

    monkeypatch.setattr(ways, "_tried", slow)
    made = model("llama")
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ways.way_of, [made, made])) == ["packed"] * 2
    assert tried == [made]
