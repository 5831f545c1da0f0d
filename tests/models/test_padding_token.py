"""Where padding and end of turn are one token its embedding learns, and padding adds nothing to any gradient.

Input and output embeddings are separate here, so that the gradient of the first is that of what is read.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.types import Group, Prompt, Response

from . import tiny

END = 2  # eos and pad: ends turns of the prompt and of the response
FAMILIES = ("llama", "qwen3", "gpt2", "bloom")  # the last one runs padded


def conversations(end: int = END) -> list[Group]:
    """Prompts of several turns and responses of different lengths, which a padded batch fills up."""
    answers = [((9, 8, end), (7, end)), ((11, end), (10, 12, 13, 14, 15, end))]
    prompts = [(5, 6, end, 20, 21, end, 4), (30, end, 4)]
    return [
        Group(Prompt(ids=prompt, id=f"{i}"), tuple(Response(ids=ids) for ids in both))
        for i, (prompt, both) in enumerate(zip(prompts, answers, strict=True))
    ]


def embedding_gradient(model: Any, loss: Tensor) -> Tensor:
    table = model.module.get_input_embeddings().weight
    return torch.autograd.grad(loss, table)[0]


def summed(model: LanguageModel, groups: list[Group]) -> Tensor:
    return model.logp_R(pack(groups))[0].sum()


@pytest.mark.parametrize("padded", [False, True], ids=["as it comes", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_turn_learns_though_it_is_the_padding_token(family: str, padded: bool) -> None:
    """The gradient is that of a model without a padding token, one unpadded row at a time, through transformers."""
    model = tiny.language(family, "float64", pad_token_id=END, eos_token_id=END, tie_word_embeddings=False)
    if padded:
        model.force_padded("as asked by this test")
    found = embedding_gradient(model, summed(model, conversations()))
    plain = tiny.causal(family, dtype=torch.float64, pad_token_id=None, eos_token_id=END, tie_word_embeddings=False)
    assert plain.get_input_embeddings().padding_idx is None
    logps, _ = tiny.plain_logp(plain, conversations())
    wanted = torch.autograd.grad(logps.sum(), plain.get_input_embeddings().weight)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # norms are computed in float32
    assert found[END].abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("padded", [False, True], ids=["as it comes", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_adds_nothing_to_the_gradient_of_any_embedding(family: str, padded: bool, dtype: str) -> None:
    """Rows of different lengths that never hold the padding token: words that were not read get a gradient of zero."""
    model = tiny.language(family, dtype, pad_token_id=END, eos_token_id=END, tie_word_embeddings=False)
    if padded:
        model.force_padded("as asked by this test")
    gradient = embedding_gradient(model, summed(model, conversations(end=3)))
    read = {i for g in conversations(end=3) for ids in (g.prompt.ids, *(r.ids for r in g.responses)) for i in ids}
    assert END not in read
    unread = torch.tensor([i for i in range(tiny.VOCAB) if i not in read])
    assert torch.equal(gradient[unread], torch.zeros_like(gradient[unread]))
    assert gradient[3].abs().max() > 1e-3


def test_a_reward_model_s_end_of_turn_learns() -> None:
    """Its score is read before a closing token that is padding; the ends of earlier turns are read all the same."""
    module = tiny.classifier("llama", dtype=torch.float64, pad_token_id=END, eos_token_id=END)
    model = ScalarModel(module, tiny.chat(), "float64")
    forest = pack(conversations())
    gradient = embedding_gradient(model, model.score_B(forest).sum())
    assert gradient[END].abs().max() > 1e-3
