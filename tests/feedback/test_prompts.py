"""What is asked, and how words are read."""

from __future__ import annotations

import pytest

from tiltyard.feedback import Exemplar
from tiltyard.feedback.local import expected_rating, mean_points
from tiltyard.feedback.prompts import pair_question, points_question, read_choice, read_points, read_rating
from tiltyard.feedback.verdicts import response_text
from tiltyard.types import Message, Prompt, Response


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
        ("Score: 3" + " " * 5000 + "end", None),  # not where a judge was told to put it
        ("Score:" * 100_000 + " 2", 2.0),
    ],
)
def test_points(text, points) -> None:
    assert read_points(text) == points


def test_the_mean_is_over_what_can_be_read() -> None:
    assert mean_points(["Score: 2", "?", "Score: 5"]).score == 3.5
    assert mean_points(["?", "Score: 9"]).score is None  # never 0


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("1", 1),
        (" 2.", 2),
        ("**2**", 2),
        ("Response 1", 1),
        ("1 beats 2", None),
        ("12", None),
        ("1.5", None),
        ("", None),
        ("x1", None),
        ("The answer is 2\n", 2),
    ],
)
def test_choices(text, choice) -> None:
    assert read_choice(text) == choice


@pytest.mark.parametrize(
    ("text", "rating"), [("7", 7), ("10", 10), ("7/10", 7), ("**3**", 3), ("0", None), ("11", None), ("7 or 8", None)]
)
def test_ratings(text, rating) -> None:
    assert read_rating(text) == rating


def test_expected_rating() -> None:
    """Uniform labels give 0, certain ones the ends; a constant of the logits does not matter."""
    assert expected_rating([-3.0] * 10) == pytest.approx(0, abs=1e-15)
    assert expected_rating([0.0] + [-1e4] * 9) == -1
    assert expected_rating([-1e4] * 9 + [0.0]) == 1
    law = [0.0] * 10
    law[3], law[6] = 0.25, 0.75  # 4 and 7
    import math

    logits = [math.log(p) - 50 if p else -1e4 for p in law]
    assert expected_rating(logits) == pytest.approx((2 * (4 * 0.25 + 7 * 0.75) - 11) / 9, abs=1e-12)


def test_the_parts_of_a_question_stand_in_order() -> None:
    exemplar = Exemplar(prompt="E?", first="e1", second="e2", better=2)
    prompt = Prompt(messages=(Message("user", "Q?"), Message("assistant", "A."), Message("user", "Q2?")))
    pair = (Response(text="one"), Response(text="two"))
    text = pair_question("Prefer the shorter.", [exemplar], prompt, pair)
    places = [text.index(part) for part in ("Prefer the shorter.", "E?", "e1", "e2", "Response=2", "Q?", "A.", "Q2?")]
    places += [text.index("one", places[-1]), text.index("two", places[-1])]
    assert places == sorted(places)
    assert text.endswith("Preferred Response=")
    assert pair_question("", [], prompt, pair[::-1]).index("two") < pair_question("", [], prompt, pair[::-1]).index(
        "one"
    )
    assert "Score: <points>" in points_question("", prompt, pair[0])


def test_answers_of_several_turns_are_shown_whole() -> None:
    turns = [{"role": r, "content": c} for r, c in (("assistant", "a"), ("user", "b"), ("assistant", "c"))]
    assert response_text(Response(text="a\n\nc", meta={"turns": turns})) == "Assistant: a\n\nUser: b\n\nAssistant: c"
