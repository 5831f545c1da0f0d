"""Answers that introduce their writer are found, and answers about models are not."""

from __future__ import annotations

import time

import pytest

from tiltyard.feedback.arena.identity import names_itself


@pytest.mark.parametrize(
    "text",
    [
        "I am ChatGPT, a model.",
        "I'm Claude, and I'd be happy to help",
        "Hello! I’m an AI assistant called Qwen3.",
        "As a large language model, Gemini cannot do that.",
        "I was trained by Google.",
        "My name is SmolLM2.",
        "我是由阿里巴巴开发的 Qwen。",
        "저는 네이버가 만든 HyperCLOVA입니다.",
        "Well. I am the-new-one!",
    ],
)
def test_introductions(text: str) -> None:
    assert names_itself(text, ["the-new-one"])


@pytest.mark.parametrize(
    "text",
    [
        "Google was founded in 1998 by two students.",
        "OpenAI made ChatGPT; Anthropic made Claude.",
        "I am sure that this is a new idea.",
        "As far as I know, whales are mammals.",
        "The paper compares Llama with Qwen.",
        "",
    ],
)
def test_answers_about_models_and_common_words_are_none(text: str) -> None:
    assert not names_itself(text, ["idea", ""])


def test_a_long_answer_takes_no_time() -> None:
    began = time.process_time()
    names_itself("I am " + "a-b c, " * 100_000, ["sft"])
    names_itself("as " * 100_000, ["sft"])
    assert time.process_time() - began < 2
