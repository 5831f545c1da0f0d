"""What a judge wrote, read as a verdict, and what is none."""

from __future__ import annotations

import time

import pytest

from tiltyard.feedback import Grade
from tiltyard.feedback.local import mean_points, read_sample
from tiltyard.feedback.replies import answer_part, read_choice, read_points, read_rating


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("It helps.\nScore: 4", 4.0),
        ("Score: 3 at first sight.\nBut then: Score: 5", 5.0),
        ("score:2.5.", 2.5),
        ("Score: **3**", 3.0),
        ("Score: <4>", 4.0),
        ("Score: 0", 0.0),
        ("no verdict", None),
        ("", None),
        ("Score: 5/5", None),
        ("Score: 6", None),
        ("Score: 45", None),
        ("Score: -1", None),
        ("Score: four", None),
        ("Score: 4%", None),
        ("Score: 4.5.6", None),
        ("Score: 3\nScore: none", None),  # the last one counts, not the last that fits
        ("Score: 4 points.", 4.0),
        ("**Score: 4 out of 5**", 4.0),
        ("Score: 2 so far", None),  # mentioned on the way
        ("<think>Score: 1</think>Well.\nScore: 3", 3.0),
        ("<think>Score: 1", None),
        ("Score: 3" + " " * 5000 + "end", None),  # not where a judge was told to put it
        ("Score:" * 100_000 + " 2", 2.0),
    ],
)
def test_points(text, points) -> None:
    assert read_points(text) == points


def test_the_mean_is_over_what_can_be_read() -> None:
    def mean(*texts: str, cut: bool = False) -> Grade:
        return mean_points([read_sample(text, cut=cut) for text in texts])

    assert mean("Score: 2", "?", "Score: 5") == Grade(3.5, texts=("Score: 2", "?", "Score: 5"), points=(2.0, None, 5.0))
    assert (mean("?", "Score: 9").score, mean("?").cause) == (None, "unreadable")  # never 0
    assert (mean("At least Score: 2", cut=True).score, mean("Score: 4", cut=True).cause) == (None, "cut")


CHOSEN = (
    "{0}",
    " {0}.",
    "**{0}**",
    "[[{0}]]",
    "({0})",
    "### {0}",
    "> {0}",
    "Response {0}",
    "**Response {0}**",
    "Answer: {0}",
    "Preferred Response={0}",
    "Preferred Response: {0}",
    "The answer is {0}\n",
    "The better response is Response {0}.",
    "My final verdict is: [[{0}]]",
    "I prefer response {0}.",
    "I would choose {0}.",
    "Response {0} is better.",
    "Response {0} is clearly the better response.",
    "Response {0} is slightly better than Response {1}.",
    "Response {0} is better because it is shorter.",
    "So the better one is Response {0}.",
    "Response {1} repeats itself.\n\n**Preferred Response: {0}**",
    "{0}\n\nResponse {1} is verbose, but it is not wrong.",
    "Response {0} is better. It is true and short.",
    "$\\boxed{{{0}}}$",
    "<answer>{0}</answer>",
    '{{"preferred": {0}}}',
    "<think>\nResponse {1} is better.\n</think>\n\n{0}",
    "Response {1}? Hmm. </think> {0}",  # the template began the reasoning
    "[THINK]{1}[/THINK]{0}",
    "<|channel|>analysis<|message|>{1}<|end|><|start|>assistant<|channel|>final<|message|>{0}<|return|>",
)
NOT_CHOSEN = (
    "",
    "Tie",
    "Both.",
    "x{0}",
    "{0}{1}",
    "-{0}",
    "{0}.5",
    "{0}?",
    "{0} or {1}",
    "{0}/{1}",
    "{0}\n{1}",
    "{0} beats {1}",
    "Not {0}.",
    "Neither {0} nor {1}.",
    "{0}. Let me compare them.",  # the number of a list
    "Step {0}",
    "Score: {0}",
    "Response {0} is longer.",
    "Response {0} is the worse of the two.",
    "Response {0} is not better.",
    "Is Response {0} better?",
    "Response {0} is better, but {1} is true.",
    "Response {0} is better. No wait, the other one is.",
    "{0}\n\nWait, the other one.",
    "I cannot choose {0}.",
    "Rate limit exceeded, please try again in {0} minute.",
    "Error {0}: the request took too long",
    "<think>\nResponse {0} repeats itself.\n</think>\n\nThe other one is better.",
    "<think>\nOkay. Response {0} says something and it has an error in",
    "<think>{0}",
    "<|channel|>analysis<|message|>{0}",
)


@pytest.mark.parametrize("form", CHOSEN)
def test_a_choice_is_read_in_the_forms_of_judges(form) -> None:
    assert [read_choice(form.format(*labels)) for labels in ((1, 2), (2, 1))] == [1, 2]


@pytest.mark.parametrize("form", NOT_CHOSEN)
def test_a_mention_is_no_choice(form) -> None:
    assert [read_choice(form.format(*labels)) for labels in ((1, 2), (2, 1))] == [None, None]


def test_digits_of_other_scripts_and_ordinals() -> None:
    assert (read_choice("\uff11"), read_choice("\uff12.")) == (1, 2)
    assert (read_choice("The first response is better."), read_choice("The second one is preferred.")) == (1, 2)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("7", 7),
        ("10", 10),
        ("7/10", 7),
        ("**3**", 3),
        ("Rating: 7", 7),
        ("Rating=8", 8),
        ("<think>3?</think> 9", 9),
        ("0", None),
        ("11", None),
        ("7 or 8", None),
        ("7 of the claims are wrong", None),
        ("I would give it a seven.", None),
        ("<think>3", None),
    ],
)
def test_ratings(text, rating) -> None:
    assert read_rating(text) == rating


def test_the_answer_is_what_follows_the_reasoning() -> None:
    assert answer_part("a") == "a"
    assert answer_part("<think>a</think>b") == "b"
    assert answer_part("<think>a</think>b<think>c") is None
    assert answer_part("<THINKING>a") is None


LONG = ("1 ", "<think>", "</think>", "the ", "a. ", "[", " ", "\\boxed{", "i prefer ", "1\n", "response ", "Score:")


@pytest.mark.parametrize("text", LONG)
def test_reading_takes_no_time_whatever_is_written(text) -> None:
    begun = time.process_time()
    for one in (text * 100_000, text * 300 + "1"):
        read_choice(one), read_points(one), read_rating(one)
    assert time.process_time() - begun < 1.0
