"""Rows of files, folders and data sets of the hub, one at a time, each with its `file:line`.

The contents of rows are checked in `formats`. Reading is lazy: a limit reads no further. A row that cannot be read is
an error of its own, and the rows after it can be read. An error of the whole file (cut short, another format, a missing
shard) ends the reading.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from tiltyard.data.foreign import own_rows
from tiltyard.data.limit import Limit, limited
from tiltyard.data.row import Row
from tiltyard.data.splits import SUFFIXES, choose_split, split_files, suffix_of
from tiltyard.errors import DataError, nearest
from tiltyard.files import HEAD, exists, foreign_format, not_utf8, reading, user_path
from tiltyard.runs.ref import Ref

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_FIX_LINE = "correct or delete this line"
_ONE_OBJECT_A_LINE = 'one JSON object a line, e.g. {"prompt": "...", "completion": "..."}'


__all__ = ["Item", "Row", "read_rows", "row_of"]

Item = Row | DataError  # a row, or why it cannot be read


def read_rows(
    source: str | Path,
    *,
    split: str | None = None,
    limit: Limit = None,
    on_bad: Callable[[DataError], None] | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """Reads the rows of a file, a folder or a dataset of the hub; judgements of other tools as `foreign` has them.

    Args:
        source: `.jsonl`, `.jsonl.gz`, `.json` (a list), `.parquet`; a folder made by `save_to_disk` or holding
            `train.jsonl.gz` and the like; otherwise a hub name (`owner/name` or `owner/name:config`).
        split: which split of a folder or hub dataset; by default `train`, or the only one there is.
        limit: read at most this many rows, good or bad; or a `Sample` of all.
        on_bad: takes the error of each row that cannot be read, and reading goes on; None raises the first.
        told: takes a sentence on the rows that were drawn.

    Raises:
        DataError: at the call for a source that is missing, while reading for an empty or damaged file or, without
            `on_bad`, a malformed row.
    """
    if isinstance(limit, int) and limit < 1:
        raise DataError(
            "limit must be at least 1", where=str(source), got=limit, fix="leave limit out to read all rows"
        )
    return _good(limited(lambda: _open(source, split), limit, told), str(source), on_bad)


def _open(source: str | Path, split: str | None) -> Iterator[Item]:
    path = user_path(source)
    if not exists(path):
        return _elsewhere(source, path, split)
    if path.is_dir():
        with reading(path):
            return _read_folder(path, split)
    if split is not None:
        raise DataError(
            "a single file has no splits",
            where=str(path),
            got=f"split={split!r}",
            fix="leave split out, or give the folder that holds one file a split",
        )
    return _read_file(path)


def _elsewhere(source: str | Path, path: Path, split: str | None) -> Iterator[Item]:
    ref = None if isinstance(source, Path) else Ref.find(source)
    if ref is None or ref.kind != "hub":
        raise _missing(path)
    return _read_hub(ref, split)


def _good(items: Iterator[Item], where: str, on_bad: Callable[[DataError], None] | None) -> Iterator[Row]:
    empty = True
    for item in items:
        empty = False
        try:
            if isinstance(item, DataError):
                raise item
            yield from own_rows(item)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(error)
    if empty:
        raise DataError(
            "no rows", where=where, got="an empty source", expected="at least one row", fix="check the path"
        )


def _missing(path: Path) -> DataError:
    folder = path.parent
    if not exists(folder) or not folder.is_dir():
        return DataError("the folder does not exist", where=str(path), got=str(folder), fix="check the path")
    names = [p.name for p in folder.iterdir() if p.is_dir() or suffix_of(p)]
    hint = nearest(path.name, names) if names else "the folder holds no data files"
    return DataError("the file does not exist", where=str(path), fix=f"{hint} (in {folder})")


# ---------------------------------------------------------------------------------------------- files


def _read_file(path: Path) -> Iterator[Item]:
    suffix = suffix_of(path)
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


def _bytes_of(path: Path) -> IO[bytes]:
    """Opens a file of JSON, unpacked if its name ends in .gz.

    Raises:
        DataError: it is something else by its first bytes.
    """
    packed = path.name.lower().endswith(".gz")
    with path.open("rb") as raw:
        head = raw.read(HEAD)
    foreign = foreign_format(head)
    if packed and head[:2] != b"\x1f\x8b" and head.strip():
        name, fix = foreign or ("data that are not compressed", "leave .gz out of its name")
        raise _foreign(path, name, "gzip-compressed data", fix)
    if not packed and foreign is not None:
        raise _foreign(path, foreign[0], "JSON in UTF-8", foreign[1])
    if not packed:
        return path.open("rb")
    with gzip.open(path, "rb") as inside:
        foreign = foreign_format(inside.read(HEAD))
    if foreign is not None:
        raise _foreign(path, f"{foreign[0]}, inside gzip", "JSON in UTF-8", f"unpack it; {foreign[1]}")
    return cast(IO[bytes], gzip.open(path, "rb"))


def _foreign(path: Path, got: str, expected: str, fix: str) -> DataError:
    return DataError("the file is not what its name says", where=path.name, got=got, expected=expected, fix=fix)


def _read_jsonl(path: Path) -> Iterator[Item]:
    number, first = 0, True
    with reading(path), _damage(path, lambda: f"{path.name}:{number + 1}"), _bytes_of(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():  # blank lines, most often the last one, are skipped
                continue
            if first and line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                raise DataError(
                    "the file is a list, not one object a line",
                    where=f"{path.name}:{number}",
                    got=repr(line[:80].decode(errors="replace")),
                    expected=_ONE_OBJECT_A_LINE,
                    fix="a list of objects belongs in a .json file: rename it",
                )
            first = False
            yield _item(line, f"{path.name}:{number}")


@contextlib.contextmanager
def _damage(path: Path, where: Callable[[], str]) -> Iterator[None]:
    """Context: the errors of unpacking as one DataError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            "the compressed file is damaged or cut short",
            where=where(),
            got=str(error),
            expected="a whole gzip file",
            fix=f"copy or download it again, and test it with: gzip -t {path}",
        ) from error


