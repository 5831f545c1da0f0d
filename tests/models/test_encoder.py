"""Encoders say what transformers says of each row, whatever shares its batch; what they cannot do is an error."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from models import encoders, tiny
from tiltyard.batch.forest import pack
from tiltyard.data import train_tokenizer
from tiltyard.data.chat import Chat
from tiltyard.errors import ModelError
from tiltyard.methods import ppo, reward_model
from tiltyard.models import load
from tiltyard.models.encoder import EncoderScalar, MaskedModel, is_encoder
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.load_encoder import load_masked_model, masked_from_scratch
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import RewardScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.fit import fit
from tiltyard.training.run import Run
from tiltyard.training.source import Offline, Online
from tiltyard.types import Group, Message, Preference, Prompt, Response

EXACT = 1e-10
FAMILIES = list(encoders.FAMILIES)
ALL = [*FAMILIES, *encoders.ODD]


def corrupted(groups: list[Group], seed: int = 0) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A forest, ids in which some tokens are replaced, and where."""
    forest = pack(groups)
    stream = torch.Generator().manual_seed(seed)
    masked_R = (torch.rand(forest.R, generator=stream) < 0.4).double()
    ids_R = torch.where(masked_R > 0, torch.randint(5, 40, (forest.R,), generator=stream), forest.target_R)
    return forest, ids_R, masked_R


# ------------------------------------------------------------------------------------------ masked language models


@pytest.mark.parametrize("family", ALL)
def test_cloze_is_what_transformers_says_of_each_row_alone(family: str) -> None:
    model = encoders.masked(family)
    assert (model._head is None) == (family == "mobilebert")
    assert not model.packed
    groups = [*encoders.documents(), *encoders.comparisons()]
    forest, ids_R, masked_R = corrupted(groups)
    found_R = model.cloze_logp_R(forest, ids_R, masked_R)
    done = 0
    for ids, start, response in tiny.rows(groups):
        span = slice(done, done + len(response.ids))
        done += len(response.ids)
        seen = torch.tensor([ids[:start] + ids_R[span].tolist()])
        law = torch.log_softmax(model.module(input_ids=seen).logits[0], -1)
        expected = law[torch.arange(start, len(ids)), torch.tensor(response.ids)] * masked_R[span]
        torch.testing.assert_close(found_R[span], expected, atol=EXACT, rtol=EXACT)
    assert done == forest.R


