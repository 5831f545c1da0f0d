"""A tokenizer trained here: exact on any text, and the same after transformers has saved and loaded it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tiltyard.data import DEFAULT_TEMPLATE, Chat, plain_texts, train_tokenizer
from tiltyard.errors import ConfigError, DataError

TOKENIZER = train_tokenizer(TEXTS, 400)


def test_shape() -> None:
    assert len(TOKENIZER) == 400
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token, TOKENIZER.bos_token) == ("<|end|>", "<|pad|>", None)
    assert TOKENIZER.chat_template == DEFAULT_TEMPLATE
    assert TOKENIZER.model_max_length < 10**6
    for token in ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"):
        assert len(TOKENIZER.encode(token)) == 1
    assert Chat(TOKENIZER).stop_ids == {TOKENIZER.eos_token_id}


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8")))
def test_every_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_save_and_load_keep_ids_and_template(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    back = AutoTokenizer.from_pretrained(tmp_path)
    assert back.chat_template == TOKENIZER.chat_template
    assert (back.eos_token_id, back.pad_token_id, back.bos_token_id) == (1, 0, None)
    assert back.model_max_length == TOKENIZER.model_max_length
    for text in [*TEXTS, "<|user|>hi<|end|><|assistant|>", "  two  spaces ,  dots .", "\n\n\t東京🙂"]:
        assert back.encode(text) == TOKENIZER.encode(text)
        assert back.decode(back.encode(text)) == text


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert train_tokenizer(iter(TEXTS), 400).get_vocab() == TOKENIZER.get_vocab()


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size is too small(.|\n)*at least 261"):
        train_tokenizer(TEXTS, 260)
    with pytest.raises(DataError, match="no texts"):
        train_tokenizer([])


def test_plain_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": "one"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"x": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(plain_texts(path, limit=2)) == ["one", "q\n\na"]
    with pytest.raises(DataError, match=r"a.jsonl:3: field 'text' is missing"):
        list(plain_texts(path))
