"""Rows of files, folders and data sets of the hub, one at a time, each with its `file:line`.

The contents of rows are checked in `formats`. Reading is lazy: a limit reads no further.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiltyard.errors import DataError, nearest
from tiltyard.runs.ref import Ref

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_FIX_LINE = "correct or delete this line"
_ONE_OBJECT_A_LINE = 'one JSON object a line, e.g. {"prompt": "...", "completion": "..."}'


@dataclass(frozen=True)
class Row:
    """One record of a source. `where` is `file.jsonl:17` (lines count from 1) or `file.parquet:row 3`."""

    value: dict[str, Any]
    where: str


def read_rows(source: str | Path, *, split: str | None = None, limit: int | None = None) -> Iterator[Row]:
    """Reads the rows of a file, a folder or a dataset of the hub.

    Args:
        source: `.jsonl`, `.jsonl.gz`, `.json` (a list), `.parquet`; a folder made by `save_to_disk` or holding
            `train.jsonl.gz` and the like; otherwise a hub name (`owner/name` or `owner/name:config`).
        split: which split of a folder or hub dataset; by default `train`, or the only one there is.
        limit: read at most this many rows.

    Raises:
        DataError: at the call for a source that is missing, while reading for an empty file or a malformed row.
    """
    if limit is not None and limit < 1:
        raise DataError(
            "limit must be at least 1", where=str(source), got=limit, fix="leave limit out to read all rows"
        )
    rows = _open(source, split)
    return _not_empty(rows if limit is None else itertools.islice(rows, limit), str(source))


def _open(source: str | Path, split: str | None) -> Iterator[Row]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, split)
    if path.is_file():
        if split is not None:
            raise DataError(
                "a single file has no splits",
                where=str(path),
                got=f"split={split!r}",
                fix="leave split out, or give the folder that holds one file a split",
            )
        return _read_file(path)
    ref = None if isinstance(source, Path) else Ref.find(source)
    if ref is None or ref.kind != "hub":
        raise _missing(path)
    return _read_hub(ref, split)


def _not_empty(rows: Iterator[Row], where: str) -> Iterator[Row]:
    first = next(rows, None)
    if first is None:
        raise DataError(
            "no rows", where=where, got="an empty source", expected="at least one row", fix="check the path"
        )
    yield first
    yield from rows


def _suffix(path: Path) -> str:
    """Returns the known suffix that the file name ends in; "" if it has none."""
    name = path.name.lower()
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), "")


def _missing(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError("the folder does not exist", where=str(path), got=str(folder), fix="check the path")
    names = [p.name for p in folder.iterdir() if p.is_dir() or _suffix(p)]
    hint = nearest(path.name, names) if names else "the folder holds no data files"
    return DataError("the file does not exist", where=str(path), fix=f"{hint} (in {folder})")


# ---------------------------------------------------------------------------------------------- files


def _read_file(path: Path) -> Iterator[Row]:
    suffix = _suffix(path)
    if suffix.startswith(".jsonl"):
        return _read_jsonl(path)
    if suffix.startswith(".json"):
        return _read_json(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    raise DataError(
        "this kind of file cannot be read",
        where=str(path),
        got=path.suffix or "no suffix",
        expected=", ".join(SUFFIXES),
        fix="convert it to JSONL: one JSON object a line",
    )


def _read_jsonl(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():  # blank lines, most often the last one, are skipped
                    yield Row(_json_object(line, f"{path.name}:{number}"), f"{path.name}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            "the compressed file is damaged or cut short",
            where=f"{path.name}:{number + 1}",
            got=str(error),
            expected="a whole gzip file",
            fix=f"copy or download it again, and test it with: gzip -t {path}",
        ) from error


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    value = _parse_json(line, where, _ONE_OBJECT_A_LINE, _FIX_LINE)
    if not isinstance(value, dict):
        raise DataError(
            "the line is not an object",
            where=where,
            got=_short(value),
            expected=_ONE_OBJECT_A_LINE,
            fix="a list of objects belongs in a .json file" if isinstance(value, list) else _FIX_LINE,
        )
    return value


def _parse_json(data: bytes, where: str, expected: str, fix: str) -> Any:
    try:
        # utf-8-sig: Windows editors put a byte-order mark in front
        text = data.decode("utf-8-sig")
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half of an escaped pair is no text at all
        return value
    except UnicodeEncodeError as error:
        raise DataError(
            "half of a surrogate pair, which is not a character",
            where=where,
            got=ascii(error.object[max(0, error.start - 20) : error.end + 20]),
            expected="whole characters",
            fix="the text was cut in the middle of a character: correct or delete this line",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            "the text is not UTF-8",
            where=where,
            got=f"byte {data[error.start]:#04x} at column {error.start + 1}",
            expected="UTF-8",
            fix="convert the file: iconv -f latin1 -t utf-8",
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        column = getattr(error, "pos", 0)
        got = data.decode("utf-8-sig")[max(0, column - 40) : column + 40].strip()
        raise DataError(f"malformed JSON ({error})", where=where, got=got, expected=expected, fix=fix) from error


def _read_json(path: Path) -> Iterator[Row]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            "the compressed file is damaged or cut short", where=path.name, got=str(error), fix="copy it again"
        ) from error
    if not data.strip():
        return
    expected = "a list of objects"
    values = _parse_json(data, f"{path.name}:1", expected, "if it holds one object a line, call it .jsonl")
    if not isinstance(values, list):
        raise DataError(
            "the file is not a list",
            where=f"{path.name}:1",
            got=_short(values),
            expected=expected,
            fix="wrap the objects in [ ], or write one object a line and call the file .jsonl",
        )
    yield from _objects(values, f"{path.name}:row ")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError("not a Parquet file", where=path.name, got=str(error), fix="write it again") from error
    values = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
    yield from _objects((_without_nulls(v) for v in values), f"{path.name}:row ")


def _objects(values: Iterable[Any], prefix: str) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        where = f"{prefix}{number}"
        if not isinstance(value, dict):
            raise DataError("not an object", where=where, got=_short(value), expected="an object", fix="correct it")
        yield Row(value, where)


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    # in a column store an absent field reads as null; only there does null mean absent
    return {key: value for key, value in row.items() if value is not None}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"{type(value).__name__} {text[:80]}{'...' if len(text) > 80 else ''}"


# ---------------------------------------------------------------------------------------------- folders and the hub


def _read_folder(folder: Path, split: str | None) -> Iterator[Row]:
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return _read_saved(folder, split)
    files = sorted(p for p in folder.iterdir() if p.is_file() and _suffix(p))
    if not files and (folder / "data").is_dir():  # the layout of a cloned hub dataset
        files = sorted(p for p in (folder / "data").iterdir() if p.is_file() and _suffix(p))
    if not files:
        raise DataError(
            "the folder holds no data files", where=str(folder), expected=", ".join(SUFFIXES), fix="check the path"
        )
    splits: dict[str, list[Path]] = {}
    for path in files:
        stem = path.name[: -len(_suffix(path))]
        splits.setdefault(stem.split("-0")[0], []).append(path)  # train-00000-of-00002.parquet
    chosen = splits[_choose(list(splits), split, str(folder))]
    return itertools.chain.from_iterable(_read_file(p) for p in chosen)


def _choose(names: list[str], split: str | None, where: str) -> str:
    chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if chosen is None:
        raise DataError("which split?", where=where, got="no split", expected=", ".join(names), fix="set split")
    if chosen not in names:
        raise DataError("no such split", where=where, got=chosen, expected=", ".join(names), fix=nearest(chosen, names))
    return chosen


def _read_saved(folder: Path, split: str | None) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # datasets raises many classes
        raise DataError(
            "the saved dataset cannot be read", where=str(folder), got=str(error), fix="save it again with save_to_disk"
        ) from error
    label = folder.name
    if isinstance(data, DatasetDict):
        name = _choose([str(n) for n in data], split, str(folder))
        data, label = data[name], f"{label}[{name}]"
    elif split is not None:
        raise DataError("this saved dataset has no splits", where=str(folder), got=split, fix="leave split out")
    return _objects((_without_nulls(dict(v)) for v in data), f"{label}:row ")


def _read_hub(ref: Ref, split: str | None) -> Iterator[Row]:
    from datasets import load_dataset

    split = split or "train"
    try:
        data = load_dataset(ref.name, ref.rest or None, split=split)
    except Exception as error:  # offline, unknown name, unknown split, gated: many classes
        raise DataError(
            "no such file, and the hub did not return such a data set",
            where=ref.text,
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="a file, a folder, or the name of a hub dataset (owner/name or owner/name:config)",
            fix="check the path or name and the split; for a local file give its suffix (.jsonl, .parquet)",
        ) from error
    return (
        Row(_without_nulls(dict(v)), f"{ref.text}[{split}]:{number}") for number, v in enumerate(iter(data), start=1)
    )
