"""Rows from every kind of source, and errors that say where and what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tiltyard.data import read_rows
from tiltyard.errors import DataError

ROWS = [{"prompt": f"question {i}", "n": i} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        parquet(path)
    else:
        text = json.dumps(ROWS) if ".jsonl" not in name else LINES
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet"])
def test_every_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    rows = list(read_rows(path))
    assert [r.value for r in rows] == ROWS
    assert rows[2].where == (f"{name}:3" if ".jsonl" in name else f"{name}:row 3")
    assert [r.value for r in read_rows(str(path), limit=2)] == ROWS[:2]


def test_folders_by_split(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl.gz")
    (tmp_path / "dev.jsonl").write_text('{"prompt": "dev"}\n')
    (tmp_path / "notes.txt").write_text("no data")
    assert len(list(read_rows(tmp_path))) == 5
    assert [r.where for r in read_rows(tmp_path, split="dev")] == ["dev.jsonl:1"]
    with pytest.raises(DataError, match=r"no such split(.|\n)*tran(.|\n)*did you mean 'train'"):
        read_rows(tmp_path, split="tran")


def test_sharded_parquet_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        parquet(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet")
    rows = list(read_rows(tmp_path))
    assert [r.value["n"] for r in rows] == [0, 1, 2, 3, 4] * 2
    assert rows[5].where == "train-00001-of-00002.parquet:row 1"


def test_a_folder_with_several_files_and_no_train_asks(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    write(tmp_path, "b.jsonl")
    with pytest.raises(DataError, match=r"which split\?(.|\n)*a, b"):
        read_rows(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        read_rows(tmp_path / "empty")


def test_saved_datasets(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list([*ROWS, {"prompt": "last", "n": None}])
    data.save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "two"))
    rows = list(read_rows(tmp_path / "one"))
    assert [r.value for r in rows] == [*ROWS, {"prompt": "last"}]  # a null of a column store is an absent field
    assert rows[0].where == "one:row 1"
    assert [r.where for r in read_rows(tmp_path / "two", split="test")] == ["two[test]:row 1"]
    with pytest.raises(DataError, match=r"no such split(.|\n)*train"):
        read_rows(tmp_path / "two", split="valid")
    with pytest.raises(DataError, match="no splits"):
        read_rows(tmp_path / "one", split="train")


def test_hub_names_go_to_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def fake(path: str, config: str | None, *, split: str) -> list[dict[str, object]]:
        asked.append((path, config, split))
        return list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert [r.where for r in read_rows("own/name", limit=2)] == ["own/name[train]:1", "own/name[train]:2"]
    list(read_rows("own/name:main", split="test"))
    assert asked == [("own/name", None, "train"), ("own/name", "main", "test")]

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"own/nme(.|\n)*no network(.|\n)*check the path or name"):
        read_rows("own/nme")


# -------------------------------------------------------------------------------------- bad sources


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    with pytest.raises(DataError, match=r"trian.jsonl: the file does not exist(.|\n)*did you mean 'train.jsonl'"):
        read_rows(tmp_path / "trian.jsonl")  # at the call, not at the first row
    with pytest.raises(DataError, match="the folder does not exist"):
        read_rows(str(tmp_path / "none" / "train.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError, match=r"no rows(.|\n)*at least one row"):
        list(read_rows(path))


BAD_LINES = {
    "cut": ('{"prompt": "a', r"f.jsonl:3: malformed JSON(.|\n)*correct or delete this line"),
    "list": ("[1, 2]", r"f.jsonl:3: the line is not an object(.|\n)*list \[1, 2\](.|\n)*belongs in a .json file"),
    "number": ("17", r"f.jsonl:3: the line is not an object(.|\n)*int 17(.|\n)*correct or delete"),
    "surrogate": ('{"a": "x\\ud83d"}', r"f.jsonl:3: half of a surrogate pair(.|\n)*correct or delete"),
    "deep": ("[" * 200_000, r"f.jsonl:3: malformed JSON"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines(tmp_path: Path, case: str) -> None:
    line, message = BAD_LINES[case]
    path = tmp_path / "f.jsonl"
    path.write_text('{"a": 1}\n\n' + line + "\n")  # the blank line counts as a line
    rows = read_rows(path)
    assert next(rows).value == {"a": 1}
    with pytest.raises(DataError, match=message):
        next(rows)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"f.jsonl:2: the text is not UTF-8(.|\n)*0xe9(.|\n)*iconv"):
        list(read_rows(path))


def test_byte_order_mark_and_whole_surrogate_pairs_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude42"}\r\n')
    assert [r.value for r in read_rows(path)] == [{"a": "🙂"}]


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode() * 3000)[:-20])
    with pytest.raises(DataError, match=r"f.jsonl.gz:\d+: the compressed file is damaged(.|\n)*gzip -t"):
        list(read_rows(path))
    path.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match=r"f.jsonl.gz: the file is not what its name says(.|\n)*not compressed"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.json", b'{"a": 1}', r"f.json:1: the file is not a list(.|\n)*call the file .jsonl"),
        ("f.json", b'{"a": 1}\n{"a": 2}', r"f.json:1: malformed JSON(.|\n)*call it .jsonl"),
        ("f.json", b'[{"a": 1}, 3]', r"f.json:row 2: not an object(.|\n)*int 3"),
        ("f.parquet", b"nonsense", r"f.parquet: not a Parquet file(.|\n)*write it again"),
        ("f.csv", b"a,b", r"f.csv: this kind of file cannot be read(.|\n)*.jsonl"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_bad_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match="limit must be at least 1"):
        read_rows(path, limit=0)
    with pytest.raises(DataError, match="a single file has no splits"):
        read_rows(path, split="train")
