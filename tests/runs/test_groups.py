"""What is written is read back equal; a file is whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import group_from_dict, group_to_dict, read_groups, write_groups
from tiltyard.errors import DataError
from tiltyard.files import atomic_write
from tiltyard.types import Group, Message, Preference, Prompt, Response

IDS = st.lists(st.integers(0, 200_000), max_size=6).map(tuple)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBER = st.floats(allow_nan=False)
META = st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.booleans(), st.none(), st.lists(NUMBER)), max_size=3)
PROMPTS = st.builds(
    Prompt,
    messages=st.none() | st.lists(st.builds(Message, st.sampled_from(["user", "system"]), TEXT), max_size=3).map(tuple),
    text=st.none() | TEXT,
    id=TEXT,
    meta=META,
    ids=IDS,
)
RESPONSES = st.builds(
    Response,
    ids=IDS,
    text=TEXT,
    logps=st.none() | st.lists(NUMBER, max_size=4).map(tuple),
    policy_version=st.none() | st.integers(0, 9),
    finish=st.sampled_from(["stop", "length", "given"]),
    loss_spans=st.none() | st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2).map(tuple),
    meta=META,
)
PROVENANCE = dict.fromkeys(("annotator", "when", "guideline", "prompt", "model", "run"), TEXT)
PREFERENCES = st.one_of(
    st.builds(Preference, **{name: st.lists(values, max_size=3).map(tuple)}, **PROVENANCE, meta=META)
    for name, values in (
        ("ranks", st.integers(1, 9)),
        ("shares", NUMBER),
        ("labels", st.booleans()),
        ("ratings", NUMBER),
        ("responses", TEXT),
    )
)
GROUPS = st.builds(
    Group,
    PROMPTS,
    st.lists(RESPONSES, max_size=3).map(tuple),
    st.none() | st.lists(NUMBER, max_size=3).map(tuple),
    st.none() | PREFERENCES,
    TEXT,
)
ONE = Group(
    Prompt(messages=(Message("user", "q"),), ids=(1,)), (Response(ids=(2, 3), logps=(-0.1, -1e-30)),), origin="f:1"
)


@settings(max_examples=100, deadline=None)
@given(group=GROUPS)
def test_round_trip(group: Group, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    write_groups(path, [group, ONE])
    back = list(read_groups(path))
    assert back == [group, ONE]
    assert all(isinstance(m, Message) for m in back[1].prompt.messages or ())
    assert group_from_dict(group_to_dict(group)) == group


def test_groups_of_older_files() -> None:
    """They have `ranks` and `shares` beside the scores."""
    value = group_to_dict(ONE)
    for old, preference in (
        ({"ranks": [2, 1]}, Preference(ranks=(2, 1))),
        ({"ranks": [2, 1], "shares": [0.25, 0.75]}, Preference(shares=(0.25, 0.75))),
        ({"ranks": None}, None),
    ):
        assert group_from_dict(value | old).preference == preference


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "groups.jsonl"
    write_groups(path, [ONE] * 3)
    assert len(list(read_groups(path))) == 3
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 4])  # killed while writing
    assert list(read_groups(path)) == [ONE] * 3


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    write_groups(path, [ONE])
    path.write_text(path.read_text() + '{"prompt": "q", "completion": "a"}\n')
    with pytest.raises(DataError, match=r"g.jsonl:2: this line is not a group(.|\n)*load_groups"):
        list(read_groups(path))
    with pytest.raises(DataError, match="no such file of groups"):
        read_groups(tmp_path / "none.jsonl")


def test_meta_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    write_groups(path, [ONE])
    bad = Group(Prompt(text="", meta={"x": object()}), (), origin="policy@3")
    with pytest.raises(DataError, match=r"policy@3: a group holds something(.|\n)*convert it first"):
        write_groups(path, [ONE, bad])
    assert list(read_groups(path)) == [ONE]
    assert os.listdir(tmp_path) == ["g.jsonl"]


def test_atomic_write_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as stream:
        stream.write("first")

    def fail() -> None:
        with atomic_write(path, "wb") as stream:
            stream.write(b"half of the sec")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
