"""Checkpoints by parts: rows of tensors in files of several processes, read by any number; what is torn is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.test_sharded import launch, tiny_rows
from tests.training import tiny

from tiltyard.distributed import part_files, processes
from tiltyard.distributed.parts import Rows


def written(folder: Path, tensors: dict[str, torch.Tensor], count: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes tensors as `count` processes do that hold even parts of them, one after the other; the index."""
    parts = []
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        own = {}
        for name, tensor in tensors.items():
            if not tensor.ndim:
                own |= {name: Rows(tensor, ())} if rank == 0 else {}
                continue
            each = -(-len(tensor) // count)
            start = min(rank * each, len(tensor))
            own[name] = Rows(tensor[start : start + each].contiguous(), tuple(tensor.shape), start)
        parts.append(part_files.write(folder, "weights", own, count))
    return part_files.merged(parts)


TENSORS = {
    "even": torch.arange(24.0, dtype=torch.float64).view(6, 4),
    "uneven": torch.arange(15).view(5, 3),
    "few": torch.tensor([[1.5, 2.5]], dtype=torch.bfloat16),
    "alone": torch.tensor(3.0),
}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_any_rows_come_back(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = json.loads(json.dumps(written(tmp_path, TENSORS, count, monkeypatch)))
    assert len(list(tmp_path.iterdir())) == count
    with part_files.Reader(tmp_path, "weights", index if count > 1 else None) as saved:
        assert saved.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
        for name, tensor in TENSORS.items():
            assert torch.equal(saved.read(name), tensor)
            assert saved.read(name).dtype == tensor.dtype
            for first in range(len(tensor) + 1 if tensor.ndim else 0):
                for end in range(first, len(tensor) + 1):
                    rows = saved.read(name, first, end)
                    assert torch.equal(rows, tensor[first:end])
                    assert rows.dtype == tensor.dtype


@pytest.mark.parametrize("fault", ["lost", "twice", "short"])
def test_an_index_without_all_rows_is_refused(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = written(tmp_path, TENSORS, 2, monkeypatch)
    rows = index["even"]["rows"]
    if fault == "lost":
        del rows[0]
    elif fault == "twice":
        rows.append(rows[0])
    else:
        del rows[-1]
    with pytest.raises(ValueError, match="even: rows"):
        part_files.Reader(tmp_path, "weights", index)


def test_a_file_with_fewer_rows_than_the_index_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = written(tmp_path, TENSORS, 2, monkeypatch)
    index["even"] = {"shape": [8, 4], "rows": [[index["even"]["rows"][0][0], 0, 8]]}
    with part_files.Reader(tmp_path, "weights", index) as saved, pytest.raises(ValueError, match="3 rows were read"):
        saved.read("even", 0, 8)


# ------------------------------------------------------------------------------------------- runs of several processes


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def same_end(folder: Path, alone: Path) -> None:
    curve, expected = (tiny_rows(path / "metrics.jsonl") for path in (folder, alone))
    assert [row["step"] for row in curve] == [row["step"] for row in expected]
    tiny.assert_same(curve, expected, 1e-9)
    tiny.assert_same(*(load_file(path / "trained.safetensors") for path in (folder, alone)), 1e-9)


@pytest.mark.slow
def test_each_process_writes_its_rows(tmp_path: Path) -> None:
    step = launch(tmp_path / "two", 2, "tied", "2") / "checkpoints" / "step-00000002"
    assert {path.name for path in step.iterdir()} == {
        *(f"{group}-0000{n}-of-00002.safetensors" for group in ("weights", "optimizer") for n in (1, 2)),
        *("rng.safetensors", "state.json", "parts.json", "sha256.json"),
    }
    sizes = [sum(t.numel() for t in load_file(file).values()) for file in sorted(step.glob("weights-*"))]
    assert max(sizes) < 0.6 * sum(sizes)


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_with_more(tmp_path: Path) -> None:
    """Whole tensors, as checkpoints of earlier versions have them in any case."""
    alone = launch(tmp_path / "alone", 1, "tied", "6")
    for count in (2, 3):
        folder = tmp_path / str(count)
        shutil.copytree(alone, folder)
        shutil.rmtree(folder / "checkpoints" / "step-00000006")
        launch(folder, count, "tied", "6")
        same_end(folder, alone)
        assert len(list((folder / "checkpoints" / "step-00000006").glob("weights-*"))) == count


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["rank 1 in its file", "rank 0 before the rename"])
def test_killed_while_a_checkpoint_is_written(moment: str, tmp_path: Path) -> None:
    """By SIGKILL: the checkpoint before is read, what lies half written is removed, the end is the same."""
    folder = tmp_path / "cut"
    launch(folder, 2, "tied", "6", "0", moment, ends=False)
    assert [name for name in steps(folder) if name.startswith("step-")] == ["step-00000002"]
    assert ".unfinished-00000004" in steps(folder)
    launch(folder, 2, "tied", "6")
    assert steps(folder) == ["step-00000004", "step-00000006"]
    same_end(folder, launch(tmp_path / "alone", 1, "tied", "6"))


@pytest.mark.slow
def test_a_full_disk_of_one_process_ends_all_with_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    launch(folder, 2, "tied", "6", "0", "rank 1 full", ends=False)
    for rank in (0, 1):
        text = (folder / f"error-{rank}.txt").read_text()
        assert "the checkpoint of step 4 could not be written" in text
        assert "No space left on device (process 1)" in text
        assert "step 2 is intact" in text
    assert steps(folder) == ["step-00000002"]
