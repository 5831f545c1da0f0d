"""Scorers give each response its own number, in order, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.data import train_tokenizer
from tiltyard.data.chat import Chat
from tiltyard.errors import ConfigError, DataError, ScoringError
from tiltyard.models.language import ScalarModel
from tiltyard.scoring import FunctionScorer, RewardScorer, WeightedScorer
from tiltyard.types import Group, Message, Prompt, Response

from .stubs import Scripted

V = 512


def _reward(chat: Chat | None = None) -> ScalarModel:
    model = ScalarModel(tiny.classifier("llama", vocab_size=V), chat or tiny.chat())
    model.bias = 0.5
    return model


def _groups() -> list[Group]:
    words = ["the cat sat", "yes", "what is the land of the mat?", "it is so", "Grüße", "on", "the capital 🙂"]
    groups = [
        Group(
            Prompt(messages=(Message("user", words[i % 7]),), id=str(i)),
            tuple(Response(text=words[(i + k) % 7]) for k in range(1 + i % 3)),
            origin=f"file:{i}",
        )
        for i in range(7)
    ]
    return tiny.chat().encode_groups(groups)


@pytest.mark.parametrize("budget", [1, 40, 16384])
@pytest.mark.parametrize("chat", [None, tiny.chat()])
def test_reward_scores_are_direct_scores_in_order(budget: int, chat: Chat | None) -> None:
    model, groups = _reward(), _groups()
    oracle = tiny.classifier("llama", vocab_size=V)
    scored = RewardScorer(model, chat, budget=budget).score(groups)
    assert [replace(g, scores=None) for g in scored] == groups
    for group in scored:
        for score, (ids, _, _) in zip(group.scores or (), tiny.rows([group]), strict=True):
            with torch.no_grad():
                expected = oracle(input_ids=torch.tensor([ids])).logits[0, 0].item() - 0.5
            assert score == pytest.approx(expected, abs=1e-5)


def test_other_tokenizer_is_rendered_again() -> None:
    texts = ["entirely other words make entirely other tokens", "mat capital land so it is yes"] * 4
    other = Chat(train_tokenizer(texts, 320), max_length=64)
    model, groups = _reward(other), _groups()
    scored = RewardScorer(model, tiny.chat()).score(groups)
    assert [replace(g, scores=None) for g in scored] == groups  # the sampled ids stay what is trained on
    fresh = other.encode_groups(
        [Group(Prompt(messages=g.prompt.messages), tuple(Response(text=r.text) for r in g.responses)) for g in groups]
    )
    assert fresh[0].prompt.ids != groups[0].prompt.ids
    with torch.no_grad():
        expected = model.score_B(pack(fresh)).tolist()
    assert [s for g in scored for s in g.scores or ()] == pytest.approx(expected, abs=1e-5)


def test_reward_scorer_is_in_evaluation_mode_and_leaves_the_mode() -> None:
    model = ScalarModel(tiny.classifier("gpt2", vocab_size=V), tiny.chat())
    calm = [g.scores for g in RewardScorer(model).score(_groups())]
    model.module.train()  # GPT-2 has dropout
    assert [g.scores for g in RewardScorer(model).score(_groups())] == calm
    assert model.module.training


def test_reward_scorer_of_nothing() -> None:
    assert RewardScorer(_reward()).score([]) == []


def test_rule_scorer() -> None:
    groups = _groups()
    scored = FunctionScorer(lambda prompt, response: len(response.text) - len(prompt.ids)).score(groups)
    assert [g.scores for g in scored] == [
        tuple(float(len(r.text) - len(g.prompt.ids)) for r in g.responses) for g in groups
    ]


@pytest.mark.parametrize("bad", ["good", float("nan")])
def test_rule_that_gives_no_number(bad) -> None:
    with pytest.raises(ScoringError, match="file:0"):
        FunctionScorer(lambda prompt, response: bad).score(_groups())


def test_weighted_scorer_is_the_weighted_sum() -> None:
    groups = _groups()
    length = FunctionScorer(lambda prompt, response: len(response.text))
    reward = RewardScorer(_reward())
    both = WeightedScorer([(2.0, reward), (-0.25, length)]).score(groups)
    for total, one, other in zip(both, reward.score(groups), length.score(groups), strict=True):
        expected = [2 * a - 0.25 * b for a, b in zip(one.scores or (), other.scores or (), strict=True)]
        assert total.scores == pytest.approx(expected)
    with pytest.raises(ConfigError, match="at least one"):
        WeightedScorer([])


def test_weighted_scorer_does_not_lose_a_missing_score() -> None:
    with pytest.raises(ScoringError, match="no score"):
        WeightedScorer([(1.0, Scripted(lambda groups: groups))]).score(_groups())


def test_an_answer_that_was_cut_off_stays_cut_off() -> None:
    other = Chat(train_tokenizer(["entirely other words"] * 4, 300), max_length=64)
    model, seen = _reward(other), []
    model.score_B = lambda forest: (seen.append(forest), torch.zeros(forest.B))[1]
    group = _groups()[1]
    cut = replace(group, responses=tuple(replace(r, finish="length") for r in group.responses))
    scorer = RewardScorer(model, tiny.chat())
    for g in (group, cut):
        scorer.score([g])
    whole, short = seen
    assert torch.equal(short.length_B, whole.length_B - 1)
    assert (whole.ids_T[whole.last_B] == other.eos_id).all()
    assert not (short.ids_T[short.last_B] == other.eos_id).any()


def test_too_long_for_the_reward_model() -> None:
    with pytest.raises(DataError, match="longer than the reward model's context"):
        RewardScorer(_reward()).score([tiny.group(40, 25)])


def test_tokenizers_are_compared_once(monkeypatch) -> None:
    from tiltyard.scoring import reward_model

    calls: list[int] = []
    real = reward_model.same_tokens
    monkeypatch.setattr(reward_model, "same_tokens", lambda a, b: (calls.append(1), real(a, b))[1])
    scorer = RewardScorer(_reward(), Chat(tiny.chat().tokenizer))
    for _ in range(3):
        scorer.score(_groups())
    assert len(calls) == 1
