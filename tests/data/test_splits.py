"""A split is one file or all of its shards, each once; every other name is a split of its own."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import read_rows
from tiltyard.data.splits import split_files
from tiltyard.errors import DataError


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(json.dumps({"prompt": name}) + "\n")
    return folder


def names_of(folder: Path, split: str | None = None) -> list[str]:
    return [path.name for path in split_files(folder, split)]


FORMS = {
    "hub": lambda i, n: f"train-{i:05d}-of-{n:05d}.jsonl",
    "hub with a hash": lambda i, n: f"train-{i:05d}-of-{n:05d}-{hash((i, n)) & (2**64 - 1):016x}.jsonl",
    "underscores": lambda i, n: f"train_{i:05d}_of_{n:05d}.jsonl.gz",
    "numbers": lambda i, n: f"train-{i:03d}.jsonl",
    "Spark": lambda i, n: f"train-{i:05d}-1f0c2d3e-aaaa-bbbb-cccc-0123456789ab-c000.jsonl",
}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(form=st.sampled_from(sorted(FORMS)), count=st.integers(2, 12), seed=st.integers(0, 99))
def test_shards_are_a_split_if_they_are_all_there(
    tmp_path_factory: pytest.TempPathFactory, form: str, count: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    names = [FORMS[form](i, count) for i in range(count)]
    write(folder, *names, "train-12-held-out.jsonl", "test.jsonl", ".train.jsonl", "dataset_infos.json")
    assert names_of(folder) == names
    assert [row.where.partition(":")[0] for row in read_rows(folder, split="test")] == ["test.jsonl"]
    lost = random.Random(seed).randrange(count - ("of" not in form and form != "hub"))  # not the last without a count
    (folder / names[lost]).unlink()
    if "of" in names[0] or 0 < lost < count - 1:
        with pytest.raises(DataError, match=r"1 of \d+ shards of 'train' are missing") as error:
            names_of(folder)
        assert f"{lost:03d}" in str(error.value.got)


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "train.jsonl.gz"),
        ("train.json", "train.parquet"),
        ("train.jsonl", "train-00000-of-00001.jsonl"),
        ("train.jsonl", "train-00.jsonl", "train-01.jsonl"),
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "train-00001-of-00002.parquet"),
        ("train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"),
    ],
)
def test_one_split_twice(tmp_path: Path, names: tuple[str, ...]) -> None:
    write(tmp_path, *names, "dev.jsonl")
    with pytest.raises(DataError, match=r"two files for one split(.|\n)*train(.|\n)*remove the copies"):
        read_rows(tmp_path)
    assert names_of(tmp_path, "dev") == ["dev.jsonl"], "another split is none of its business"


@pytest.mark.parametrize(
    "stray",
    [
        "train-05-held-out.jsonl",
        "train-2023.jsonl",
        "train-05.jsonl",
        "train-0-test.jsonl",
        "train-0.jsonl",
        "trainer.jsonl",
    ],
)
def test_a_file_with_a_number_is_no_shard(tmp_path: Path, stray: str) -> None:
    write(tmp_path, "train.jsonl", stray)
    assert names_of(tmp_path) == ["train.jsonl"]
    assert names_of(tmp_path, stray.removesuffix(".jsonl")) == [stray]


def test_a_gap_in_the_numbers(tmp_path: Path) -> None:
    write(tmp_path, "train-01.jsonl", "train-02.jsonl", "train-04.jsonl")
    with pytest.raises(DataError, match=r"1 of 4 shards of 'train' are missing(.|\n)*not train-03.jsonl"):
        read_rows(tmp_path)


def test_a_shard_too_many(tmp_path: Path) -> None:
    write(tmp_path, "train-00000-of-00001.jsonl", "train-00001-of-00001.jsonl")
    with pytest.raises(DataError, match=r"a shard too many(.|\n)*train-00001-of-00001"):
        read_rows(tmp_path)


def test_folders_of_splits(tmp_path: Path) -> None:
    """A folder whose splits are folders names them; one with shards that are mere numbers is one split."""
    write(tmp_path / "train", "0000.jsonl", "0001.jsonl")
    write(tmp_path / "test", "0000.jsonl")
    with pytest.raises(DataError, match=r"holds no data files(.|\n)*test, train(.|\n)*name one of them"):
        read_rows(tmp_path)
    assert names_of(tmp_path / "train") == ["0000.jsonl", "0001.jsonl"]
    assert names_of(tmp_path / "test") == ["0000.jsonl"]


def test_the_layout_of_a_hub_data_set(tmp_path: Path) -> None:
    """Facts about the data set beside its folder `data` are no rows."""
    write(tmp_path, "dataset_infos.json", "README.md")
    write(tmp_path / "data", "train-00000-of-00001-0123456789abcdef.jsonl", "test-00000-of-00001.jsonl")
    assert names_of(tmp_path) == ["train-00000-of-00001-0123456789abcdef.jsonl"]
