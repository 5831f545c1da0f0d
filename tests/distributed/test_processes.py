"""Two gloo processes give the loss curve of one, for every method, and write everything once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.training import tiny
from tests.training.ranks import NAMES, RL

from tiltyard.distributed import processes
from tiltyard.errors import ConfigError

ROOT = Path(__file__).parents[2]
BY_PROCESS = ("mismatch/effective", "mismatch/largest")  # means over processes
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def launch(folder: Path, *before: str) -> None:
    folder.mkdir()
    command = [sys.executable, *(before or ("-m",)), "tests.training.ranks", str(folder)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    launch(folder / "one")
    launch(folder / "two", *TORCHRUN)
    assert json.loads((folder / "one" / "ranks.0.json").read_text()) == [0, 1]
    assert json.loads((folder / "two" / "ranks.1.json").read_text()) == [1, 2]
    return folder / "one", folder / "two"


def rows(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    # what vbon keeps of the reference is sampled again, the same, where a prompt comes to another process
    left_out = ("time/", "ref_sampled")
    return [{k: v for k, v in row.items() if not k.startswith(left_out)} for row in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one(folders: tuple[Path, Path], name: str) -> None:
    """Every metric of every step and the final parameters; the two ranks hold the same bits."""
    one, two = folders
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in BY_PROCESS} for row in rows(folder / name / "metrics.jsonl")]
        for folder in (two, one)
    )
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    tiny.assert_same(ours, theirs, 1e-9)
    assert [row["step"] for row in ours] == [1, 2, 3, 4, 5]  # written once
    for path in sorted(one.glob(f"{name}.*.rank0.safetensors")):
        final, other = load_file(two / path.name), load_file(two / path.name.replace("rank0", "rank1"))
        tiny.assert_same(final, other, 0)
        tiny.assert_same(final, load_file(path), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "lonely", *RL])
def test_the_same_answers_are_drawn(folders: tuple[Path, Path], name: str) -> None:
    """The random numbers belong to the prompt's place in the step, not to the process."""
    found = []
    for folder in folders:
        groups = rows(folder / name / "groups.jsonl")
        found.append([(g["step"], g["prompt"]["id"], [r["ids"] for r in g["responses"]]) for g in groups])
        if name == "dynamic":  # of the coin's groups those alike are left out, in some steps more than can be replaced
            assert 5 * 2 < len(groups) <= 5 * 5
            assert all(len(set(g["scores"])) > 1 for g in groups)
            assert 0 < rows(folder / name / "metrics.jsonl")[0]["dropped_groups"] < 1
        else:
            assert len(groups) == 5 * (1 if name == "lonely" else 5)
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_are_written_once(folders: tuple[Path, Path], name: str) -> None:
    for folder in folders:
        saved = sorted(p.name for p in (folder / name / "checkpoints").iterdir())
        assert saved == ["step-00000004", "step-00000005"]


PEACE = """
import torch
from tiltyard.distributed import processes
processes.start()
for _ in range(20):
    processes.sum_all(torch.ones(4))
processes.barrier()
{last}
"""


@pytest.mark.slow
def test_processes_exit_without_an_abort(tmp_path: Path) -> None:
    """Threads of a group that was left standing aborted one run in three; after an error nobody waits."""
    script = tmp_path / "peace.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    for last, codes in (("", {0}), ("", {0}), ("", {0}), ("assert processes.rank() == 0, 'on purpose'", {1})):
        script.write_text(PEACE.format(last=last))
        command = [sys.executable, *TORCHRUN[:-1], str(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in codes, done.stderr[-2000:]
        assert last or "terminate called" not in done.stderr  # after an error the group is left standing


LOST = """
import os
from tiltyard.distributed import processes

processes.start()
processes.{call}
if processes.rank() == 1:
    os._exit(9)
try:
    for _ in range(5):
        processes.{call}
except Exception as error:
    assert processes.lost_process(RuntimeError("shapes differ")) is None
    raise SystemExit(str(processes.lost_process(error)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("call", ["barrier()", "gather_objects(1)"])
def test_a_process_whose_partner_has_ended_says_so(call: str, tmp_path: Path) -> None:
    script = tmp_path / "lost.py"
    script.write_text(LOST.format(call=call))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *TORCHRUN[:-1], str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "process 0 of 2, counted from 0: another process of this run has ended" in done.stderr, done.stderr[-2000:]


def test_a_start_that_cannot_succeed_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT[\s\S]*torchrun"):
        processes.start()
    for name, value in {"RANK": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    processes.check_start(0)
    processes.check_start(4)
    with pytest.raises(ConfigError, match=r"process 3 of it, counted from 0, and 2 GPUs[\s\S]*at most 2"):
        processes.check_start(2)
