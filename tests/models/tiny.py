"""Tiny random-weight models of the families people use, and the plain transformers computation that is their oracle."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tiltyard.data import train_tokenizer
from tiltyard.data.chat import Chat
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.types import Group, Prompt, Response

VOCAB = 64
WINDOW = 5  # shorter than the test sequences
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BLOOM = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}

# family: (class name without the head, settings)
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SHAPE),
    "llama_tied": ("Llama", SHAPE | {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen2": ("Qwen2", SHAPE),
    "qwen2_window": (
        "Qwen2",
        SHAPE | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", SHAPE | {"head_dim": 16}),
    "mistral": ("Mistral", SHAPE | {"sliding_window": WINDOW}),
    "gpt2": ("GPT2", GPT2),
    "gemma": ("Gemma", SHAPE | {"head_dim": 16}),
    "gemma2": ("Gemma2", SHAPE | {"head_dim": 16, "sliding_window": WINDOW}),
    "gemma3": (
        "Gemma3",
        SHAPE | {"head_dim": 16, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt_neox": ("GPTNeoX", SHAPE),
    "phi3": ("Phi3", SHAPE | {"sliding_window": WINDOW}),
    "opt": ("OPT", SHAPE | {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "cohere": ("Cohere", SHAPE | {"logit_scale": 0.25}),
    "granite": ("Granite", SHAPE | {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "deepseek_v3": (
        "DeepseekV3",
        SHAPE
        | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
        | {"first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4},
    ),
}
PADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", BLOOM),
    "qwen2_moe_window": (  # hides its window in the mask alone: packing it would be wrong
        "Qwen2Moe",
        SHAPE
        | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_experts": 2}
        | {"num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "hyperclovax": ("HyperCLOVAX", SHAPE | {"logits_scaling": 4.0}),  # multiplies where Granite divides
    "gpt_oss": ("GptOss", SHAPE | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
}
FAMILIES = PACKED | PADDED
NO_FLOAT64 = ("qwen2_moe_window", "gpt_oss")  # their experts' kernel does not know it


@cache
def chat() -> Chat:
    """A real tokenizer with a template; its ids are beyond the vocabulary of the models with VOCAB tokens."""
    texts = ["the cat sat on the mat", "what is the capital of the land?", "Grüße, 東京 🙂", "yes it is so"] * 4
    return Chat(train_tokenizer(texts, 300), max_length=64)


def config(family: str, **changes: Any) -> Any:
    name, settings = FAMILIES[family]
    kind = {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config")
    return getattr(hf, kind)(**(settings | changes))


def causal(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A `...ForCausalLM` with weights drawn wide enough that every part matters."""
    head = "LMHeadModel" if family == "gpt2" else "ForCausalLM"
    return _made(f"{FAMILIES[family][0]}{head}", config(family, **changes), seed, dtype)


def classifier(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    name = {"Gemma3": "Gemma3Text"}.get(FAMILIES[family][0], FAMILIES[family][0])
    return _made(f"{name}ForSequenceClassification", config(family, num_labels=1, **changes), seed, dtype)


def _made(name: str, settings: Any, seed: int, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(hf, name)(settings).eval().to(dtype)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def language(family: str, dtype: Any = "float32", **kwargs: Any) -> LanguageModel:
    wide = torch.float64 if dtype == "float64" else torch.float32
    return LanguageModel(causal(family, dtype=wide, **kwargs), chat(), dtype)


def scalar(family: str, dtype: Any = "float32", **kwargs: Any) -> ScalarModel:
    wide = torch.float64 if dtype == "float64" else torch.float32
    return ScalarModel(classifier(family, dtype=wide, **kwargs), chat(), dtype)


def group(prompt: int, *responses: int, seed: int = 0, spans: Any = None, low: int = 4, high: int = VOCAB) -> Group:
    """A group of random ids: a prompt of so many tokens and responses of so many."""
    generator = torch.Generator().manual_seed(seed + 1000 * prompt + sum(responses))

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(low, high, (n,), generator=generator).tolist())

    answers = tuple(Response(ids=draw(n), loss_spans=spans) for n in responses)
    return Group(Prompt(ids=draw(prompt), id=f"{seed}"), answers)


def mixed() -> list[Group]:
    """K of 1, 2 and 3; a prompt and a response of one token; sequences longer than the window; one tree laid whole."""
    return [group(6, 4, 1, 9), group(1, 5), group(4, 3, 12), group(11, 1), group(14, 1, 1, 2), group(3, 2, 2)]


def rows(groups: list[Group]) -> list[tuple[list[int], int, Response]]:
    return [(list(g.prompt.ids) + list(r.ids), len(g.prompt.ids), r) for g in groups for r in g.responses]


def plain_logp(module: Any, groups: list[Group], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the loss tokens by transformers alone: one unpadded sequence at a time."""
    logps, entropies = [], []
    for ids, start, response in rows(groups):
        logits = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double() / temperature
        law = torch.log_softmax(logits, -1)
        spans = response.loss_spans if response.loss_spans is not None else ((0, len(response.ids)),)
        for i in [i for a, b in spans for i in range(a, b)]:
            logps.append(law[start + i - 1, ids[start + i]])
            entropies.append(-(law[start + i - 1].exp() * law[start + i - 1]).sum())
    return torch.stack(logps), torch.stack(entropies)


def has_classifier(family: str) -> bool:
    """True if transformers has a sequence classifier of the family."""
    return type(config(family)) in hf.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
