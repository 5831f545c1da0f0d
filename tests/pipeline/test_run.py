from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.pipeline.conftest import statuses
from tests.pipeline.toys import RECIPE

from tiltyard.errors import ConfigError, TiltyardError
from tiltyard.files import jsonable, read_json, write_json
from tiltyard.pipeline import run_stage
from tiltyard.pipeline.state import WHOLE, FileHashes, duration, locked
from tiltyard.stages.base import StageContext

ROOT = Path(__file__).parents[2]


def test_all_stages_run_then_all_are_skipped(go, tmp_path) -> None:
    outcome, text = go()
    assert statuses(outcome) == "run run run run run"
    assert outcome["stages"]["measure"]["result"]["weights"] == {"learn": "48", "tune": "48*0.1", "tune_free": "48*0.0"}
    assert set(outcome["stages"]["measure"]["result"]["seconds"]) == {"make", "learn", "tune", "tune_free"}
    assert outcome["stages"]["learn"]["result"] == {"total": 48, "loss": None}  # JSON has no NaN
    assert "tune_free (tune): runs, not run yet" in text
    assert "tunes model, dry_run=False" in text
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/toy").rglob("*") if p.name != ".lock"}
    again, text = go()
    assert statuses(again) == "skip skip skip skip skip"
    assert re.search(r"learn: done \(.+ s\), skipped", text)  # a busy machine takes its time
    assert again["stages"]["measure"]["result"] == outcome["stages"]["measure"]["result"]
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/toy").rglob("*") if p.name != ".lock"}


@pytest.mark.parametrize(
    ("override", "status", "why"),
    [
        ("tune.kl=0.2", "skip skip run skip run", "tune: runs, kl changed 0.1 -> 0.2"),
        ("learn.steps=5", "skip run run run run", "tune: runs, its input 'learn' was re-run"),
        ("make.text=xyz", "run run run run run", "make: runs, text changed abc -> xyz"),
        ("learn.arch.layers=3", "skip run run run run", "learn: runs, arch changed null -> "),
        (
            "measure.models=[tune]",
            "skip skip skip skip run",
            'models changed ["learn", "tune", "tune_free"] -> ["tune"]',
        ),
        ("learn.pause=0.001", "skip skip skip skip skip", ""),  # neutral
        ("make.log=wandb", "skip skip skip skip skip", ""),
    ],
)
def test_a_change_reruns_exactly_what_depends_on_it(go, override, status, why) -> None:
    go()
    outcome, text = go(override)
    assert statuses(outcome) == status
    assert why in text
    assert statuses(go(override)[0]) == "skip skip skip skip skip"


def test_nothing_is_lost_when_a_stage_runs_again(go, tmp_path) -> None:
    go()
    (tmp_path / "runs/toy/tune/groups.jsonl").write_text("collected\n")
    go("tune.kl=0.2")
    kept = list((tmp_path / "runs/toy/.old").glob("tune-*"))
    assert len(kept) == 1
    assert (kept[0] / "groups.jsonl").read_text() == "collected\n"
    assert (kept[0] / "model/weights").read_text() == "48*0.1"
    assert not (tmp_path / "runs/toy/tune/groups.jsonl").exists()
    go()
    assert len(list((tmp_path / "runs/toy/.old").glob("tune-*"))) == 2


def test_a_lost_folder_is_made_again_with_what_depends_on_it(go, tmp_path) -> None:
    go()
    (tmp_path / "runs/toy/learn").rename(tmp_path / "gone")
    outcome, text = go()
    assert statuses(outcome) == "skip run run run run"
    assert "tune: runs, its input 'learn' was re-run" in text


def test_a_stage_that_was_rerun_before_the_process_died(go, tmp_path) -> None:
    """`learn` ran again, then the process died: `tune` still stands, but on the old `learn`."""
    go()
    (tmp_path / "runs/toy/learn").rename(tmp_path / "gone")
    text = "\n".join(RECIPE.splitlines()[:7])
    assert statuses(go(text=text)[0]) == "skip run"
    assert statuses(go(text=RECIPE)[0]) == "skip skip run run run"


