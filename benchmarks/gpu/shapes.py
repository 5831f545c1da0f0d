"""Models with random weights in the shapes of three families, and groups of random ids."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tiltyard import train_tokenizer
from tiltyard.data.chat import Chat
from tiltyard.models.backbone import DType
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.types import Group, Preference, Prompt, Response

# width, layers, heads, key heads, inner width, vocabulary
TINY = (64, 2, 4, 2, 96, 384)
SMALL = (512, 4, 8, 4, 1408, 8192)
HALF = (896, 24, 14, 2, 4864, 151_936)  # 0.49B parameters: the shape of Qwen 2.5's smallest
CONTEXT = 2048
WINDOW = 24  # of Gemma's layers with a sliding window: shorter than the trees
FAMILIES = ("Llama", "Qwen3", "Gemma3")


@cache
def tokenizer() -> Any:
    """A tokenizer with a chat template; the models' vocabularies may be larger."""
    return train_tokenizer((f"word{i} and number {i * 7}" for i in range(500)), 320)


def config(family: str, shape: tuple[int, ...]) -> Any:
    """A configuration of transformers for this family and shape."""
    width, layers, heads, keys, inner, vocab = shape
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": CONTEXT}
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "tie_word_embeddings": family != "Llama",
    }
    if family == "Qwen3":
        sizes["head_dim"] = 2 * width // heads
    if family == "Gemma3":
        kinds = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
        more = {"head_dim": width // heads, "query_pre_attn_scalar": width // heads}
        return hf.Gemma3TextConfig(**sizes, **ends, **more, layer_types=kinds, sliding_window=WINDOW)
    return getattr(hf, f"{family}Config")(**sizes, **ends)


def language(
    family: str, shape: tuple[int, ...], device: torch.device, dtype: DType = "float32", *, scale: float = 1.0
) -> LanguageModel:
    """A language model with random weights; `scale`: of its logits, to make the law of the next token uneven."""
    module = _module("ForCausalLM", family, shape, device)
    if scale != 1.0:
        with torch.no_grad():
            module.base_model.norm.weight.mul_(scale)
    return LanguageModel(module, Chat(tokenizer(), max_length=CONTEXT), dtype)


def scalar(family: str, shape: tuple[int, ...], device: torch.device, dtype: DType = "float32") -> ScalarModel:
    """A reward or value model with random weights."""
    return ScalarModel(_module("ForSequenceClassification", family, shape, device), _chat(), dtype)


def _chat() -> Chat:
    return Chat(tokenizer(), max_length=CONTEXT)


def _module(head: str, family: str, shape: tuple[int, ...], device: torch.device) -> Any:
    """Weights are drawn on the device: half a billion of them take a CPU ten seconds."""
    settings = config(family, shape)
    if head != "ForCausalLM":
        settings.num_labels = 1
    name = f"{family}Text" if family == "Gemma3" and head != "ForCausalLM" else family
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(0)
        return getattr(hf, name + head)(settings).eval()


def ids(count: int, generator: torch.Generator, vocab: int) -> tuple[int, ...]:
    """Random ids, none of them special."""
    return tuple(torch.randint(5, vocab, (count,), generator=generator).tolist())


def groups(sizes: list[tuple[int, tuple[int, ...]]], vocab: int, seed: int = 0) -> list[Group]:
    """Groups of (tokens of the prompt, tokens of each response); of two responses the first is preferred."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for prompt, responses in sizes:
        own = Prompt(text="", ids=ids(prompt, generator, vocab))
        answers = tuple(Response(ids=ids(n, generator, vocab)) for n in responses)
        made.append(Group(own, answers, preference=Preference(ranks=(1, 2)) if len(answers) == 2 else None))
    return made


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """The norm of the difference of some tensors in that of the expected ones."""
    both = list(zip(found, expected, strict=True))
    gap = sum(float((a.double() - b.double()).square().sum()) for a, b in both)
    return (gap / max(1e-300, sum(float(b.double().square().sum()) for _, b in both))) ** 0.5
