"""A `GroupFile` returns the groups that were written, whatever file they come from, and memory does not hold them."""

from __future__ import annotations

import datetime
import gc
import gzip
import itertools
import json
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import family
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.data import Chat, GroupFile, Kind, group_file, load_groups, parse_row, read_rows, stream_groups
from tiltyard.errors import DataError
from tiltyard.types import Group, Message, Preference, Prompt, Response

LONG = "The quick brown fox jumps over the lazy dog. " * 8
TURNS = [{"role": role, "content": f"hello {i}, naïve 東京"} for i, role in enumerate(["user", "assistant"] * 3)]
ROWS: dict[Kind, list[dict[str, Any]]] = {
    "text": [{"text": "hello"}, {"text": LONG}, {"messages": TURNS, "source": 3}],
    "demonstrations": [{"prompt": "a", "completion": "b"}, {"messages": TURNS}, {"prompt": LONG, "completion": LONG}],
    "comparisons": [
        {"prompt": "a", "chosen": "b", "rejected": LONG, "meta": {"gold": {"x": [0.1, 2.5], "y": "é"}}},
        {"prompt": "a", "chosen": "b", "rejected": "c", "p_chosen": 0.3, "id": "mine"},
        {"prompt": "a", "responses": ["b", "c", "d"], "scores": [0.1, 0.1, -1e-30]},
        {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 3, 2]},
        {"prompt": "a", "responses": ["b", "c", "d"], "shares": [6, 3, 1]},
    ],
    "labelled": [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "chosen": "b", "rejected": "c"}],
}


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(family("tiltyard"))


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def packed(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "f.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(folder, rows).read_bytes()))
    return path


def listed(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "f.json"
    path.write_text(json.dumps(rows))
    return path


def columns(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "f.parquet"
    keys = list(dict.fromkeys(key for row in rows for key in row))
    pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in keys}), path, row_group_size=2)
    return path


FILES: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "jsonl": jsonl,
    "jsonl.gz": packed,
    "json": listed,
    "parquet": columns,
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("file", FILES)
def test_they_are_what_a_list_holds(chat: Chat, tmp_path: Path, file: str, kind: Kind) -> None:
    """Encoded in one piece here, in whatever way the rows were cut."""
    path = FILES[file](tmp_path, ROWS[kind] * 3)
    parsed = [parse_row(row, kind) for row in read_rows(path)]
    if kind == "text":
        plain = list(itertools.chain.from_iterable(chat.encode_documents(parsed, 16)))
    else:
        plain = chat.encode_groups(parsed)
    stream = stream_groups(path, kind, chat, max_length=16 if kind == "text" else 2000)
    kept = GroupFile.write(stream, tmp_path / "kept")
    assert list(kept) == plain
    assert [kept[i] for i in reversed(range(len(kept)))] == plain[::-1]
    assert (kept[1:4], kept[-1]) == (plain[1:4], plain[-1])
    assert kept.tokens.tolist() == [g.tokens for g in plain]
    some = kept.pick([4, 0, 2])
    assert list(some) == [plain[4], plain[0], plain[2]]
    assert some.tokens.tolist() == [plain[i].tokens for i in (4, 0, 2)]
    assert list(some.pick([2, 1])) == [plain[2], plain[0]]
    assert stream.report == load_groups(path, kind, chat, max_length=16 if kind == "text" else 2000)[1]


def test_the_file_has_no_name(chat: Chat, tmp_path: Path) -> None:
    kept = GroupFile.write(
        stream_groups(jsonl(tmp_path, ROWS["demonstrations"]), "demonstrations", chat), tmp_path / "kept"
    )
    assert list((tmp_path / "kept").iterdir()) == []
    assert len(kept) == 3


def test_a_bad_row_stops_before_anything_is_read(chat: Chat, tmp_path: Path) -> None:
    path = jsonl(tmp_path, [*ROWS["demonstrations"], {"prompt": "x", "completion": " "}])
    with pytest.raises(DataError, match=r"f.jsonl:4: field 'completion' is empty"):
        GroupFile.write(stream_groups(path, "demonstrations", chat), tmp_path)


