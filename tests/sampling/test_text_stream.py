"""Text shown while it is sampled: whole characters, no part of a stop string, in the end the response itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny
from tiltyard.data.chat import Chat
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings, sample
from tiltyard.sampling.text_stream import TextStream
from tiltyard.types import Message, Prompt

CHAT = tiny.chat()
WORDS = (
    "the cat",
    " sat",
    "Grüße",
    "東京",
    "🙂",
    "👩\u200d🚀",
    "###",
    "#",
    "\r\n",
    "\r",
    "\n",
    " ",
    "END",
    "E",
    "\ufffd",
)


def streamed(chat: Chat, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[TextStream, list[str]]:
    pieces: list[str] = []
    stream = TextStream(chat, stop, pieces.append)
    for token in ids:
        stream(0, token)
        shown = chat.decode(ids)
        assert shown.startswith(stream.shown) or any(s in shown for s in stop)
    return stream, pieces


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(WORDS), max_size=12), st.booleans())
def test_pieces_joined_are_the_text(words: list[str], ended: bool) -> None:
    ids = list(CHAT.tokenizer.encode("".join(words), add_special_tokens=False))
    ids += [CHAT.eos_id] if ended else []
    stream, pieces = streamed(CHAT, ids)
    assert stream.close(CHAT.decode(ids))
    assert "".join(pieces) == CHAT.decode(ids)
    assert all(pieces)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 299), max_size=24))
def test_ids_of_no_text_at_all_are_shown_as_they_decode(ids: list[int]) -> None:
    stream, pieces = streamed(CHAT, ids)
    assert stream.close(CHAT.decode(ids))
    assert "".join(pieces) == CHAT.decode(ids)


def test_half_a_character_is_held_back() -> None:
    ids = list(CHAT.tokenizer.encode("a\U0001f680b", add_special_tokens=False))
    assert len(ids) > 3  # the rocket is several tokens
    _, pieces = streamed(CHAT, ids)
    assert "".join(pieces) == "a\U0001f680b"
    assert "\U0001f680" in pieces


@pytest.mark.parametrize("stop", [("###",), ("END", "###"), ("sat on",)])
def test_no_part_of_a_stop_string_is_shown(stop: tuple[str, ...]) -> None:
    text = f"the # cat ## E EN {stop[-1]}"
    stream, pieces = streamed(CHAT, list(CHAT.tokenizer.encode(text, add_special_tokens=False)), stop)
    assert stream.shown == text.removesuffix(stop[-1]) == "".join(pieces)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("cut", [False, True])
def test_what_is_sampled_is_what_is_shown(family: str, cut: bool) -> None:
    model = LanguageModel(tiny.causal(family, vocab_size=300), CHAT)
    prompt = model.chat.encode_prompt(Prompt(messages=(Message("user", "what is it?"),)))
    whole = sample(model, [prompt], 1, SampleSettings(max_tokens=24), seed=3)[0].responses[0].text
    stop = (whole[5:7],) if cut else ()
    pieces: list[str] = []
    stream = TextStream(model.chat, stop, pieces.append)
    found = sample(model, [prompt], 1, SampleSettings(max_tokens=24, stop=stop), seed=3, stream=stream)[0].responses[0]
    assert len(pieces) > 1 or cut
    assert stream.close(found.text)
    assert "".join(pieces) == found.text
