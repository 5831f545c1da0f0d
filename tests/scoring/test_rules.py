"""Rules: each on texts made by hand, on no text and on a huge one; what is refused; how they are named in a reward."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tiltyard.errors import ConfigError, DataError, ScoringError
from tiltyard.scoring import (
    FunctionScorer,
    Rule,
    RuleFunction,
    WeightedScorer,
    build_reward,
    check_prompts,
    is_function,
    reward_parts,
)
from tiltyard.scoring.base import scorer_metrics
from tiltyard.scoring.texts import NUMBERS, contains_word, final_number, nesting, normalized, repetition
from tiltyard.types import Group, Prompt, Response

ROW = {"answer": "6 times 7: #### 42", "city": ["Paris", "Paname"], "count": 1234.5, "size": -3}

# (wishes, texts that keep them, texts that break them)
CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"max_words": 3}, ["", "a b c", " a\n\tb  c "], ["a b c d"]),
    ({"min_words": 2}, ["a b"], ["", "a", "  a  "]),
    ({"min_words": 2, "max_words": 2}, ["a b"], ["a", "a b c"]),
    ({"max_characters": 3}, ["", "abc", "äöü"], ["abcd", "a b "]),
    ({"min_characters": 3}, ["abc"], ["", "ab"]),
    ({"matches": r"\bcat(s)?\b"}, ["a cat", "cats!"], ["", "category"]),
    ({"avoids": r"(?i)as an ai"}, ["", "I think"], ["Well, as an AI, I"]),
    (
        {"required_words": ["tea", "green cup"]},
        ["Tea in a GREEN  cup.", "green\ncup of tea"],
        ["", "tea", "teapot green cup"],
    ),
    ({"required_words": ["C++"]}, ["c++ it is", "C++11"], ["C+", "c"]),
    ({"forbidden_words": ["bad"]}, ["", "badly", "forbad"], ["Bad!", "so bad"]),
    (
        {"ends_with_question": True},
        ["Why?", 'He asked "why?"', "**Why?** \n", "何？", "(why?)"],
        ["", "Why? Because.", "?!"],
    ),
    (
        {"no_list": True},
        ["", "a - b", "well-known", "3.5 km", "**bold**", "-5 degrees"],
        ["- a", "a:\n  * b", "1. a", "a\n2) b", "• a"],
    ),
    (
        {"valid_json": True},
        ["{}", ' [1, "a"]\n', "3", "null", '"["', "9" * 9999],
        ["", "{a: 1}", "NaN", "[1,]", "```json\n{}\n```", "{} {}"],
    ),
    ({"json_keys": ["a", "b"]}, ['{"a": 1, "b": null, "c": 2}'], ["", '{"a": 1}', '["a", "b"]', '"ab"']),
    ({"exact_answer": "city"}, ["Paris", " paris. ", '"PANAME"'], ["", "It is Paris", "London"]),
    ({"exact_answer": "size"}, ["-3", "-3."], ["3", "-3.0"]),
    (
        {"number": "answer"},
        ["42", "It is 42.", "1 + 41 = 42", "7 #### 42 apples", "42.0", "4.2e1", "=42"],
        ["", "43", "42 or 43", "#### 43, not 42", "-42", "#### no 41, 42"],
    ),
    ({"number": "count"}, ["1,234.5", "$1234.50", "10 and 1,234.5"], ["1234", "12345", "234.5"]),
    ({"number": "size"}, ["-3", "\u22123", "x=-3", "about -3.0"], ["3", "10-3"]),
    ({"number": "count", "tolerance": 0.5}, ["1234", "1235", "1234.5"], ["1233.9", "1235.1"]),
    ({"script": "latin"}, ["Hello, 123!", "naïve", "Wörld", "ﬁne"], ["", "123", "Привет", "日本"]),
    ({"script": "cyrillic"}, ["Привет, мир"], ["Hello", "При Hello"]),
    ({"script": "japanese"}, ["日本語です。カタカナ"], ["hello", "안녕하세요"]),
    ({"script": "chinese"}, ["你好"], ["こんにちは"]),
    ({"max_repetition": 0.0}, ["", "a b", "a b c d e"], ["a b c a b c"]),
    ({"max_repetition": 0.5, "ngram": 1}, ["a a b b", "A b"], ["a a a"]),
    (
        {"max_words": 4, "ends_with_question": True, "no_list": True},
        ["Is it so?"],
        ["- Is it so?", "It is so.", "Is it really quite so?"],
    ),
]


def scores(wishes: dict[str, Any], texts: list[str]) -> list[float]:
    group = Group(Prompt(text="?", id="p", meta=ROW), tuple(Response(text=t) for t in texts), origin="row:1")
    scored = build_reward({"from": "rule", **wishes}, no_model).score([group])[0]
    return list(scored.scores or ())


def no_model(name: str, source: str) -> Any:
    raise AssertionError(f"{name} is no model: {source}")


@pytest.mark.parametrize(("wishes", "kept", "broken"), CASES, ids=[" ".join(wishes) for wishes, _, _ in CASES])
def test_a_rule_on_texts_made_by_hand(wishes: dict[str, Any], kept: list[str], broken: list[str]) -> None:
    assert dict(zip(kept, scores(wishes, kept), strict=True)) == dict.fromkeys(kept, 1.0)
    assert dict(zip(broken, scores(wishes, broken), strict=True)) == dict.fromkeys(broken, 0.0)


def test_every_wish_is_tried() -> None:
    assert {key for wishes, _, _ in CASES for key in wishes} == set(Rule.model_fields)


HUGE = {
    "words": "word " * 40_000,
    "one_word": "a" * 200_000,
    "brackets": "[" * 200_000,
    "braces": '{"a":' * 40_000 + "1" + "}" * 40_000,
    "quotes": '"' + '\\"' * 100_000,
    "digits": "9" * 200_000,
    "groups": "1" + ",111" * 50_000 + "1",
    "marks": "####" * 50_000,
    "lines": "\n" * 200_000,
    "spaces": " " * 200_000 + "x",
    "exponent": "1e" + "9" * 200,
    "controls": "\x00\ud800" * 100_000,
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_a_huge_text_is_scored_in_time(text: str) -> None:
    """Each rule takes time in proportion to the text: a quadratic one would take many minutes here."""
    for wishes, _, _ in CASES:
        began = time.process_time()
        assert scores(wishes, [text])[0] in (0.0, 1.0)
        assert time.process_time() - began < 10, wishes


@pytest.mark.slow
@given(text=st.text(st.characters(), max_size=60) | st.text('[]{}"\\,:0123456789.-+e# \n?*a', max_size=60))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_text_gets_one_or_nought(text: str) -> None:
    for wishes, _, _ in CASES:
        assert scores(wishes, [text])[0] in (0.0, 1.0)
    assert 0 <= repetition(text, 2) < 1
    assert normalized(normalized(text)) == normalized(text)
    try:
        valid = json.loads(text, parse_constant=lambda name: 1 / 0) is not ...
    except (ValueError, ZeroDivisionError):
        valid = False
    assert scores({"valid_json": True}, [text]) == [float(valid)]


@pytest.mark.slow
@given(value=st.decimals(-(10**12), 10**12, places=4), words=st.sampled_from(["{}", "1, 2 and {}.", "so #### {} of 9"]))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_number_is_read_as_it_is_written(value: Any, words: str) -> None:
    for text in (f"{value}", f"{value:,}"):
        assert final_number(words.format(text)) == value


def test_nesting_counts_outside_strings() -> None:
    assert nesting('{"a[[[": [1, {"b": "\\"{"}]}') == 3
    assert nesting("]]") == 0


def test_words_with_signs_are_found_whole() -> None:
    assert contains_word("a .NET app", ".net")
    assert not contains_word("dotnets", "dotnet")


def test_numbers_beyond_reason_are_none() -> None:
    assert final_number("1e99999999") is None
    assert final_number("9" * 301) is None
    assert final_number("9" * 300) == NUMBERS.create_decimal("9" * 300)


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_pattern_that_backtracks_without_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiltyard.scoring.rules.PATTERN_SECONDS", 0.1)
    with pytest.raises(ScoringError, match=r"reward\.avoids.*more than 0.1 seconds") as error:
        scores({"avoids": "(a|aa)+$"}, ["a" * 5000 + "!"])
    assert "prompt p, response 1" in str(error.value)


@pytest.mark.parametrize(
    ("meta", "wishes", "said"),
    [
        ({}, {"number": "answer"}, ["no field 'answer'", "(none)", "prompt p7"]),
        ({"anwser": "42"}, {"number": "answer"}, ["no field 'answer'", "did you mean 'anwser'?"]),
        ({"answer": "forty-two"}, {"number": "answer"}, ["holds no number", "forty-two"]),
        ({"answer": True}, {"number": "answer"}, ["holds no number", "True"]),
        ({"answer": ""}, {"exact_answer": "answer"}, ["holds no answer"]),
        ({"answer": []}, {"exact_answer": "answer"}, ["holds no answer", "[]"]),
        ({"answer": {"a": 1}}, {"exact_answer": "answer"}, ["holds no answer"]),
    ],
)
def test_a_row_without_the_answer_is_named_before_anything_is_sampled(
    meta: dict[str, Any], wishes: dict[str, Any], said: list[str]
) -> None:
    scorer = build_reward({"right": {"from": "rule", **wishes}}, no_model)
    with pytest.raises(DataError) as error:
        check_prompts(scorer, [Prompt(text="How many?", id="p7", meta=meta)])
    for text in (*said, "reward.right", "How many?"):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("rule", "at least one wish"),
        ({"from": "rule"}, "at least one wish"),
        ({"from": "rule", "weight": 2}, "at least one wish"),
        ({"from": "rule", "ngram": 3}, "at least one wish"),
        ({"a": {"from": "rule", "max_wrods": 3}}, "did you mean 'max_words'?"),
        ({"a": "gold", "b": {"from": "gold", "max_words": 3}}, "unknown key 'max_words'"),
        ({"from": "rule", "max_words": "3"}, "int"),
        ({"from": "rule", "max_words": -1}, "int"),
        ({"from": "rule", "min_words": 5, "max_words": 4}, "at least 5 and at most 4 words"),
        ({"from": "rule", "matches": "("}, "no regular expression"),
        ({"from": "rule", "forbidden_words": [" "]}, "white space"),
        ({"from": "rule", "max_words": 3, "tolerance": 0.5}, "tolerance belongs to number"),
        ({"from": "rule", "max_words": 3, "ngram": 4}, "ngram belongs to max_repetition"),
        ({"from": "rule", "script": "english"}, "latin"),
        ({"from": "rule", "number": "answer", "tolerance": float("inf")}, "finite"),
    ],
)
def test_what_does_not_fit_is_named(spec: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_reward(spec, no_model)
    assert said in str(error.value)


# --------------------------------------------------------------------------------------------------------- in a reward


def group(*texts: str) -> Group:
    return Group(Prompt(text="?", id="p", meta=ROW), tuple(Response(text=t) for t in texts), origin="row:1")


def test_rules_are_parts_of_a_sum_and_logged_each() -> None:
    brief, asks = {"from": "rule", "max_words": 1, "weight": 0.5}, {"from": "rule", "ends_with_question": True}
    scorer = build_reward({"brief": brief, "asks": asks}, no_model)
    assert scorer.score([group("a", "a b?", "a?", "a b")])[0].scores == (0.5, 1.0, 1.5, 0.0)
    means = {key: total / count for key, (total, count) in scorer_metrics(scorer).items() if key.startswith("reward/")}
    assert means == {"reward/brief": 0.5, "reward/asks": 0.5}


def test_one_rule_by_itself_and_with_a_weight() -> None:
    one = build_reward({"from": "rule", "max_words": 1}, no_model)
    assert isinstance(one, FunctionScorer)
    assert one.name == "rule"
    assert build_reward({"from": "rule", "max_words": 1}, no_model, name="brief").name == "brief"
    heavy = build_reward({"from": "rule", "max_words": 1, "weight": 3}, no_model)
    assert isinstance(heavy, WeightedScorer)
    assert heavy.score([group("a", "a b")])[0].scores == (3.0, 0.0)
    assert is_function("rule")
    assert reward_parts({"from": "rule", "max_words": 1})["reward"].rule == Rule(max_words=1)


def test_a_rule_in_python() -> None:
    scorer = FunctionScorer(RuleFunction(Rule(number="answer")), "right")
    assert scorer.score([group("42", "41")])[0].scores == (1.0, 0.0)
    with pytest.raises(ValidationError):
        Rule(max_word=3)  # type: ignore[call-arg]
