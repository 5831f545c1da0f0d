"""The journal: what a kill at any byte leaves, and what an attempt after it does with that."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.stages.planted import Place, after, before, half_row, killed

from tiltyard.errors import CheckpointError
from tiltyard.runs import journal
from tiltyard.runs.journal import Journal, JsonlFile

FILES = ("rows.jsonl", "rejected.jsonl")


@dataclass
class Progress:
    done: int = 0
    total: float = 0.0


def block(number: int) -> dict[str, list[Any]]:
    rows = [{"n": number, "text": "é\n" * number}, b'{"raw": %d}\n' % number]
    return {FILES[0]: rows, FILES[1]: rows[: number % 2]}


def work(folder: Path, blocks: int = 4) -> list[int]:
    """Does what is left to do; returns the numbers of the blocks that were made."""
    made = []
    with Journal(folder, FILES, Progress()) as log:
        for number in range(log.progress.done, blocks):
            made.append(number)
            log.progress.done += 1
            log.progress.total += 0.1 * number
            log.commit(block(number))
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    assert work(tmp_path / "whole") == [0, 1, 2, 3]
    return contents(tmp_path / "whole")


def test_what_it_writes(whole: dict[str, bytes]) -> None:
    rows = [json.loads(line) for line in whole["rows.jsonl"].splitlines()]
    assert [row.get("n", row.get("raw")) for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(whole["rejected.jsonl"].splitlines()) == 2
    state = json.loads(whole["progress.json"])
    assert state["files"] == {name: len(whole[name]) for name in FILES}
    assert state["progress"] == {"done": 4, "total": pytest.approx(0.6)}


def test_every_byte_of_an_uncommitted_block(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """The files end at any byte of the block, or of the blocks, after the one that was committed last."""
    for blocks in (0, 1, 2):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        work(tmp_path / "cut", blocks)
        start = contents(tmp_path / "cut")
        for name in FILES:
            for end in range(len(start[name]), len(whole[name]) + 1):
                shutil.rmtree(tmp_path / "cut")
                (tmp_path / "cut").mkdir()
                for file, data in start.items():
                    if blocks or file != "progress.json":
                        (tmp_path / "cut" / file).write_bytes(data)
                (tmp_path / "cut" / name).write_bytes(whole[name][:end])
                assert work(tmp_path / "cut") == list(range(blocks, 4))
                assert contents(tmp_path / "cut") == whole


@pytest.mark.parametrize("owner", [JsonlFile.write, JsonlFile.sync, journal.write_json])
@pytest.mark.parametrize("done", [before, after, half_row])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_kill_9_in_any_call(tmp_path: Path, whole: dict[str, bytes], owner: Any, done: Any, call: int) -> None:
    done = after if done is half_row and owner is not JsonlFile.write else done
    place = Place(journal if owner is journal.write_json else JsonlFile, owner.__name__, call, done)
    killed(lambda: work(tmp_path / "cut"), place.plant)
    work(tmp_path / "cut")
    assert contents(tmp_path / "cut") == whole


def test_a_folder_that_was_committed_is_left_alone(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert work(tmp_path / "whole") == []
    assert contents(tmp_path / "whole") == whole
    with Journal(tmp_path / "whole", FILES, Progress()) as log:
        assert log.resumed
    with Journal(tmp_path / "new", FILES, Progress()) as log:
        assert not log.resumed


def test_files_that_lost_lines_are_an_error(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "whole" / "rows.jsonl"
    path.write_bytes(whole["rows.jsonl"][:-1])
    with pytest.raises(CheckpointError, match=r"(?s)rows.jsonl.*lost lines.*start again"):
        work(tmp_path / "whole")
    assert path.read_bytes() == whole["rows.jsonl"][:-1]
    path.write_bytes(whole["rows.jsonl"][:-1] + b"x  \n")
    with pytest.raises(CheckpointError, match=r"(?s)lost lines.*no line that ends at byte"):
        work(tmp_path / "whole")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"lost lines"):
        work(tmp_path / "whole")


@pytest.mark.parametrize(
    "state", ["", "{", "[]", '{"done": 3}', '{"format": 1, "files": {"other.jsonl": 3}, "progress": {"done": 0}}']
)
def test_a_state_of_another_version(tmp_path: Path, whole: dict[str, bytes], state: str) -> None:
    (tmp_path / "whole" / "progress.json").write_text(state)
    with pytest.raises(CheckpointError, match=r"(?s)another version.*progress|progress.*another version"):
        work(tmp_path / "whole")
    assert (tmp_path / "whole" / "rows.jsonl").read_bytes() == whole["rows.jsonl"]


@pytest.mark.parametrize("room", range(4))
def test_a_full_disk_commits_nothing(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    real, left = os.fsync, [room]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    work(tmp_path / "cut", 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            work(tmp_path / "cut")
    assert work(tmp_path / "cut") == ([2, 3] if room < 3 else [3])  # the state itself was in its place
    assert contents(tmp_path / "cut") == whole
