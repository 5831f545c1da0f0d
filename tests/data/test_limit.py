"""Rows that a limit takes: the first, or a sample of all that depends on the seed and on places alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from families import family
from tests.chance import follows, shifted

from tiltyard.data import Chat, Sample, limit_of, load_groups, load_prompts, read_rows
from tiltyard.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """300 rows, sorted by prompt: ten of each."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i // 10}", "completion": f"c{i}"}) + "\n" for i in range(300)))
    return path


def places(path: Path, limit: Sample) -> list[int]:
    return [int(row.where.rpartition(":")[2]) - 1 for row in read_rows(path, limit=limit)]


def test_a_sample_has_its_size_and_the_order_of_the_file(path: Path) -> None:
    drawn = places(path, Sample(40, 0))
    assert len(drawn) == 40
    assert drawn == sorted(set(drawn))
    assert len({place // 10 for place in drawn}) > 15  # the first 40 rows have 4 prompts
    assert drawn == places(path, Sample(40, 0)) != places(path, Sample(40, 1))


def test_a_smaller_sample_is_part_of_a_larger_one_and_one_of_all_rows_is_the_file(path: Path) -> None:
    assert set(places(path, Sample(20, 3))) < set(places(path, Sample(80, 3)))
    assert places(path, Sample(300, 3)) == places(path, Sample(9999, 3)) == list(range(300))


def test_what_the_rows_say_does_not_matter(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"id": f"x{i}", "text": "t"}) + "\n" for i in range(300)))
    assert places(path, Sample(40, 0)) == places(other, Sample(40, 0))


@pytest.mark.statistical
def test_every_row_is_as_likely_as_any_other() -> None:
    counts: Counter[int] = Counter()
    for seed in range(shifted(0), shifted(0) + 2000):
        counts.update(Sample(3, seed).of(12))
    follows(counts, dict.fromkeys(range(12), 1 / 12))  # without replacement: nearer to it than chi-square allows


def test_bad_rows_count_and_are_told_with_their_lines(path: Path) -> None:
    lines = path.read_text().splitlines()
    place = places(path, Sample(40, 0))[5]
    path.write_text("\n".join([*lines[:place], "{", *lines[place + 1 :]]) + "\n")
    with pytest.raises(DataError, match="JSON") as caught:
        load_groups(path, "demonstrations", Chat(family("tiltyard")), limit=Sample(40, 0))
    assert caught.value.where == f"rows.jsonl:{place + 1}"


def test_the_report_says_what_was_drawn(path: Path) -> None:
    chat = Chat(family("tiltyard"))
    for report in (
        load_groups(path, "demonstrations", chat, limit=Sample(40, 7))[1],
        load_prompts(path, chat, limit=Sample(40, 7))[1],
    ):
        assert report.rows == 40
        assert report.lines()[1] == "a sample of 40 of 300 rows, drawn with seed 7"
    assert load_groups(path, "demonstrations", chat, limit=Sample(300, 7))[1].drawn == ""
    assert load_groups(path, "demonstrations", chat, limit=40)[1].drawn == ""


def test_settings_become_a_limit() -> None:
    assert limit_of(0, "sample", 3) is None
    assert limit_of(5, "first", 3) == 5
    assert limit_of(5, "sample", 3) == Sample(5, 3)
