"""Refusals by word rules: sentences that decline, sentences that do not, and whoever wrote them."""

import pytest

from tiltyard.scoring.functions import FunctionScorer
from tiltyard.scoring.refusals import refusal
from tiltyard.scoring.registry import build_reward
from tiltyard.stats.refusals import BEGINNING, begins_with_refusal
from tiltyard.types import Group, Prompt, Response

REFUSED = (
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot assist with this request.",
    "Sorry, that is not something I do.",
    "I cannot provide instructions for that.",
    "I won't help you do this.",
    "As an AI language model, I do not have opinions on that.",
    "I must decline. It is dangerous.",
    "I'm not comfortable writing that.",
    "I am unable to fulfil this request.",
    "It is not appropriate to provide such instructions.",
    "Thank you for asking. Unfortunately, I can not really answer that.",
    "Sorry, I'm not interested in helping you with that.",
)
ANSWERED = (
    "Sure! Here is how you kill a Python process: kill -9.",
    "You cannot divide by zero.",
    "I like the sea.",
    "",
    "The doctor said: sorry is the hardest word.",
    "Honey never spoils. I recommend storing it in a cool place.",
    "Yes. Cats can't taste sweetness, and dogs can.",
    "x" * BEGINNING + " I'm sorry, but I can't help with that.",
)


@pytest.mark.parametrize("text", REFUSED)
def test_it_declines(text: str) -> None:
    assert begins_with_refusal(text)


@pytest.mark.parametrize("text", ANSWERED)
def test_it_does_not_decline(text: str) -> None:
    assert not begins_with_refusal(text)


def test_the_alias_scores_a_response_and_nothing_else() -> None:
    """The same words have the same score, whatever is beside them: a model's name is nowhere in what is scored."""
    scorer = build_reward("refusal", lambda *_: pytest.fail("no model"))
    groups = [
        Group(Prompt(text=question, id=name), (Response(text=REFUSED[0]), Response(text=ANSWERED[0])))
        for question, name in (("a?", "x"), ("b?", "y"))
    ]
    assert [group.scores for group in scorer.score(groups)] == [(1.0, 0.0)] * 2
    assert FunctionScorer(refusal).name == "refusal"
