"""Rows from every kind of source, and errors that say where and what to do."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
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
    "digits": ('{"id": ' + "9" * 5000 + "}", r"f.jsonl:3: malformed JSON(.|\n)*digits"),
    "NUL": ('{"a": "x\0\0"}', r"f.jsonl:3: malformed JSON(.|\n)*NUL characters(.|\n)*not written to its end"),
    "only NUL": ("\0\0\0", r"f.jsonl:3: malformed JSON(.|\n)*NUL characters"),
    "twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', r"f.jsonl:3: the key 'c' stands twice"),
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


# -------------------------------------------------------------------------- files that are something else

PLAIN = b'{"a": "x"}\n'
OTHERS = {
    "utf-16 with a mark": ('{"a": "caf\u00e9"}\n'.encode("utf-16"), "UTF-16(.|\n)*iconv -f UTF-16 "),
    "utf-16 le": ('{"a": "x"}\n'.encode("utf-16-le"), "UTF-16(.|\n)*iconv -f UTF-16LE"),
    "utf-16 be": ('{"a": "x"}\n'.encode("utf-16-be"), "UTF-16(.|\n)*iconv -f UTF-16BE"),
    "utf-32": ('{"a": "x"}\n'.encode("utf-32"), "UTF-32(.|\n)*iconv"),
    "gzip": (gzip.compress(PLAIN), "gzip-compressed data(.|\n)*the ending .gz"),
    "bzip2": (bz2.compress(PLAIN), "bzip2"),
    "xz": (lzma.compress(PLAIN), "xz-compressed"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", "Zstandard"),
    "zip": (b"PK\x03\x04\x14\x00", "ZIP archive"),
    "parquet": (b"PAR1\x15\x04PAR1", "Parquet(.|\n)*ending .parquet"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n", "Git LFS(.|\n)*git lfs pull"),
    "a page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page(.|\n)*raw link"),
}


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.json", "f.json.gz", "f.parquet"])
@pytest.mark.parametrize("case", OTHERS)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, case: str) -> None:
    content, message = OTHERS[case]
    if (name.endswith(".gz") and case == "gzip") or (name == "f.parquet" and case == "parquet"):
        return
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: the file is not what its name says(.|\n)*{message}"):
        list(read_rows(tmp_path / name))
    if name.endswith(".gz"):  # and packed once more
        (tmp_path / name).write_bytes(gzip.compress(content))
        with pytest.raises(
            DataError, match=rf"{name}: the file is not what its name says(.|\n)*{message.split('(')[0]}"
        ):
            list(read_rows(tmp_path / name))


def test_a_list_called_jsonl(tmp_path: Path) -> None:
    for text in (json.dumps(ROWS), json.dumps(ROWS, indent=2)):
        (tmp_path / "f.jsonl").write_text("\n" + text)
        with pytest.raises(DataError, match=r"f.jsonl:2: the file is a list(.|\n)*rename it"):
            list(read_rows(tmp_path / "f.jsonl"))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    paths = [write(tmp_path, name) for name in ("a.jsonl", "a.json", "a.parquet", "a.jsonl.gz")]
    monkeypatch.setattr(Path, "open", refused)
    for path in paths:
        with pytest.raises(DataError, match=rf"{path.name}: the file cannot be read(.|\n)*chmod u\+r"):
            list(read_rows(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_folder_called_like_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="the folder holds no data files"):
        read_rows(tmp_path / name)


def test_a_parquet_file_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path, "f.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"f.parquet: the Parquet file is damaged or cut short"):
        list(read_rows(path))


def test_columns_of_one_name(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"]), tmp_path / "f.parquet"
    )
    with pytest.raises(DataError, match="two columns are called 'prompt'"):
        list(read_rows(tmp_path / "f.parquet"))


@pytest.mark.parametrize("name", ["f.jsonl", "f.json"])
def test_bad_rows_are_told_one_by_one(tmp_path: Path, name: str) -> None:
    bad = ["17", '"text"', "[1]"]
    lines = [json.dumps(ROWS[0]), *bad, json.dumps(ROWS[1])]
    (tmp_path / name).write_text("\n".join(lines) if name == "f.jsonl" else f"[{','.join(lines)}]")
    found: list[DataError] = []
    rows = list(read_rows(tmp_path / name, on_bad=found.append))
    assert [row.value for row in rows] == ROWS[:2]
    row = "" if name == "f.jsonl" else "row "
    assert [error.where for error in found] == [f"{name}:{row}{i}" for i in (2, 3, 4)]
    assert len(list(read_rows(tmp_path / name, limit=3, on_bad=found.append))) == 1, "a limit counts bad rows too"
