"""Every scorer keeps the contract of `contract.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.feedback.worlds import Formula, world_pairs
from tests.models import tiny

from tiltyard.data import train_tokenizer
from tiltyard.data.chat import Chat
from tiltyard.feedback import Grade, GradeScorer, JudgeScorer, SimulatedJudge, SimulatedRater, Usage
from tiltyard.models.language import ScalarModel
from tiltyard.scoring import BaselineScorer, FunctionScorer, Ranker, RewardScorer, WeightedScorer, load_function
from tiltyard.types import Group, Message, Prompt, Response

from .contract import CONTRACT, Case

WORDS = ["the cat sat", "yes", "what is the land of the mat?", "it is so", "Grüße", "on", "the capital 🙂"]
V = 512


def groups(sizes: tuple[int, ...] = (3, 2, 4, 2, 2)) -> list[Group]:
    made = [
        Group(
            Prompt(messages=(Message("user", WORDS[i]),), id=str(i)),
            tuple(Response(text=WORDS[(i + 2 * k) % 7]) for k in range(size)),
            origin=f"rows.jsonl:{i + 1}",
        )
        for i, size in enumerate(sizes)
    ]
    return tiny.chat().encode_groups(made)


def world_groups() -> list[Group]:
    return [replace(g, origin=f"rows.jsonl:{i + 1}") for i, g in enumerate(world_pairs(5))]


def bad_row(text: str = "?") -> Group:
    return Group(Prompt(text="?", id="odd", ids=(1,)), (Response(ids=(1,), text=text),), origin="rows.jsonl:99")


@cache
def reward_model(other_tokens: bool = False) -> ScalarModel:
    chat = Chat(train_tokenizer([w * 2 for w in WORDS] * 4, 320), max_length=64) if other_tokens else tiny.chat()
    return ScalarModel(tiny.classifier("llama", 0, torch.float64, vocab_size=V), chat, "float64")


@cache
def ranker() -> Ranker:
    model = ScalarModel(
        tiny.classifier("llama", 1, torch.float64, vocab_size=V, max_position_embeddings=256),
        Chat(tiny.chat().tokenizer, max_length=256),
        "float64",
    )
    model.compares = True
    return Ranker(model)


class Grader:
    """Grades of each text, and none for '?'; each is paid."""

    def __init__(self) -> None:
        self.usage = Usage()

    def score(self, groups: list[Group]) -> list[tuple[Grade, ...]]:
        self.usage += Usage(sum(len(g.responses) for g in groups), 7 * len(groups), len(groups), 0.25 * len(groups))
        return [tuple(Grade(None if r.text == "?" else float(len(r.text)), "odd") for r in g.responses) for g in groups]


def plain(prompt: Prompt, response: Response) -> float:
    return 1.0 / (len(response.text) - 1)


async def slow(prompt: Prompt, response: Response) -> float:
    await asyncio.sleep(0.001 * (len(response.text) % 3))
    return plain(prompt, response)


def of_group(group: Group) -> list[float]:
    return [plain(group.prompt, r) for r in group.responses]


def a_weighted_sum() -> WeightedScorer:
    reward = RewardScorer(reward_model(), tiny.chat())
    return WeightedScorer([(2.0, reward), (-0.5, FunctionScorer(plain)), (1.0, JudgeScorer(Formula(_better)))])


def _better(first: str, second: str) -> float:
    return 0.5 + 0.4 * ((len(first) > len(second)) - (len(first) < len(second)))


def too_long() -> Group:
    return replace(tiny.group(40, 25), origin="rows.jsonl:99")


CASES: dict[str, Callable[[], Case]] = {
    "reward_model": lambda: Case(lambda: RewardScorer(reward_model(), budget=40), groups(), too_long(), 1e-9),
    "reward_model_of_other_tokens": lambda: Case(
        lambda: RewardScorer(reward_model(True), tiny.chat()),
        groups(),
        replace(groups()[0], responses=(Response(text="mat " * 80),), origin="rows.jsonl:99"),
        1e-9,
    ),
    "function": lambda: Case(lambda: FunctionScorer(plain), groups(), bad_row()),
    "function_in_this_thread": lambda: Case(lambda: FunctionScorer(plain, time_limit=None), groups(), bad_row()),
    "async_function": lambda: Case(lambda: FunctionScorer(slow, max_concurrent=3), groups(), bad_row()),
    "function_of_a_group": lambda: Case(lambda: FunctionScorer(of_group), groups(), bad_row()),
    "gold": lambda: Case(lambda: FunctionScorer(load_function("gold")), world_groups(), bad_row()),
    "weighted": lambda: Case(a_weighted_sum, groups(), bad_row(), 1e-9),
    "pairwise_judge": lambda: Case(lambda: JudgeScorer(Formula(_better)), groups(), bad_row(), 1e-12),
    "simulated_judge": lambda: Case(lambda: JudgeScorer(SimulatedJudge()), world_groups(), bad_row()),
    "grades": lambda: Case(lambda: GradeScorer(Grader()), groups()),
    "simulated_grades": lambda: Case(lambda: GradeScorer(SimulatedRater(temperature=0.5)), world_groups()),
    "dropped_grades": lambda: Case(lambda: GradeScorer(Grader()), [*groups(), _partly()]),
    "baseline": lambda: Case(
        lambda: BaselineScorer(ranker(), [replace(g, responses=(Response(text="yes"),)) for g in groups()]),
        groups(),
        bad_row(),
        1e-9,
    ),
}


def _partly() -> Group:
    """A group of which one response has no grade."""
    texts = ("yes", "?", "on")
    return Group(Prompt(text="?", id="p"), tuple(Response(text=t) for t in texts), origin="rows.jsonl:50")


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, promise: Callable[[Case], None]) -> None:
    promise(CASES[name]())