def row_of(line: bytes, where: str) -> Row:
    """Returns the row of one line of JSON; `where` is its place.

    Raises:
        DataError: malformed JSON, or no object.
    """
    item = _item(line, where)
    if isinstance(item, DataError):
        raise item
    return item


def _item(line: bytes, where: str) -> Item:
    try:
        value = _parse_json(line, where, _ONE_OBJECT_A_LINE, _FIX_LINE)
    except DataError as error:
        return error
    if isinstance(value, dict):
        return Row(value, where)
    fix = "a list of objects belongs in a .json file" if isinstance(value, list) else _FIX_LINE
    return DataError("the line is not an object", where=where, got=_short(value), expected=_ONE_OBJECT_A_LINE, fix=fix)


class _KeyTwice(ValueError):
    """The key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):  # JSON's usual reader would keep the last one and drop the others
        keys = [key for key, _ in pairs]
        raise _KeyTwice(next(key for key in keys if keys.count(key) > 1))
    return value


def _parse_json(data: bytes, where: str, expected: str, fix: str) -> Any:
    text = ""
    try:
        # utf-8-sig: Windows editors put a byte-order mark in front
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique)
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
        raise not_utf8(data, error, where) from error
    except _KeyTwice as error:
        raise DataError(
            f"the key '{error}' stands twice in one object", where=where, expected="each key once", fix=fix
        ) from error
    except json.JSONDecodeError as error:
        if "\0" in text:
            got, fix = "NUL characters", f"the file was not written to its end (a full disk, a crash): {fix}"
        else:
            got = f"{error.msg} at column {error.colno}: {text[max(0, error.pos - 40) : error.pos + 40].strip()!r}"
        raise DataError("malformed JSON", where=where, got=got, expected=expected, fix=fix) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists a thousand levels deep
        raise DataError("malformed JSON", where=where, got=str(error), expected=expected, fix=fix) from error


def _read_json(path: Path) -> Iterator[Item]:
    with reading(path), _damage(path, lambda: path.name), _bytes_of(path) as stream:
        data = stream.read()
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


def _read_parquet(path: Path) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    with reading(path):
        with path.open("rb") as stream:
            foreign = foreign_format(stream.read(HEAD))
        if foreign is not None and foreign[0] != "a Parquet file":
            raise _foreign(path, foreign[0], "a Parquet file", foreign[1])
        try:
            table = pq.ParquetFile(path)
            _unique_columns(table.schema_arrow.names, path)
            for batch in table.iter_batches(batch_size=1024):
                for item in _objects(map(_without_nulls, batch.to_pylist()), f"{path.name}:row ", number):
                    number += 1
                    yield item
        except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
            if isinstance(error, DataError) or getattr(error, "errno", None):
                raise
            what = "the Parquet file is damaged or cut short" if foreign else "not a Parquet file"
            where = f"{path.name}:row {number + 1}" if number else path.name
            raise DataError(what, where=where, got=str(error), fix="copy it again, or write it again") from error


def _unique_columns(names: list[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"two columns are called '{name}'", where=path.name, got=", ".join(names), fix="rename one of them"
            )


def _objects(values: Iterable[Any], prefix: str, before: int = 0) -> Iterator[Item]:
    """The values as rows, numbered from `before` + 1."""
    for number, value in enumerate(values, start=before + 1):
        where = f"{prefix}{number}"
        if isinstance(value, dict):
            yield Row(value, where)
        else:
            yield DataError("not an object", where=where, got=_short(value), expected="an object", fix="correct it")


def _without_nulls(row: Any) -> Any:
    # in a column store an absent field reads as null; only there does null mean absent
    if isinstance(row, list):
        return [_without_nulls(value) for value in row]
    return {k: _without_nulls(v) for k, v in row.items() if v is not None} if isinstance(row, dict) else row


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"{type(value).__name__} {text[:80]}{'...' if len(text) > 80 else ''}"


# ---------------------------------------------------------------------------------------------- folders and the hub


def _read_folder(folder: Path, split: str | None) -> Iterator[Item]:
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return _read_saved(folder, split)
    return itertools.chain.from_iterable(_read_file(p) for p in split_files(folder, split))


def _read_saved(folder: Path, split: str | None) -> Iterator[Item]:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # datasets raises many classes
        raise DataError(
            "the saved dataset cannot be read", where=str(folder), got=str(error), fix="save it again with save_to_disk"
        ) from error
    label = folder.name
    if isinstance(data, DatasetDict):
        name = choose_split([str(n) for n in data], split, str(folder))
        data, label = data[name], f"{label}[{name}]"
    elif split is not None:
        raise DataError("this saved dataset has no splits", where=str(folder), got=split, fix="leave split out")
    return _stored(data, f"{label}:row ", str(folder))


def _read_hub(ref: Ref, split: str | None) -> Iterator[Item]:
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
    return _stored(data, f"{ref.text}[{split}]:", ref.text)


def _stored(data: Iterable[Any], prefix: str, where: str) -> Iterator[Item]:
    """The rows of a data set of the package datasets."""
    number = 0
    try:
        for number, value in enumerate(iter(data), start=1):
            yield Row(_without_nulls(dict(value)), f"{prefix}{number}")
    except Exception as error:  # a file that is missing or cut short: many classes
        raise DataError(
            "the data set breaks off",
            where=f"{prefix}{number + 1}",
            got=f"{type(error).__name__}: {error}",
            fix=f"download or save it again: {where}",
        ) from error
