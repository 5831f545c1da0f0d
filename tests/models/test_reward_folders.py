"""Reward models mean the same here, in transformers and after a round trip: token read, scale, padding, family."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from models import encoders, tiny
from tiltyard.batch.forest import pack
from tiltyard.data.chat import Chat
from tiltyard.errors import ModelError
from tiltyard.models.classifiers import is_own, scalar_class
from tiltyard.models.load import load_language_model, load_scalar_model, save_model, scalar_from
from tiltyard.scoring import RewardScorer
from tiltyard.types import Group, Message, Prompt, Response

V = 512
CLASSIFIED = sorted(f for f in tiny.FAMILIES if tiny.has_classifier(f))
OWN = sorted(set(tiny.FAMILIES) - set(CLASSIFIED))
OTHERS = ("ernie4_5", "cohere2", "granitemoe", "bitnet", "jais2", "lfm2", "gpt_neox_japanese", "falcon_mamba")


def tokenizer(pad: str) -> PreTrainedTokenizerBase:
    """The suite's tokenizer with `pad`: its own token, the end token, or none."""
    made = copy.deepcopy(tiny.chat().tokenizer)
    made.pad_token = {"own": made.pad_token, "eos": made.eos_token, "none": None}[pad]
    return made


def groups(chat: Chat) -> list[Group]:
    """Prompts and answers of unequal lengths, one of them empty."""
    long, short = (Prompt(messages=(Message("user", text),)) for text in ("what is the capital of the land?", "yes"))
    answers = tuple(Response(text=text) for text in ("the cat sat on the mat", "yes", ""))
    return chat.encode_groups([Group(long, answers), Group(short, answers[:2])])