def test_tokens_outside_the_loss_spans_are_context() -> None:
    """Only loss tokens are in R; the others stand in the row as they are, at their own places."""
    model = encoders.masked("bert")
    group = tiny.group(5, 8, spans=((1, 3), (6, 8)), low=5, high=40)
    forest = pack([group])
    ids_R = torch.tensor([4, forest.target_R[1], forest.target_R[2], 4])
    found_R = model.cloze_logp_R(forest, ids_R, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    row = [*group.prompt.ids, *group.responses[0].ids]
    row[6], row[12] = 4, 4
    law = torch.log_softmax(model.module(input_ids=torch.tensor([row])).logits[0], -1)
    nothing = law.new_zeros(())
    expected = [law[6, group.responses[0].ids[1]], nothing, nothing, law[12, group.responses[0].ids[7]]]
    torch.testing.assert_close(found_R, torch.stack(expected), atol=EXACT, rtol=EXACT)


def test_nothing_masked_is_zero_and_carries_no_gradient() -> None:
    model, forest = encoders.masked("bert"), pack(encoders.documents(2))
    found_R = model.cloze_logp_R(forest, forest.target_R, torch.zeros(forest.R))
    assert not found_R.any()
    assert not found_R.requires_grad


def test_bfloat16_and_float32_are_near() -> None:
    forest, ids_R, masked_R = corrupted(encoders.documents())
    exact = encoders.masked("modernbert", initializer_range=0.1).cloze_logp_R(forest, ids_R, masked_R)
    for dtype, gap in (("float32", 1e-4), ("bfloat16", 0.1)):
        found = encoders.masked("modernbert", dtype, initializer_range=0.1).cloze_logp_R(forest, ids_R, masked_R)
        assert found.dtype == torch.float32
        assert (found - exact).abs().max() < gap


def test_from_scratch_is_what_transformers_loads(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(encoders.TEXTS, 300, mask=True)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (masked_from_scratch("1m", tokenizer, seed=s, context=64) for s in (0, 0, 1))
    assert torch.rand(1).equal(expected)
    weights = [m.module.get_input_embeddings().weight for m in (one, same, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    load.save_model(one, tmp_path)
    module = hf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert module.get_input_embeddings().weight.equal(weights[0])
    assert hf.AutoTokenizer.from_pretrained(tmp_path).mask_token_id == one.mask_id == len(tokenizer) - 1
    again = load_masked_model(tmp_path, device="cpu")
    groups = [again.chat.encode_document(Group(Prompt(text=""), (Response(text=t),))) for t in encoders.TEXTS[:2]]
    forest, ids_R, masked_R = corrupted(groups)
    assert again.cloze_logp_R(forest, ids_R, masked_R).equal(one.cloze_logp_R(forest, ids_R, masked_R))
    assert again.chat.max_length == 64


@pytest.mark.parametrize(("preset", "low", "high"), [("1m", 0.8e6, 1.5e6), ("12m", 6e6, 13e6), ("60m", 30e6, 65e6)])
def test_preset_sizes(preset: str, low: float, high: float) -> None:
    """The same sizes as decoders of the same name, with vocabularies of the usual sizes."""
    width, layers, heads, _, inner = load.PRESETS[preset]
    with torch.device("meta"):
        module = hf.ModernBertForMaskedLM(
            hf.ModernBertConfig(
                vocab_size={"1m": 2048, "12m": 16384, "60m": 32768}[preset],
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=inner,
                pad_token_id=0,
            )
        )
    assert low < sum(p.numel() for p in module.parameters()) < high


# ----------------------------------------------------------------------------------------------------- reward models


@pytest.mark.parametrize("family", ALL)
def test_scores_are_what_transformers_says_of_each_row_alone(family: str) -> None:
    model = encoders.scalar(family)
    model.bias = 0.5
    groups = encoders.comparisons()
    found = model.score_B(pack(groups))
    expected = [model.module(input_ids=torch.tensor([ids])).logits[0, 0] - 0.5 for ids, _, _ in tiny.rows(groups)]
    torch.testing.assert_close(found, torch.stack(expected), atol=EXACT, rtol=EXACT)
    assert found.std() > 1e-3
    backwards = model.score_B(pack(list(reversed(groups))))
    sizes = [len(g.responses) for g in reversed(groups)]
    turned = torch.cat(list(reversed(backwards.split(sizes))))
    torch.testing.assert_close(turned, found, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "deberta_v2"])
def test_scores_are_those_of_the_pipeline(family: str, tmp_path: Path) -> None:
    """transformers' own pipeline on the saved folder, fed with text, adds [CLS] and [SEP] where `Chat` does."""
    model = encoders.scalar(family, "float32")
    load.save_model(model, tmp_path)
    classify = hf.pipeline("text-classification", model=str(tmp_path), function_to_apply="none", device="cpu")
    texts = [("what is it ?", "the cat"), ("yes ?", "no , it is so far on the land")]
    groups = [Group(Prompt(messages=(Message("user", a),)), (Response(text=b),)) for a, b in texts]
    again = load.load_scalar_model(tmp_path, device="cpu")
    found = again.score_B(pack(again.chat.encode_groups(groups)))
    for (a, b), score in zip(texts, found.tolist(), strict=True):
        assert classify(f"User:\n{a}\n\nAssistant:\n{b}")[0]["score"] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_model_from_a_masked_model_starts_at_zero(family: str, tmp_path: Path) -> None:
    masked = encoders.masked(family, "float32")
    load.save_model(masked, tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (load.load_scalar_model(tmp_path, device="cpu", seed=s) for s in (0, 0, 1))
    assert torch.rand(1).equal(expected)
    assert isinstance(one, EncoderScalar)
    forest = pack(encoders.comparisons())
    assert not one.score_B(forest).any()
    weights = [dict(m.module.named_parameters()) for m in (one, same, other)]
    assert all(weights[0][n].equal(weights[1][n]) for n in weights[0])
    backbone = dict(masked.module.base_model.named_parameters())
    kept = {n: p for n, p in one.backbone.named_parameters() if "pooler" not in n}
    assert kept.keys() == {n for n in backbone if "pooler" not in n}
    assert all(p.equal(backbone[n]) for n, p in kept.items())
    one.head.weight.data.normal_()
    one.bias = 0.25
    load.save_model(one, tmp_path / "reward")
    again = load.load_scalar_model(tmp_path / "reward", device="cpu")
    assert again.bias == (0.25 if one.head.bias is None else 0.0)  # the shift is in the head where that has a bias
    state = again.module.state_dict()
    assert all(p.equal(state[n]) for n, p in one.module.state_dict().items())
    assert again.score_B(forest).equal(one.score_B(forest))
    plain = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert plain.config.num_labels == 1
    assert getattr(plain.config, "reward_bias", 0.0) == again.bias


def separable(n: int, seed: int) -> list[Group]:
    """The better of two answers says yes somewhere, wherever; the worse one says no."""
    stream = torch.Generator().manual_seed(seed)
    words = ["the", "cat", "sat", "on", "mat", "what", "is", "it", "so", "land", "far"]
    groups = []
    for i in range(n):
        drawn = torch.randint(len(words), (2, 6), generator=stream).tolist()
        place = int(torch.randint(6, (), generator=stream))
        answers = [[words[k] for k in row] for row in drawn]
        answers[0][place], answers[1][place] = "yes", "no"
        prompt = Prompt(messages=(Message("user", "what is it ?"),), id=f"{seed}.{i}")
        groups.append(
            Group(prompt, tuple(Response(text=" ".join(a)) for a in answers), preference=Preference(ranks=(1, 2)))
        )
    return encoders.chat().encode_groups(groups)


@pytest.mark.parametrize("family", ["bert", "modernbert_mean"])
def test_a_reward_model_learns_a_toy(family: str, tmp_path: Path) -> None:
    load.save_model(encoders.masked(family, "float32", initializer_range=0.05), tmp_path)
    model = load.load_scalar_model(tmp_path, device="cpu")
    first: list[float] = []

    class Keep:
        def log(self, step: int, metrics: dict[str, float]) -> None:
            first.append(metrics["loss"])

        def close(self) -> None: ...

    run = Run(steps=80, lr=3e-3, schedule="constant", warmup=0.0)
    fit(reward_model(Offline(separable(200, 0), 16)), Models(reward=model), run, sinks=[Keep()])
    assert first[0] == pytest.approx(0.693147, abs=1e-5)
    with torch.no_grad():
        better, worse = model.score_B(pack(separable(200, 1))).view(-1, 2).T
    assert (better > worse).double().mean() > 0.95


def test_ppo_with_an_encoder_as_reward_model() -> None:
    """Scores of the sampled answers, in the encoder's own tokens; the policy moves."""
    policy = LanguageModel(tiny.causal("llama", vocab_size=512), tiny.chat())
    value = ScalarModel(tiny.classifier("llama", vocab_size=512), tiny.chat())
    reward = encoders.scalar("modernbert", "float32")
    prompts = tiny.chat().encode_prompts([Prompt(messages=(Message("user", t),), id=t) for t in ("yes", "the cat")])
    source = Online(prompts, NativeSampler(), RewardScorer(reward, policy.chat), 2, 2, SampleSettings(max_tokens=6))
    models = Models(policy=policy, ref=load.frozen_copy(policy), reward=reward, value=value)
    groups = source(models, 0).groups
    for group in groups:
        bare = Group(Prompt(messages=group.prompt.messages), tuple(Response(text=r.text) for r in group.responses))
        own = encoders.chat().encode_group(bare)
        for response, made, score in zip(group.responses, own.responses, group.scores or (), strict=True):
            ids = [*own.prompt.ids, *(made.ids if response.finish == "stop" else made.ids[:-1])]
            expected = reward.module(input_ids=torch.tensor([ids])).logits[0, 0].item()
            assert score == pytest.approx(expected, abs=1e-4)
    before = {n: p.detach().clone() for n, p in policy.module.named_parameters()}
    kept = {n: p.detach().clone() for n, p in reward.module.named_parameters()}
    fit(ppo(source, ppo_epochs=1), models, Run(steps=1, lr=1e-2, schedule="constant", warmup=0.0))
    assert any(not p.equal(before[n]) for n, p in policy.module.named_parameters())
    assert all(p.equal(kept[n]) for n, p in reward.module.named_parameters())


def test_one_vocabulary_with_other_ends_is_not_the_same_tokens() -> None:
    """A policy without bos and an encoder with one: the sampled ids would lack what every row of the encoder has."""
    tokenizer = copy.deepcopy(encoders.wordpiece())
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = None, "[SEP]", None
    chat = Chat(tokenizer)
    assert chat.tokenizer.get_vocab() == encoders.wordpiece().get_vocab()
    model = encoders.scalar("bert")
    bare = Group(Prompt(messages=(Message("user", "yes"),)), (Response(text="no"),))
    (scored,) = RewardScorer(model, chat).score([chat.encode_group(bare)])
    expected = model.score_B(pack([encoders.chat().encode_group(bare)])).tolist()
    assert list(scored.scores or ()) == pytest.approx(expected, abs=1e-9)


# ------------------------------------------------------------------------------------------------ tokens and lengths


def test_rows_begin_with_cls_and_end_with_sep() -> None:
    chat, tokenizer = encoders.chat(), encoders.wordpiece()
    group = Group(Prompt(messages=(Message("user", "the cat"),)), (Response(text="yes"),))
    made = chat.encode_group(group)
    expected = tokenizer("User:\nthe cat\n\nAssistant:\nyes")["input_ids"]
    assert [*made.prompt.ids, *made.responses[0].ids] == expected
    document = chat.encode_document(Group(Prompt(text=""), (Response(text="the cat sat"),)))
    assert [*document.prompt.ids, *document.responses[0].ids] == tokenizer("the cat sat")["input_ids"]
    sly = chat.encode_document(Group(Prompt(text=""), (Response(text="the [MASK] [SEP] cat"),)))
    assert tokenizer.mask_token_id not in sly.responses[0].ids
    assert sly.responses[0].ids.count(tokenizer.sep_token_id) == 1


@pytest.mark.parametrize(("family", "longest"), [("bert", 64), ("roberta", 63), ("modernbert", 64)])
def test_the_longest_row_is_known(family: str, longest: int, tmp_path: Path) -> None:
    """RoBERTa's positions begin behind its pad id, so its table holds fewer tokens than it has rows."""
    load.save_model(encoders.scalar(family, "float32"), tmp_path)
    model = load.load_scalar_model(tmp_path, device="cpu")
    assert model.chat.max_length == longest
    assert model.score_B(pack([tiny.group(longest - 5, 5, low=5)])).isfinite().all()


def test_for_causal_models_tokenizers_are_as_before() -> None:
    plain, mask = train_tokenizer(encoders.TEXTS, 299), train_tokenizer(encoders.TEXTS, 300, mask=True)
    vocabulary = mask.get_vocab()
    assert vocabulary.pop("<|mask|>") == len(plain)
    assert vocabulary == plain.get_vocab()
    assert plain.mask_token is None


# ------------------------------------------------------------------------------------------------------------ errors


def test_an_encoder_is_no_value_model_and_no_policy(tmp_path: Path) -> None:
    model, forest = encoders.scalar("bert"), pack(encoders.comparisons())
    for wrong in (model.value_R, lambda f: model.at(f, f.last_B)):
        with pytest.raises(ModelError, match=r"no value before each token(.|\n)*value_init=model"):
            wrong(forest)
    with pytest.raises(ModelError, match=r"cannot stand where a decoder is needed"):
        model.hidden_T(forest)
    with pytest.raises(ModelError, match=r"cannot start as a copy(.|\n)*value_init=model"):
        load.value_from(model)
    load.save_model(encoders.masked("bert", "float32"), tmp_path)
    with pytest.raises(ModelError, match="cannot write"):
        load.load_language_model(tmp_path)


def test_a_decoder_is_no_masked_model(tmp_path: Path) -> None:
    load.save_model(LanguageModel(tiny.causal("llama", vocab_size=512), tiny.chat()), tmp_path)
    assert not is_encoder(hf.AutoConfig.from_pretrained(tmp_path))
    with pytest.raises(ModelError, match="no encoder"):
        load_masked_model(tmp_path)


def test_a_bert_that_is_a_decoder_is_one() -> None:
    assert is_encoder(hf.BertConfig())
    assert not is_encoder(hf.BertConfig(is_decoder=True))
    assert not is_encoder(hf.BartConfig())
    assert is_encoder(hf.BertConfig(architectures=["BertForMaskedLM"]))
    assert not is_encoder(hf.BertConfig(architectures=["BertLMHeadModelForCausalLM"]))


def test_a_tokenizer_without_a_mask_token() -> None:
    tokenizer = train_tokenizer(encoders.TEXTS, 300)
    with pytest.raises(ModelError, match="no mask token"):
        MaskedModel(encoders.module("bert", "MaskedLM", vocab_size=400), Chat(tokenizer))
    mask = Chat(train_tokenizer(encoders.TEXTS, 300, mask=True))
    with pytest.raises(ModelError, match="beyond the vocabulary"):
        MaskedModel(encoders.module("bert", "MaskedLM", vocab_size=100), mask)


def test_incomplete_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    load.save_model(encoders.masked("bert", "float32"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(k for k in weights if "layer.0.attention.self.query.weight" in k)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for loader in (load_masked_model, load.load_scalar_model):
        with pytest.raises(ModelError, match=r"query\.weight"):
            loader(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
