"""Scores and log-probs do not depend on what shares the batch: one response at a time against eight together."""

from collections.abc import Callable

import pytest
import torch

from tiltyard.data.chat import Chat
from tiltyard.evaluation.before_after import each_logp
from tiltyard.feedback import ModelJudge, ModelScoreJudge
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.scoring import Ranker, RewardScorer
from tiltyard.types import Group, Message, Prompt, Response

from . import tiny

FAMILIES = ("llama", "gpt2")


def groups():
    return [tiny.group(3 + i, 2 + i % 4, seed=i) for i in range(8)]


def scored(family: str, dtype: str, budget: int) -> torch.Tensor:
    model = tiny.scalar(family, dtype)
    torch.manual_seed(0)
    model.head.weight.data.normal_()
    return torch.tensor([s for g in RewardScorer(model, budget=budget).score(groups()) for s in g.scores or ()])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_one_has_the_scores_of_a_batch_of_eight(family: str) -> None:
    alone, together = scored(family, "float32", 1), scored(family, "float32", 10_000)
    assert together.std() > 0.01
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    half = (scored(family, "bfloat16", 1) - scored(family, "bfloat16", 10_000)).abs().max()
    print(f"{family}: drift of a score in bfloat16 {half:.3g}, standard deviation {together.std():.3g}")
    assert half < together.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_one_has_the_log_probs_of_a_batch_of_eight(family: str) -> None:
    def logps(dtype: str, budget: int) -> torch.Tensor:
        found = each_logp(tiny.language(family, dtype), groups(), budget)
        return torch.tensor([logp for of_group in found for logp, _ in of_group])

    torch.testing.assert_close(logps("float32", 1), logps("float32", 10_000), atol=1e-5, rtol=0)
    half = (logps("bfloat16", 1) - logps("bfloat16", 10_000)).abs().max()
    print(f"{family}: drift of a log-prob in bfloat16 {half:.3g}")


WORDS = (
    "the cat sat",
    "yes",
    "on the mat, so it is",
    "what is the land?",
    "it is so",
    "that is the capital",
    "東京 🙂",
    "no",
)


def asked(i: int, *texts: str) -> Group:
    question = f"what is {WORDS[-1 - i]} {'the cat sat on the mat ' * (i % 3)}?"
    return Group(Prompt(messages=(Message("user", question),), id=f"{i}"), tuple(Response(text=t) for t in texts))


PAIRS = [asked(i, WORDS[i], WORDS[(i + 3) % 8]) for i in range(8)]


def chat() -> Chat:
    return Chat(tiny.chat().tokenizer, max_length=2048)


def language(dtype: str) -> LanguageModel:
    return LanguageModel(tiny.causal("llama", vocab_size=300, max_position_embeddings=2048), chat(), dtype)


def pair_judge(dtype: str, budget: int) -> list[float]:
    verdicts = ModelJudge(language(dtype), budget=budget)(PAIRS)
    return [v.p for v in verdicts if v.p is not None]


def score_judge(dtype: str, budget: int) -> list[float]:
    return [g.score for of in ModelScoreJudge(language(dtype), budget=budget).score(PAIRS) for g in of]


def choices(dtype: str, budget: int) -> list[float]:
    model = language(dtype)
    items = [Group(Prompt(text=f"Question: {g.prompt.id}?\nAnswer:"), g.responses) for g in PAIRS]
    return [logp for of in each_logp(model, model.chat.encode_continuations(items), budget) for logp, _ in of]


def documents(dtype: str, budget: int) -> list[float]:
    model = language(dtype)
    texts = [Group(Prompt(text=""), (Response(text=f"{word} " * (1 + i)),)) for i, word in enumerate(WORDS)]
    pieces = [piece for some in model.chat.encode_documents(texts, 32) for piece in some]
    return [logp for of in each_logp(model, pieces, budget) for logp, _ in of]


def ranker(dtype: str, budget: int) -> list[float]:
    model = ScalarModel(tiny.classifier("llama", vocab_size=300, max_position_embeddings=2048), chat(), dtype)
    model.compares = True
    return Ranker(model, budget)(PAIRS)


@pytest.mark.parametrize("scorer", [pair_judge, score_judge, choices, documents, ranker])
def test_every_other_scorer_too(scorer: Callable[[str, int], list[float]]) -> None:
    alone, together = (torch.tensor(scorer("float32", budget)) for budget in (1, 100_000))
    assert len(together) >= 8
    assert together.std() > 0
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-6)
    half = (torch.tensor(scorer("bfloat16", 1)) - torch.tensor(scorer("bfloat16", 100_000))).abs().max()
    print(f"{scorer.__name__}: drift in bfloat16 {half:.3g}, standard deviation {together.std():.3g}")
