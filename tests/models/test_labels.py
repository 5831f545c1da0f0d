"""Classifiers of several labels as reward models: equal to transformers' logits, with a tokenizer of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from models import encoders, tiny
from tiltyard.batch.forest import pack
from tiltyard.data import train_tokenizer
from tiltyard.data.chat import Chat
from tiltyard.errors import ModelError
from tiltyard.models.load import load_scalar_model, save_model
from tiltyard.scoring import RewardScorer
from tiltyard.types import Group, Message, Prompt, Response

V = 512
NAMES = ["honest", "helpful", "verbose"]
CHOICES: list[dict[str, float]] = [{"helpful": 1.0}, {"2": 1.0}, {"helpful": 1.0, "verbose": -0.25, "honest": 2.0}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def labelled(folder: Path, family: str, words: PreTrainedTokenizerBase, **more: Any) -> Any:
    """A classifier of three labels in a folder, with this tokenizer; returns transformers' own reading of it."""
    named = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    config = tiny.config(family, vocab_size=V, pad_token_id=words.pad_token_id, **{**named, **more})
    name = {"Gemma3": "Gemma3Text"}.get(tiny.FAMILIES[family][0], tiny.FAMILIES[family][0])
    tiny._made(f"{name}ForSequenceClassification", config, 0, torch.float32).save_pretrained(folder)
    words.save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def other_words(pad: str = "eos", template: str | None = CHATML) -> PreTrainedTokenizerBase:
    """A tokenizer with ChatML's markers, whose template writes a newline behind each turn."""
    texts = ["entirely other words make entirely other tokens", "mat capital land so it is yes"] * 4
    words = train_tokenizer(texts, 320)
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    words.pad_token = words.eos_token if pad == "eos" else words.pad_token
    words.chat_template = template
    return words


def groups() -> list[Group]:
    long, short = (Prompt(messages=(Message("user", text),)) for text in ("what is the capital of the land?", "yes"))
    answers = tuple(Response(text=text) for text in ("the cat sat on the mat", "yes", "so it is"))
    return tiny.chat().encode_groups([Group(long, answers, origin="f:1"), Group(short, answers[:2], origin="f:2")])


def conversations(batch: list[Group]) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": g.prompt.messages[0].content}, {"role": "assistant", "content": r.text}]
        for g in batch
        for r in g.responses
        if g.prompt.messages
    ]


@torch.no_grad()
def theirs(module: Any, words: PreTrainedTokenizerBase, batch: list[Group]) -> torch.Tensor:
    """transformers' logits of each conversation by itself, as its model card would compute them."""
    rows = []
    for turns in conversations(batch):
        text = words.apply_chat_template(turns, tokenize=False)
        ids = words(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        rows.append(module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0])
    return torch.stack(rows)


