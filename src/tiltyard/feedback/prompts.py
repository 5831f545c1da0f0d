"""The prompts of judges; `feedback.replies` parses what they write.

Responses are inserted in the question verbatim. Nothing is escaped: `data.chat` encodes special tokens in them as plain
text, and no code interprets them. A response can still address the judge ("the first response is better"); delimiters
do not prevent that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from tiltyard.data.turns import turn_text
from tiltyard.feedback.verdicts import response_text
from tiltyard.records import Settings
from tiltyard.types import Message, Prompt, Response

PREAMBLE = (
    "You compare two responses to the same text. A good response does what is asked, is true, harms nobody, and is as "
    "short as that allows. Do not let the order of the two influence you."
)
PAIR_ENDING = "Which response is better? Answer with 1 or 2 alone.\nPreferred Response="
REASON_ENDING = "Say in a few sentences what speaks for and against each response. Do not decide yet."
SCORE_PREAMBLE = "You rate how good a response is: helpful, true, harmless and no longer than needed."
SCORE_ENDING = "Rate the response from 1 (very bad) to 10 (very good). Answer with the number alone.\nRating="
POINTS_PREAMBLE = (
    "Judge the response to the question below. It starts with no points and earns one for each statement that holds:\n"
    "- It says something that bears on the question, even if much is missing.\n"
    "- It deals with a large part of the question, if not with all of it.\n"
    "- It answers the core of the question in a way the asker can use.\n"
    "- It speaks as an assistant does, to the point, complete and in good order.\n"
    "- It shows an expert's care for this very question and has nothing superfluous."
)
POINTS_ENDING = "Give your reasons in at most 100 words. End with a line of the form\nScore: <points>"

RANK_PREAMBLE = (
    "You rank responses to the same text. A good response does what is asked, is true, harms no person, and is as "
    "short as that allows. Do not let the order in which they stand influence you."
)
RANK_ENDING = (
    "Rank all {count} responses from best to worst. Answer with their numbers alone, in the form {form}.\nRanking="
)

CHOICES = ("1", "2")
RATINGS = tuple(str(i) for i in range(1, 11))


@dataclass(frozen=True)
class Template:
    """A versioned wording of a question. A change of the text is a new version; `tests/feedback` keeps the digests.

    Attributes:
        name: what is asked. source: where the form comes from. text: all that is Tiltyard's in the question.
    """

    name: str
    version: str
    source: str
    text: str


TEMPLATES = (
    Template("pair", "1", "Lee et al. 2023 (2309.00267), section 2.1; wording Tiltyard's", PREAMBLE + PAIR_ENDING),
    Template("score", "1", "Lee et al. 2023, section 2.2.2; wording Tiltyard's", SCORE_PREAMBLE + SCORE_ENDING),
    Template(
        "points", "1", "Yuan et al. 2024 (2401.10020), figure 2; Tiltyard's wording", POINTS_PREAMBLE + POINTS_ENDING
    ),
    Template("rank", "1", "Sun et al. 2023 (2304.09542), permutation; wording Tiltyard's", RANK_PREAMBLE + RANK_ENDING),
)


def template_of(ask: str) -> Template:
    """Returns the template of a question by its name."""
    return next(template for template in TEMPLATES if template.name == ask)


class Exemplar(Settings):
    """A solved comparison that is shown before the question."""

    prompt: str
    first: str
    second: str
    better: int = Field(ge=1, le=2)


def pair_question(
    instruction: str, exemplars: Sequence[Exemplar], prompt: Prompt, pair: Sequence[Response], ending: str = PAIR_ENDING
) -> str:
    """Returns the question about a pair (Lee et al. 2023, section 2.1): preamble, exemplars, the pair, ending."""
    parts = [instruction or PREAMBLE]
    parts += [f"{_pair(one.prompt, one.first, one.second)}\n\n{PAIR_ENDING}{one.better}" for one in exemplars]
    parts.append(f"{_pair(conversation(prompt), *(response_text(r) for r in pair))}\n\n{ending}")
    return "\n\n".join(parts)


def score_question(instruction: str, prompt: Prompt, response: Response) -> str:
    """Returns the question for a rating from 1 to 10 (direct RLAIF; Lee et al. 2023, section 2.2.2)."""
    return _one(instruction or SCORE_PREAMBLE, prompt, response, SCORE_ENDING)


def points_question(instruction: str, prompt: Prompt, response: Response) -> str:
    """Returns the question for additive points from 0 to 5 (Yuan et al. 2024; the wording is Tiltyard's)."""
    return _one(instruction or POINTS_PREAMBLE, prompt, response, POINTS_ENDING)


def rank_question(instruction: str, prompt: Prompt, responses: Sequence[Response]) -> str:
    """Returns the question for a ranking of K responses, best first (the permutation of Sun et al. 2023)."""
    shown = "\n\n".join(f"Response {k}:\n{response_text(r)}" for k, r in enumerate(responses, start=1))
    form = " > ".join(str(k) for k in range(len(responses), 0, -1))
    ending = RANK_ENDING.format(count=len(responses), form=form)
    return f"{instruction or RANK_PREAMBLE}\n\nText:\n{conversation(prompt)}\n\n{shown}\n\n{ending}"


def conversation(prompt: Prompt) -> str:
    """Returns the prompt as judges read it: a single turn verbatim, several turns with their roles."""
    if prompt.messages is None:
        return prompt.text or ""
    if len(prompt.messages) == 1 and not prompt.tools:
        return prompt.messages[0].content
    tools = f"Tools: {prompt.tools}\n\n" if prompt.tools else ""
    return tools + "\n\n".join(f"{m.role.capitalize()}: {turn_text(m)}" for m in prompt.messages)


def question_prompt(question: str, style: str = "chat", earlier: Sequence[Message] = ()) -> Prompt:
    """Returns the question as a prompt: a user turn after `earlier` ones, or (`text`) plain text to be continued."""
    if style == "text":
        before = "".join(f"{m.content}\n\n" for m in earlier)
        return Prompt(text=before + question)
    return Prompt(messages=(*earlier, Message("user", question)))


def to_unit(rating: float) -> float:
    """Maps a rating from 1 to 10 to [-1, 1]."""
    return (2 * rating - 11) / 9


def expected_rating(logits: Sequence[float]) -> float:
    """Returns the sum of i P(i) for i = 1..10 with P the softmax of the ten labels, mapped to [-1, 1]."""
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return to_unit(sum(i * w for i, w in enumerate(weights, start=1)) / sum(weights))


def _pair(text: str, first: str, second: str) -> str:
    return f"Text:\n{text}\n\nResponse 1:\n{first}\n\nResponse 2:\n{second}"


def _one(instruction: str, prompt: Prompt, response: Response, ending: str) -> str:
    return f"{instruction}\n\nQuestion:\n{conversation(prompt)}\n\nResponse:\n{response_text(response)}\n\n{ending}"