def theirs(module: Any, batch: list[Group], pad: int | None, left: bool = False) -> torch.Tensor:
    """transformers' scores: in one padded batch, or row by row where the model has no padding."""
    rows = [list(ids) for ids, _, _ in tiny.rows(batch)]
    width = max(map(len, rows))
    with torch.no_grad():
        if pad is None:
            return torch.cat([module(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
        fill = [[pad] * (width - len(row)) for row in rows]
        ids = torch.tensor([f + r if left else r + f for f, r in zip(fill, rows, strict=True)])
        mask = torch.tensor([[0] * len(f) + [1] * len(r) if left else [1] * len(r) + [0] * len(f)
                             for f, r in zip(fill, rows, strict=True)])  # fmt: skip
        return module(input_ids=ids, attention_mask=mask).logits[:, 0]


@pytest.mark.parametrize("pad", ["own", "eos", "none"])
@pytest.mark.parametrize("family", CLASSIFIED)
def test_a_foreign_reward_model_is_read_where_transformers_reads_it(family: str, pad: str, tmp_path: Path) -> None:
    """With pad = eos that is the token before the closing one; the model, its continuation and its scorer agree."""
    words = tokenizer(pad)
    module = tiny.classifier(family, vocab_size=V, pad_token_id=words.pad_token_id)
    module.save_pretrained(tmp_path / "foreign")
    words.save_pretrained(tmp_path / "foreign")
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "foreign").eval()
    model = load_scalar_model(tmp_path / "foreign", device="cpu")
    batch = groups(model.chat)
    found = model.score_B(pack(batch)).detach()
    torch.testing.assert_close(found, theirs(module, batch, words.pad_token_id), atol=2e-5, rtol=2e-5)
    scored = [s for g in RewardScorer(model).score(batch) for s in g.scores or ()]
    torch.testing.assert_close(torch.tensor(scored), found, atol=1e-6, rtol=1e-6)
    save_model(model, tmp_path / "again")
    again = load_scalar_model(tmp_path / "again", device="cpu")
    torch.testing.assert_close(again.score_B(pack(batch)), found, atol=1e-6, rtol=1e-6)


def test_reading_goes_on_into_the_prompt_where_an_answer_is_padding_alone() -> None:
    model = tiny.scalar("llama")
    model.module.config.pad_token_id = 9
    batch = [Group(Prompt(ids=(5, 6, 9)), (Response(ids=(9, 9)), Response(ids=(7, 9)))),
             Group(Prompt(ids=(9,)), (Response(ids=(9,)),))]  # fmt: skip
    place = model.read_B(pack(batch)).tolist()
    forest = pack(batch)
    assert [forest.ids_T[i].item() for i in place] == [6, 7, 9]
    with model.plain():
        expected = theirs(model.module, batch, 9)
    torch.testing.assert_close(model.score_B(forest), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pad", ["own", "eos", "none"])
@pytest.mark.parametrize("family", CLASSIFIED)
def test_transformers_batches_our_reward_models(family: str, pad: str, tmp_path: Path) -> None:
    """A score in a batch of unequal rows, padded on either side, is the score alone and ours; the scale is inside."""
    words = tokenizer(pad)
    tiny.causal(family, vocab_size=V).save_pretrained(tmp_path / "policy")
    words.save_pretrained(tmp_path / "policy")
    model = load_scalar_model(tmp_path / "policy", device="cpu")
    torch.nn.init.normal_(model.head.weight)
    model.bias, model.gain = 0.5, 3.0
    batch = groups(model.chat)
    expected = model.score_B(pack(batch)).detach()
    save_model(model, tmp_path / "reward")
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    saved = AutoTokenizer.from_pretrained(tmp_path / "reward")
    assert saved.pad_token_id == module.config.pad_token_id is not None
    assert saved.pad_token_id not in model.chat.stop_ids
    assert saved("the cat sat<|pad|>")["input_ids"][-1] == saved.pad_token_id
    shift = getattr(module.config, "reward_bias", 0.0)
    assert not hasattr(module.config, "reward_gain") or module.config.reward_gain == 1.0
    alone = theirs(module, batch, None)
    torch.testing.assert_close(alone - shift, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs(module, batch, saved.pad_token_id), alone, atol=1e-4, rtol=1e-4)
    again = load_scalar_model(tmp_path / "reward", device="cpu")
    torch.testing.assert_close(again.score_B(pack(batch)), expected, atol=1e-5, rtol=1e-5)
    scorer = RewardScorer(again, load_language_model(tmp_path / "policy", device="cpu").chat)
    assert not scorer._encode_again  # a padding token more is no other tokenizer


def test_padding_is_a_token_to_spare_or_a_new_one(tmp_path: Path) -> None:
    """An idle special token of the vocabulary is taken; else a row is added behind the embeddings."""
    words = tokenizer("eos")
    tiny.causal("llama", vocab_size=len(words)).save_pretrained(tmp_path / "policy")
    for case, more, pad, rows in (("new", [], "<|pad_|>", 1), ("spare", ["<|reserved_7|>"], "<|reserved_7|>", 0)):
        own = copy.deepcopy(words)
        own.add_special_tokens({"additional_special_tokens": more} if more else {})
        size = len(own)
        tiny.causal("llama", vocab_size=size).save_pretrained(tmp_path / case)
        own.save_pretrained(tmp_path / case)
        model = load_scalar_model(tmp_path / case, device="cpu")
        save_model(model, tmp_path / case / "reward")
        saved = AutoTokenizer.from_pretrained(tmp_path / case / "reward")
        assert saved.pad_token in (pad, "<|pad|>")
        table = load_file(tmp_path / case / "reward" / "model.safetensors")["model.embed_tokens.weight"]
        config = json.loads((tmp_path / case / "reward" / "config.json").read_text())
        assert config["vocab_size"] == len(table) >= saved.pad_token_id + 1
        assert len(table) - size in (0, rows)


@pytest.mark.parametrize("family", sorted(encoders.FAMILIES))
def test_an_encoders_scale_and_shift_are_in_its_head(family: str, tmp_path: Path) -> None:
    save_model(encoders.masked(family, "float32"), tmp_path)
    model = load_scalar_model(tmp_path, device="cpu")
    torch.nn.init.normal_(model.head.weight)
    forest = pack(encoders.comparisons())
    model.bias, model.gain = 0.5, 3.0
    expected = model.score_B(forest).detach()
    model.fold()
    assert model.gain == 1.0
    assert model.bias == (0.0 if model.head.bias is not None else 1.5)
    torch.testing.assert_close(model.score_B(forest), expected, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------- families without a classifier


def policy_of(kind: str, folder: Path) -> None:
    """A language model's folder: of a family of the suite, or of another one by its model type."""
    if kind in tiny.FAMILIES:
        module = tiny.causal(kind, vocab_size=V)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(tiny.SHAPE | {"vocab_size": V})))
    module.save_pretrained(folder)
    tiny.chat().tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("kind", [*OWN, *OTHERS])
def test_a_family_without_a_classifier_gets_our_head(kind: str, tmp_path: Path) -> None:
    """The decoder with a linear layer, saved so that it loads here; its states are those of the language model."""
    policy_of(kind, tmp_path / "policy")
    model = load_scalar_model(tmp_path / "policy", device="cpu")
    assert is_own(model.module)
    batch = groups(model.chat)
    forest = pack(batch)
    assert not model.score_B(forest).any()
    policy = load_language_model(tmp_path / "policy", device="cpu")
    torch.testing.assert_close(model.hidden_T(forest), policy.hidden_T(forest), atol=1e-5, rtol=1e-4)
    torch.nn.init.normal_(model.head.weight)
    expected = model.score_B(forest).detach()
    save_model(model, tmp_path / "reward")
    again = load_scalar_model(tmp_path / "reward", device="cpu")
    torch.testing.assert_close(again.score_B(forest), expected, atol=1e-6, rtol=1e-6)
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["architectures"] == [type(model.module).__name__]
    if kind != "falcon_mamba":  # its outputs have no past_key_values, which the head's own forward hands on
        alone = scalar_class(again.module.config).from_pretrained(tmp_path / "reward").eval()
        torch.testing.assert_close(theirs(alone, batch, model.chat.pad_id), expected, atol=1e-4, rtol=1e-4)
    copied = scalar_from(policy)
    copied.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(copied.score_B(forest), expected, atol=1e-5, rtol=1e-5)


def test_a_family_that_no_head_fits_is_refused_by_that_sentence(tmp_path: Path) -> None:
    policy_of("blenderbot", tmp_path)
    with pytest.raises(ModelError, match="no reward or value model can be made of this family"):
        load_scalar_model(tmp_path, device="cpu")
