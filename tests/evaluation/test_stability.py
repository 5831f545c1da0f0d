"""Stability of scores under other wordings and small changes of the text."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import perturb
from tiltyard.evaluation.stability import perturbed, stability, wordings
from tiltyard.types import Group, Message, Preference, Prompt, Response
from tiltyard.world import assistants, gold, make_world
from tiltyard.world.tasks import draw_task

TEXTS = st.text(st.characters(codec="utf-8"), max_size=80)


def group(i: int, *texts: str, ranks: tuple[int, ...] = (1, 2)) -> Group:
    prompt = Prompt(messages=(Message("user", f"Question {i}?"),), id=str(i))
    return Group(prompt, tuple(Response(text=t) for t in texts), preference=Preference(ranks=ranks))


GROUPS = [group(i, "Good answer.", "Bad answer.") for i in range(30)]


def scores(seed: int, groups=GROUPS) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.gauss(0, 1) for _ in g.responses] for g in groups]


def test_scores_that_stay_and_scores_that_do_not():
    before = scores(0)
    same = stability("x", GROUPS, before, before)
    assert same.icc.value == pytest.approx(1)
    assert (same.flips.value, same.shift.value) == (0, 0)
    moved = stability("x", GROUPS, before, [[x + 2 for x in row] for row in before])
    assert moved.flips.value == 0
    assert moved.shift.value > 1
    assert moved.icc.value < 0.7  # an absolute agreement: a shift counts
    other = stability("x", GROUPS, before, scores(1))
    assert abs(other.icc.value) < 0.5
    assert 0.2 < other.flips.value < 0.8
    turned = stability("x", GROUPS, before, [[-x for x in row] for row in before])
    assert turned.flips.value == 1
    assert turned.accuracy.value == pytest.approx(1 - same.accuracy.value)
    assert set(turned.to_dict()) == {
        "icc",
        "icc_ci",
        "flips",
        "flips_ci",
        "accuracy",
        "accuracy_ci",
        "shift",
        "shift_ci",
        "pairs",
    }


def test_a_tie_is_half_a_flip():
    one = [group(0, "a", "b")]
    assert stability("x", one, [[1.0, 0.0]], [[0.0, 0.0]]).flips.value == 0.5
    assert stability("x", one, [[0.0, 0.0]], [[0.0, 0.0]]).flips.value == 0


def test_wordings_are_responses_of_equal_rank():
    groups = [group(i, "a", "b", "c", "d", ranks=(1, 1, 2, 2)) for i in range(20)]
    found = wordings(groups, [[2.0, 2.0, 0.0, 0.0]] * 20)
    assert found.icc.value == pytest.approx(1)
    assert (found.flips.value, found.accuracy.value, found.shift) == (0, 1, None)
    mixed = wordings(groups, [[2.0, -1.0, 0.0, 0.0]] * 20)  # one wording of two below both of the worse answer
    assert mixed.flips.value == mixed.accuracy.value == 0.5
    assert "shift" not in mixed.to_dict()
    assert wordings(GROUPS, scores(0)) is None


def test_only_what_is_named_is_changed():
    (first,) = perturbed(GROUPS[:1], "prompt_greeting")
    assert first.prompt.messages[-1].content == "Hello! Question 0?"
    assert [r.text for r in first.responses] == ["Good answer.", "Bad answer."]
    (second,) = perturbed(GROUPS[:1], "response_lower_case")
    assert second.prompt == GROUPS[0].prompt
    assert [r.text for r in second.responses] == ["good answer.", "bad answer."]
    plain = replace(GROUPS[0], prompt=Prompt(text="Once"))
    assert perturbed([plain], "prompt_polite")[0].prompt.text == "Please: Once"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TEXTS, st.sampled_from(sorted({*perturb.PROMPT.values(), *perturb.RESPONSE.values()}, key=lambda f: f.__name__)))
def test_changes_keep_what_they_should(text, change):
    """The same change each time; nothing but case, spaces, an end mark, a lead, or two letters."""
    found = change(text)
    assert change(text) == found
    if change is perturb.typo:
        assert sorted(found) == sorted(text)
        assert sum(a != b for a, b in zip(found, text, strict=True)) in (0, 2)
    elif change is perturb.double_spaces:
        assert found.split() == text.split()
    elif change is perturb.no_full_stop:
        assert text.startswith(found)
    elif change is not perturb.lower_case:
        assert found.endswith(text)


def test_changes_of_a_sentence():
    assert perturb.no_full_stop("Yes, it is. ") == "Yes, it is"
    assert perturb.double_spaces("a b  c") == "a  b  c"
    assert perturb.typo("I am") == "I am"
    assert perturb.typo("Oakford") != "Oakford"


def test_wordings_of_the_world():
    """The right ones are right and the wrong ones wrong, by gold; their wordings differ."""
    world, rng, seen = make_world(0), random.Random(0), 0
    for _ in range(200):
        meta = draw_task(world.known, world.strangers["prompts"], rng).meta
        right, wrong = assistants.wordings(meta, 4, rng)
        assert len(set(right)) == len(right) <= 4
        assert not set(right) & set(wrong)
        if meta["kind"] == "question" and meta["form"] != "check":
            assert all(gold(meta, text).total > 0.7 for text in right)
            assert all(gold(meta, text).total < 0.2 for text in wrong)
            seen += 1
    assert seen > 20
    json.dumps(right)