def test_dates_travel_as_text(chat: Chat, tmp_path: Path) -> None:
    day = datetime.datetime(2024, 5, 17, 12, 30, tzinfo=datetime.UTC)
    path = columns(tmp_path, [{"prompt": "a", "completion": "b", "when": day}])
    (group,) = GroupFile.write(stream_groups(path, "demonstrations", chat), tmp_path)
    assert group.prompt.meta == {"when": str(day)}


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb+"))  # noqa: SIM115
    group = Group(Prompt(text="x", ids=(1,)), (Response(text="y" * 100, ids=(2,)),))
    for count in (1, 1000):  # at the end, and while it is written
        with pytest.raises(DataError, match=r"do not fit on the disk[\s\S]*No space left"):
            GroupFile.write([group] * count, tmp_path)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
JSON = st.recursive(VALUES, st.lists, max_leaves=4)
META = st.dictionaries(TEXT, JSON, max_size=2)
NUMBERS = st.floats(allow_nan=False)
SPANS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3).map(tuple)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=3).map(tuple)
PROMPTS = st.builds(Prompt, st.none() | MESSAGES, st.none() | TEXT, TEXT, META, IDS)
RESPONSES = st.builds(
    Response,
    ids=IDS,
    text=TEXT,
    logps=st.none() | st.lists(NUMBERS, max_size=6).map(tuple),
    policy_version=st.none() | st.integers(0, 2**40),
    finish=st.sampled_from(["stop", "length", "given"]),
    loss_spans=st.none() | SPANS,
    meta=META,
)


@st.composite
def any_group(draw: st.DrawFn) -> Group:
    """Every field set, empty or None."""
    responses = tuple(draw(st.lists(RESPONSES, max_size=3)))

    def a_number_each(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | st.tuples(*[values for _ in responses]))

    name = draw(st.sampled_from(["ranks", "shares", "labels", "ratings"]))
    values = a_number_each({"ranks": st.integers(1, 9), "labels": st.booleans()}.get(name, NUMBERS))
    preference = draw(st.none() | st.builds(Preference, annotator=TEXT, when=TEXT, meta=META))
    if preference is not None:
        preference = replace(preference, **{name: values})
    return Group(draw(PROMPTS), responses, a_number_each(NUMBERS), preference, draw(TEXT))


@given(st.lists(any_group(), max_size=7), st.integers(1, 3))
def test_every_field_comes_back(tmp_path_factory: pytest.TempPathFactory, groups: list[Group], batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_file, "BATCH", batch)
        file = GroupFile.write(groups, tmp_path_factory.getbasetemp())
        assert list(file) == groups
        assert [file[i] for i in reversed(range(len(file)))] == groups[::-1]
        assert file.tokens.tolist() == [group.tokens for group in groups]


def test_the_file_is_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs read it with the schema that the module documents."""
    path = tmp_path / "groups.arrow"
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: path.open("wb+"))
    sampled = Response(ids=(2, 3), text="y", logps=(-0.5, -0.25))
    GroupFile.write([Group(Prompt(text="x", ids=(1,)), (sampled,)), Group(Prompt(text="z", ids=(7,)), ())], tmp_path)
    table = pa.ipc.open_file(path).read_all()
    assert table.schema == pa.schema(
        [("ids", pa.list_(pa.int32())), ("logps", pa.list_(pa.float64())), ("record", pa.string())]
    )
    assert table["ids"].to_pylist() == [[1, 2, 3], [7]]
    assert table["logps"].to_pylist() == [[-0.5, -0.25], None]
    assert json.loads(table["record"][0].as_py())["prompt"] == {"text": "x"}


def test_pandas_stays_out(tmp_path: Path) -> None:
    """Arrow would import it for a list of numbers: 50 MiB of a process that trains."""
    code = (
        "import sys; from tiltyard.data import GroupFile; from tiltyard.types import *\n"
        "group = Group(Prompt(text='x', ids=(1,)), (Response(ids=(2,), logps=(-0.5,)),), "
        "preference=Preference(ranks=(1,)))\n"
        f"assert list(GroupFile.write([group] * 3, {str(tmp_path)!r})) == [group] * 3\n"
        "assert not {'pandas', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_holds_twelve_bytes_a_group(tmp_path: Path) -> None:
    def groups(n: int) -> Iterator[Group]:
        for i in range(n):
            yield Group(Prompt(text=f"{i}" * 200, ids=tuple(range(50))), (Response(text="y" * 2000, ids=(2,)),))

    def held(n: int) -> int:
        gc.collect()
        tracemalloc.start()
        kept = GroupFile.write(groups(n), tmp_path)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(kept) == n
        return size

    held(10)  # imports and caches
    assert (held(9000) - held(1000)) / 8000 < 20  # arrays grow by an eighth more than they need
