"""The real data parses fully (it stays outside the repository; see its README for the counts)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tiltyard.data import (
    Chat,
    check_data,
    load_groups,
    load_prompts,
    parse_row,
    plain_texts,
    read_rows,
    train_tokenizer,
)
from tiltyard.types import ranks_of

COUNTS = [
    ("corpus", "text", 16_568, 400),
    ("demonstrations", "demonstrations", 600, 100),
    ("preferences", "comparisons", 8_134, 1_320),
    ("rankings", "comparisons", 578, 93),
    ("prompts", "prompts", 600, 100),
]


@pytest.fixture(scope="module")
def chat(real_data: Path) -> Chat:
    return Chat(train_tokenizer(plain_texts(real_data / "corpus", limit=500), 2048))


@pytest.mark.parametrize(("folder", "kind", "train", "dev"), COUNTS)
def test_every_row_parses(real_data: Path, folder: str, kind: Any, train: int, dev: int) -> None:
    groups = [parse_row(row, kind) for row in read_rows(real_data / folder)]
    assert len(groups) == train
    assert sum(1 for _ in read_rows(real_data / folder, split="dev")) == dev
    if kind == "comparisons":
        assert all(2 <= len(g.responses) <= 9 for g in groups)
        assert all(ranks_of(g.preference) or g.scores for g in groups)


@pytest.mark.slow
def test_the_corpus_is_encoded_whole_and_fast(real_data: Path, chat: Chat) -> None:
    start = time.perf_counter()
    groups, report = load_groups(real_data / "corpus", "text", chat, max_length=512)
    seconds = time.perf_counter() - start
    assert report.kept == report.rows == 16_568
    assert seconds < 60, f"{seconds:.0f} s; about 10 are expected"
    sizes = sum(len(row.value["text"].encode()) for row in read_rows(real_data / "corpus"))
    assert sum(len(g.responses[0].text.encode()) for g in groups) == sizes  # so bits per byte can be computed
    assert max(g.tokens for g in groups) <= 512


def test_words_come_back(real_data: Path, chat: Chat) -> None:
    groups, _ = load_groups(real_data / "rankings", "comparisons", chat, limit=100)
    for group in groups:
        for response in group.responses:
            assert chat.decode(response.ids) == response.text
            assert response.ids[-1] in chat.stop_ids


@pytest.mark.slow
def test_splits_are_apart_and_the_judges_length_bias_shows(real_data: Path, chat: Chat) -> None:
    pairs, _ = load_groups(real_data / "preferences", "comparisons", chat)
    held, _ = load_groups(real_data / "preferences", "comparisons", chat, split="dev")
    report = check_data(pairs, held)
    assert report.held_out_overlap == 0
    assert report.length is not None
    assert report.length.longer_interval[0] > 0.6
    rankings, _ = load_groups(real_data / "rankings", "comparisons", chat)
    length = check_data(rankings).length
    assert length is not None
    assert (length.tau or 0) > 0.1


def test_prompts_load(real_data: Path, chat: Chat) -> None:
    prompts, report = load_prompts(real_data / "prompts", chat, max_prompt=256, too_long="truncate")
    assert report.kept == len(prompts) == 600
    assert all(0 < len(p.ids) <= 256 for p in prompts)
    assert {"source"} == set(prompts[0].meta)