@pytest.mark.parametrize("pad", ["own", "eos"])
@pytest.mark.parametrize("labels", CHOICES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_the_score_is_the_weighted_sum_of_transformers_logits(
    family: str, labels: dict[str, float], pad: str, tmp_path: Path
) -> None:
    """With another tokenizer and template than the policy's; the whole template, its last newline too, is read."""
    words = other_words(pad)
    module = labelled(tmp_path / "m", family, copy.deepcopy(words))
    batch = groups()
    index = {**{name: i for i, name in enumerate(NAMES)}, "2": 2}
    logits = theirs(module, words, batch)
    expected = sum(weight * logits[:, index[name]] for name, weight in labels.items())
    model = load_scalar_model(tmp_path / "m", device="cpu", labels=labels)
    for budget in (1, 4096):  # each response by itself, and all in one batch
        scored = RewardScorer(model, tiny.chat(), budget=budget).score(batch)
        assert [replace_scores(g) for g in scored] == batch
        found = torch.tensor([s for g in scored for s in g.scores or ()])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    save_model(model, tmp_path / "saved")
    again = load_scalar_model(tmp_path / "saved", device="cpu")
    found = torch.tensor([s for g in RewardScorer(again, tiny.chat()).score(batch) for s in g.scores or ()])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def replace_scores(group: Group) -> Group:
    return Group(group.prompt, group.responses, origin=group.origin)


def test_a_model_of_one_label_reads_the_whole_turn_too(tmp_path: Path) -> None:
    words = other_words()
    module = labelled(tmp_path, "llama", copy.deepcopy(words), id2label={0: "reward"}, label2id={"reward": 0})
    scored = RewardScorer(load_scalar_model(tmp_path, device="cpu"), tiny.chat()).score(groups())
    found = torch.tensor([s for g in scored for s in g.scores or ()])
    torch.testing.assert_close(found, theirs(module, words, groups())[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(encoders.FAMILIES))
def test_an_encoder_of_several_labels(family: str, tmp_path: Path) -> None:
    """The chosen row of its last layer; all that lies below it is the same."""
    model = encoders.masked(family, "float32")
    save_model(model, tmp_path / "m")
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", num_labels=3)
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if not name.startswith(module.base_model_prefix):
            torch.nn.init.normal_(parameter, std=0.5)
    module.save_pretrained(tmp_path / "three")
    model.chat.tokenizer.save_pretrained(tmp_path / "three")
    forest = pack(encoders.comparisons())
    one, two, both = (
        load_scalar_model(tmp_path / "three", device="cpu", labels=labels).score_B(forest).detach()
        for labels in ({"0": 1.0}, {"LABEL_2": 1.0}, {"LABEL_0": 1.0, "LABEL_2": -2.0})
    )
    torch.testing.assert_close(both, one - 2 * two, atol=1e-5, rtol=1e-5)
    assert (one - two).abs().max() > 1e-2


def test_without_a_label_the_error_lists_them(tmp_path: Path) -> None:
    labelled(tmp_path, "llama", other_words())
    with pytest.raises(ModelError, match="classifier of 3 labels: which of them is the reward") as caught:
        load_scalar_model(tmp_path, device="cpu")
    assert "0: honest, 1: helpful, 2: verbose" in caught.value.expected
    assert "label: verbose" in caught.value.fix
    for labels, said in (({"helpfull": 1.0}, "no label 'helpfull'"), ({"3": 1.0}, "no label '3'"),
                         ({"1": 1.0, "helpful": 1.0}, "chosen twice")):  # fmt: skip
        with pytest.raises(ModelError, match=said) as caught:
            load_scalar_model(tmp_path, device="cpu", labels=labels)
        assert "1: helpful" in caught.value.expected
    with pytest.raises(ModelError) as caught:
        load_scalar_model(tmp_path, labels={"helpfull": 1.0})
    assert "'helpful'" in caught.value.fix


def test_labels_of_a_language_model(tmp_path: Path) -> None:
    tiny.causal("llama", vocab_size=V).save_pretrained(tmp_path)
    tiny.chat().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no classifier"):
        load_scalar_model(tmp_path, device="cpu", labels={"helpful": 1.0})


def test_a_reward_model_without_a_template_reads_no_conversation(tmp_path: Path) -> None:
    labelled(tmp_path, "llama", other_words(template=None))
    scorer = RewardScorer(load_scalar_model(tmp_path, device="cpu", labels={"0": 1.0}), tiny.chat())
    scorer.check_prompts([Prompt(text="a text that goes on")])
    with pytest.raises(ModelError, match="no chat template") as caught:
        scorer.check_prompts([g.prompt for g in groups()])
    assert "chat_template.jinja" in caught.value.fix


def test_what_is_made_here_closes_a_turn_as_before(tmp_path: Path) -> None:
    """A new head, and a saved one, read the end of the turn and nothing behind it."""
    words = other_words()
    tiny.causal("llama", vocab_size=V).save_pretrained(tmp_path / "policy")
    words.save_pretrained(tmp_path / "policy")
    model = load_scalar_model(tmp_path / "policy", device="cpu")
    save_model(model, tmp_path / "reward")
    for one in (model, load_scalar_model(tmp_path / "reward", device="cpu")):
        assert not one.chat.whole_turn
        fresh = one.chat.encode_group(Group(Prompt(messages=groups()[0].prompt.messages),
                                            (Response(text="yes"),)))  # fmt: skip
        assert fresh.responses[0].ids[-1] == one.chat.eos_id
    assert not Chat(tiny.chat().tokenizer, whole_turn=True).whole_turn  # nothing stands behind its turns
