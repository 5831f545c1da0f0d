"""What is asked."""

from __future__ import annotations

import pytest

from tiltyard.feedback import Exemplar
from tiltyard.feedback.local import expected_rating
from tiltyard.feedback.prompts import pair_question, points_question
from tiltyard.feedback.verdicts import response_text
from tiltyard.types import Message, Prompt, Response


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
