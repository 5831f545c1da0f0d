"""Files of a folder by split: one file, or all of its shards, each once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tiltyard.errors import DataError, nearest

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
# train-00000-of-00002.parquet, train-00000-of-00002-1a2b3c4d5e6f7a8b.parquet, train-00.jsonl, part-00000-UUID-c000
_SHARD = re.compile(
    r"(?:(?P<split>.+?)[-_.])??(?P<index>\d{2,})(?:[-_.]of[-_.](?P<count>\d{2,}))?"
    r"(?:-[0-9a-f]{8,}(?:-[0-9a-f]{4,})*(?:-c\d+)?(?:\.\w+)?)?"
)
_ABOUT = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})  # facts, no rows


def suffix_of(path: Path) -> str:
    """Returns the known suffix that the file name ends in; "" if it has none."""
    name = path.name.lower()
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), "")


def data_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that may hold rows, by name; hidden ones are left out."""
    named = (p for p in folder.iterdir() if suffix_of(p) and p.name[0] != "." and p.name not in _ABOUT)
    return sorted(p for p in named if p.is_file())


def split_files(folder: Path, split: str | None) -> list[Path]:
    """Returns the files of one split of a folder in the order of their shards.

    A split is a file `NAME.jsonl`, or shards that are numbered: `NAME-00000-of-00002.parquet`, or `NAME-00.jsonl`,
    `NAME-01.jsonl` (at least two digits, from 0 or 1). Any other name is a split of its own.

    Args:
        split: its name; if None `train`, or the only one there is.

    Raises:
        DataError: no data files, no such split, a shard that is missing, or two files for one part of the split.
    """
    files = data_files(folder)
    if not files and (folder / "data").is_dir():  # the layout of a cloned hub dataset
        files = data_files(folder / "data")
    if not files:
        inner = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and data_files(p))
        raise DataError(
            "the folder holds no data files",
            where=str(folder),
            got=f"folders that hold some: {', '.join(inner)}" if inner else None,
            expected=", ".join(SUFFIXES),
            fix=f"name one of them, e.g. {folder / inner[0]}" if inner else "check the path",
        )
    splits = _by_split(files)
    chosen = choose_split(list(splits), split, str(folder))
    return _in_order(folder, chosen, splits[chosen])


def choose_split(names: Sequence[str], split: str | None, where: str) -> str:
    """Returns the split that was asked for, or else `train` or the only one.

    Raises:
        DataError: there is no such split, or nothing says which.
    """
    chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if chosen is None:
        fix = "name one as `split` (--split of tiltyard check), or name a file of the folder"
        raise DataError(
            "which split?", where=where, got="several, and none called train", expected=", ".join(names), fix=fix
        )
    if chosen not in names:
        raise DataError("no such split", where=where, got=chosen, expected=", ".join(names), fix=nearest(chosen, names))
    return chosen


def _stem(path: Path) -> str:
    return path.name[: -len(suffix_of(path))]


def _by_split(files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files by the name of their split: shards under that of the whole, every other file under its own."""
    shards: dict[str, list[tuple[re.Match[str], Path]]] = {}
    splits: dict[str, list[Path]] = {}
    for path in files:
        match = _SHARD.fullmatch(_stem(path))
        if match:
            shards.setdefault(match["split"] or path.parent.name, []).append((match, path))
        else:
            splits.setdefault(_stem(path), []).append(path)
    for name, found in shards.items():
        # a number alone (train-2023, train-05) makes no shard: one of several, counted from 0 or 1, does
        counted = len(found) > 1 and min(int(match["index"]) for match, _ in found) <= 1
        for match, path in found:
            splits.setdefault(name if match["count"] or counted else _stem(path), []).append(path)
    return splits


def _in_order(folder: Path, split: str, files: list[Path]) -> list[Path]:
    """The files of a split by the numbers of their shards; every number must be there once."""
    matches = [(_SHARD.fullmatch(_stem(path)), path) for path in files]
    if len(files) == 1 and (matches[0][0] is None or not matches[0][0]["count"]):
        return files
    whole = [path for match, path in matches if match is None]
    counts = {match["count"] for match, _ in matches if match}
    numbered = {int(match["index"]): path for match, path in matches if match}
    if whole or len(counts) > 1 or len(numbered) < len(files):
        raise DataError(
            f"two files for one split: which of them is '{split}'?",
            where=str(folder),
            got=_listed([path.name for path in files]),
            expected="one file, or the shards of one set, each once",
            fix="remove the copies, or name the right file in place of the folder",
        )
    count = next(iter(counts))
    wanted = range(int(count)) if count else range(min(numbered), max(numbered) + 1)
    missing = [number for number in wanted if number not in numbered]
    beyond = [numbered[number].name for number in numbered if number not in wanted]
    if missing or beyond:
        names = [_renumbered(files[0].name, number) for number in missing]
        what = f"{len(missing)} of {len(wanted)} shards of '{split}' are missing" if missing else "a shard too many"
        raise DataError(
            what,
            where=str(folder),
            got=f"{len(files)} files, not {_listed(names)}" if missing else _listed(beyond),
            expected=f"shards {wanted[0]} to {wanted[-1]}",
            fix="download the missing ones; to use these alone, name them in a list: data=[FILE, FILE]",
        )
    return [numbered[number] for number in wanted]


def _renumbered(name: str, number: int) -> str:
    """The name of another shard of the same set."""
    match = _SHARD.match(name)
    assert match is not None  # the name of a shard
    start, stop = match.span("index")
    return f"{name[:start]}{number:0{stop - start}}{name[stop:]}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