def test_input_files_count_by_content(go, tmp_path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    text = f"name: f\nstages:\n  - learn: {{data: {data}}}\n"
    go(text=text)
    os.utime(data, (1, 1))
    assert statuses(go()[0]) == "skip"
    data.write_text("two")
    outcome, text = go()
    assert statuses(outcome) == "run"
    assert f"its file {data} changed" in text


def test_files_beside_the_recipe_are_found(go, tmp_path, monkeypatch) -> None:
    (tmp_path / "beside.jsonl").write_text("1234")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome, _ = go(text="name: b\nstages:\n  - learn: {data: beside.jsonl, steps: 1}\n")
    assert outcome["stages"]["learn"]["result"]["total"] == 4


def test_a_file_of_an_earlier_stage(go) -> None:
    text = "name: b\nstages:\n  - make: {}\n  - learn: {data: make/%s}\n"
    assert statuses(go(text=text % "lines.jsonl")[0]) == "run run"
    with pytest.raises(ConfigError, match=r"the stage 'make' has no 'x.jsonl'(.|\n)*lines.jsonl"):
        go(text=text % "x.jsonl")


def test_nothing_runs_when_anything_is_wrong(go, tmp_path) -> None:
    with pytest.raises(ConfigError):
        go("measure.models=[nobody]")
    assert not (tmp_path / "runs").exists()


def test_dry_run_writes_nothing(go, tmp_path) -> None:
    outcome, text = go(dry_run=True)
    assert not (tmp_path / "runs").exists()
    assert outcome["dry_run"] is True
    assert outcome["stages"]["tune"]["plan"] == ["tunes model, dry_run=True"]
    assert outcome["stages"]["tune"]["settings"]["kl"] == 0.1
    assert "model=learn" in text
    go()
    outcome, text = go("tune.kl=1", dry_run=True)
    assert statuses(outcome) == "skip skip run skip run"
    assert statuses(go()[0]) == "skip skip skip skip skip"


def test_a_failing_stage_is_resumed(go, tmp_path) -> None:
    with pytest.raises(FloatingPointError):
        go("learn.fail_at=2")
    folder = tmp_path / "runs/toy/learn"
    assert "the toy fails here" in (folder / "error.txt").read_text()
    assert statuses(go("learn.fail_at=2", dry_run=True)[0]) == "skip resume run run run"
    outcome, text = go("learn.fail_at=2")
    assert statuses(outcome) == "skip resume run run run"
    assert "learn: resumes, interrupted before" in text
    assert outcome["stages"]["learn"]["result"]["total"] == 48
    assert [line.split()[1] for line in (folder / "steps.log").read_text().splitlines()] == ["1", "2", "3", "4"]
    assert read_json(folder / "done.json")["resumed"] is True
    assert not (folder / "error.txt").exists()


def test_an_interrupted_stage_with_new_settings_starts_afresh(go, tmp_path) -> None:
    with pytest.raises(FloatingPointError):
        go("learn.fail_at=2")
    outcome, _ = go("learn.steps=5")
    assert statuses(outcome) == "skip run run run run"
    assert outcome["stages"]["learn"]["result"]["total"] == 60
    assert list((tmp_path / "runs/toy/.old").glob("learn-*/checkpoint.json"))


def test_kill_9_in_the_middle_of_a_stage(tmp_path, recipe) -> None:
    command = [sys.executable, "-m", "tests.pipeline.toys", recipe, tmp_path / "runs", "learn.steps=200"]
    process = subprocess.Popen([*command, "learn.pause=0.2"], cwd=ROOT, stdout=subprocess.DEVNULL)
    log = tmp_path / "runs/toy/learn/steps.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) > 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"another process ({process.pid}) is running this run" in second.stderr
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "runs/toy/learn/done.json").exists()
    third = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "learn: resumes" in third.stdout
    assert json.loads(third.stdout.splitlines()[-1])["learn"] == "resume"
    assert read_json(tmp_path / "runs/toy/learn/done.json")["result"]["total"] == 200 * 12
    done = [line.split() for line in log.read_text().splitlines()]
    assert len({pid for pid, _ in done}) == 2
    # a step that was checkpointed is never done again; one whose line was not yet logged may be missing
    steps = [int(step) for _, step in done]
    assert steps == sorted(set(steps))
    assert len(steps) >= 199


def test_the_lock(tmp_path) -> None:
    busy = pytest.raises(TiltyardError, match=f"another process .{os.getpid()}.")
    with locked(tmp_path / "run"), busy, locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "run"):
        pass


def test_one_stage(tmp_path) -> None:
    outcome = run_stage("make", {"size": 2}, runs_root=tmp_path)
    assert outcome["folder"] == str(tmp_path / "make")
    assert (tmp_path / "make/make/lines.jsonl").read_text() == "hello\n" * 2
    outcome = run_stage("learn", {"data": str(tmp_path / "make/make/lines.jsonl")}, name="mine", runs_root=tmp_path)
    assert (tmp_path / "mine/learn/model").is_dir()
    outcome = run_stage("tune", {"model": str(tmp_path / "mine/learn")}, runs_root=tmp_path)
    assert outcome["stages"]["tune"]["result"] == {"from": "48"}
    with pytest.raises(ConfigError, match=r"make\.sze"):
        run_stage("make", {"sze": 2}, runs_root=tmp_path)


def test_resolve_without_a_recipe(tmp_path) -> None:
    context = StageContext("r", "me", tmp_path, tmp_path, outputs={"sft": tmp_path / "sft"}, dry_run=True)
    assert context.resolve("sft") == tmp_path / "sft/model"
    assert context.resolve("sft", want="") == tmp_path / "sft"
    assert context.resolve("sft/groups.jsonl") == tmp_path / "sft/groups.jsonl"
    assert context.resolve("owner/model") == "owner/model"
    with pytest.raises(ConfigError, match="did you mean 'sft'"):
        context.resolve("sftt")


def test_json_files_are_whole(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_small_helpers(tmp_path, monkeypatch) -> None:
    import numpy as np

    assert jsonable({"a": np.float32(0.5), 1: (Path("x"), float("inf"))}) == {"a": 0.5, "1": ["x", None]}
    assert [duration(s) for s in (0.04, 12.2, 185, 7390)] == ["0.0 s", "12 s", "3 min 5 s", "2 h 3 min"]
    monkeypatch.setattr("tiltyard.pipeline.state.WHOLE", 4)
    big = tmp_path / "big"
    big.write_text("12345")
    first = FileHashes().digest(big)
    os.utime(big, (1, 1))
    assert FileHashes().digest(big) != first  # too large to compare whole: its time counts
    assert WHOLE == 64 * 2**20
    folder = FileHashes().digest(tmp_path)
    (tmp_path / "new").write_text("")
    assert FileHashes().digest(tmp_path) != folder


def test_two_ranks(tmp_path, recipe) -> None:
    """Rank 0 decides and writes, rank 1 follows to the end and sees the same outcome."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for expected in ("run", "skip"):
        result = subprocess.run(
            [*command, "tests.pipeline.toys", recipe, tmp_path / "runs"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        outcomes = [json.loads(found) for found in re.findall(r"\{.*?\}", result.stdout)]
        assert len(outcomes) == 2
        assert set(outcomes[0].values()) == {expected}
        assert outcomes[0] == outcomes[1]
    assert (tmp_path / "runs/toy/make/lines.jsonl").exists()
