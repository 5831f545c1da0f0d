"""Answers in which a model introduces itself: a vote on one is no vote on anonymous models.

Chatbot Arena leaves battles out in which the name of a model or of its maker occurs anywhere, in the prompt too
(FastChat, `clean_battle_data.py`). Here an answer is marked where it introduces its writer by such a name, or by the
one under which the model stands in this arena: an answer about Google's history, or with the word "new" under a model
that is called `new`, stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

KNOWN = (  # models and makers; a word that begins so counts too (Qwen3, Llama-4)
    *(
        "chatgpt",
        "gpt",
        "claude",
        "gemini",
        "gemma",
        "bard",
        "llama",
        "qwen",
        "tongyi",
        "mistral",
        "mixtral",
        "deepseek",
    ),
    *(
        "grok",
        "kimi",
        "glm",
        "chatglm",
        "phi",
        "olmo",
        "tulu",
        "falcon",
        "command r",
        "smollm",
        "vicuna",
        "exaone",
        "hyperclova",
    ),
    *(
        "openai",
        "anthropic",
        "google",
        "deepmind",
        "meta ai",
        "alibaba",
        "microsoft",
        "cohere",
        "hugging face",
        "huggingface",
    ),
    *("xai", "moonshot", "zhipu", "allen institute", "naver", "lg ai", "nvidia", "tii"),
)
_WORDS = r"(?:[\w'’-]+[\s,]+){0,5}?"
_INTRODUCTION = (
    rf"(?:\b(?:i am|i['’]m|my name is|as)\s+{_WORDS}"
    rf"|\bi (?:was|am|have been) (?:made|created|developed|trained|built) by\s+{_WORDS}"
    r"|我是[^。！？\n]{0,12}?|我叫|저는 [^.!?\n]{0,16}?|제 이름은 )"
)


def names_itself(text: str, names: Sequence[str] = ()) -> bool:
    """Returns True for an answer that introduces its writer by the name of a model or a maker.

    Args:
        names: of the model that wrote it, in this arena and at its server.
    """
    own = [re.escape(name.casefold()) + r"(?![\w])" for name in names if name]
    known = "|".join([*own, *(re.escape(name) for name in KNOWN)])
    return re.search(rf"{_INTRODUCTION}(?<![\w])(?:{known})", text[:20_000].casefold()) is not None
