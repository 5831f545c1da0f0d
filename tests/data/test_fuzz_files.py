"""Bytes that nobody meant: every reader of files ends with rows or with an error that has a place, never otherwise."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiltyard.cli import main
from tiltyard.data import read_groups, read_rows
from tiltyard.data.formats import KINDS
from tiltyard.errors import TiltyardError
from tiltyard.files import read_text
from tiltyard.inputs.files import check_files
from tiltyard.runs.groups import read_step_groups, write_groups
from tiltyard.types import Group, Message, Prompt, Response

pytestmark = pytest.mark.slow
BOUNDED = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ROWS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "a", "rejected": "b", "p_chosen": 0.7, "meta": {"x": [1, None]}},
    {"prompt": [{"role": "user", "content": "Où?"}], "responses": ["a", "b"], "scores": [1, 2.5]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"text": "words", "id": 7, "label": True},
]
NAMES = ("f.jsonl", "f.jsonl.gz", "f.json", "f.json.gz", "f.parquet", "f.groups.jsonl")


def whole(name: str, folder: Path) -> bytes:
    """A valid file of that name."""
    if name == "f.groups.jsonl":
        group = Group(
            Prompt(messages=(Message("user", "q"),), id="1"), (Response(ids=(1, 2), text="a", logps=(0.0, -1.0)),)
        )
        write_groups(folder / name, [group] * 3)
        return (folder / name).read_bytes()
    if name == "f.parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(
            pa.Table.from_pylist([{"prompt": "q", "chosen": "a", "rejected": "b", "n": i} for i in range(9)]),
            folder / name,
        )
        return (folder / name).read_bytes()
    text = json.dumps(ROWS) if ".jsonl" not in name else "".join(json.dumps(row) + "\n" for row in ROWS)
    return gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some cut out, doubled, flipped or put in."""
    for _ in range(rng.randint(1, 4)):
        at, n = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 8, 64))
        piece = rng.choice(
            (b"", data[at : at + n] * 2, rng.randbytes(n), b"\0" * n, b"\xff", b'"', b"}", b"9" * 5000, b"[" * 5000)
        )
        data = data[:at] + piece + data[at + n :]
    return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data


def placed(error: TiltyardError) -> None:
    if not error.where:
        pytest.fail(f"an error without a place: {error}")


def ends_well(read: Callable[[], Any]) -> None:
    try:
        read()
    except TiltyardError as error:
        placed(error)


@BOUNDED
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 2**32),
    raw=st.one_of(st.none(), st.binary(max_size=200)),
    kind=st.sampled_from(KINDS),
)
def test_readers_of_rows(tmp_path: Path, name: str, seed: int, raw: bytes | None, kind: str) -> None:
    """Random bytes, and files that were whole once."""
    rng = random.Random(seed)
    data = raw if raw is not None else mutated(whole(name, tmp_path), rng)
    if raw is not None and name.endswith(".gz") and rng.random() < 0.5:
        data = gzip.compress(data)
    path = tmp_path / name
    path.write_bytes(data)
    ends_well(lambda: list(read_rows(path)))
    ends_well(lambda: check_files(str(path), kind=kind))
    ends_well(lambda: list(read_groups(path)))
    ends_well(lambda: list(read_step_groups(path)))
    ends_well(lambda: read_text(path))


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["q", "\n\nHuman: q\n\nAssistant: a"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text", "type"]), inner, max_size=3),
    ),
    max_leaves=8,
)
FIELDS = (
    *("prompt", "chosen", "rejected", "completion", "responses", "scores", "ranks", "shares", "labels", "label"),
    *("messages", "text", "p_chosen", "meta", "id", "system", "history", "tools", "images", "conversations"),
    *("instruction", "input", "output"),
)


@BOUNDED
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5), min_size=1, max_size=4),
    kind=st.sampled_from(KINDS),
)
def test_rows_of_any_values(tmp_path: Path, rows: list[dict[str, Any]], kind: str) -> None:
    """Fields that have a meaning with values that have none."""
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ends_well(lambda: check_files(str(path), kind=kind))


@settings(parent=BOUNDED, max_examples=40)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**32))
def test_verbs_that_read_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, seed: int) -> None:
    path = tmp_path / name
    path.write_bytes(mutated(whole(name, tmp_path), random.Random(seed)))
    for words in (
        ("check", str(path)),
        ("check", str(path), "--held-out", str(path), "--kind", "prompts", "--json"),
        ("train", "clean", f"data={path}", f"name=x{seed}", "--runs", str(tmp_path / "runs")),
        ("run", str(path), "--dry-run"),
    ):
        code = main(words)
        text = capsys.readouterr().err
        assert code in (0, 2), text
        assert "  at: " not in text
