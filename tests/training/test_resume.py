"""Checkpoints: what was cut off goes on as if it had not been, a full disk costs nothing, rubbish is swept away."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiltyard import stopping
from tiltyard.distributed import checkpoint, part_files
from tiltyard.errors import CheckpointError
from tiltyard.methods import ppo, reward_model, sft
from tiltyard.runs import journal
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.source import Offline, Online
from tiltyard.types import Prompt

from . import tiny

STEPS = 9


def make(name: str) -> tuple[Algorithm, Models]:
    if name == "sft":
        model = tiny.policy(attention_dropout=0.2)
        return sft(Offline(tiny.demonstrations(11), 4, seed=1)), Models(policy=model)
    if name == "reward":
        return reward_model(Offline(tiny.rankings(11), 4, seed=1)), Models(reward=tiny.scalar())
    g = torch.Generator().manual_seed(0)
    prompts = [Prompt(id=str(i), ids=tiny.ids(1 + i % 5, g)) for i in range(7)]
    rule = FunctionScorer(lambda prompt, response: float(sum(response.ids) % 5))
    source = Online(prompts, NativeSampler(), rule, 5, 2, SampleSettings(max_tokens=6), seed=2)
    models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar())
    return ppo(source, kl_target=0.1, kl_horizon=100, ppo_epochs=2, minibatches=2), models


def run(name: str, folder: Path, *, until: int = 0, **settings: Any) -> tuple[list[dict[str, float]], Any]:
    """One attempt: (the metrics it logged, the models' parameters)."""
    algorithm, models = make(name)
    record = tiny.CutAt(until)
    usual: dict[str, Any] = {
        "steps": STEPS,
        "lr": 1e-2,
        "schedule": "cosine",
        "warmup": 2,
        "weight_decay": 0.1,
        "dropout": "model",
    }
    keep = {"folder": folder, "save_every": 2, "keep_groups": name == "ppo", "sinks": [record]}
    try:
        tiny.fit(algorithm, models, **(usual | keep | settings))
    except tiny.Cut:
        return record.rows, None
    return record.rows, {n: tiny.parameters(getattr(models, n)) for n in algorithm.trains}


def written(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return found


@pytest.mark.parametrize("name", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("cuts", [(1,), (2,), (3, 4, 7), (5, 5, 9)])
def test_resumed_is_uninterrupted(name: str, cuts: tuple[int, ...], tmp_path: Path) -> None:
    """Bit for bit: parameters, every metric of every step, every sampled group; lines of lost steps are taken back."""
    _, whole = run(name, tmp_path / "whole")
    for cut in cuts:
        run(name, tmp_path / "cut", until=cut)
    rows, found = run(name, tmp_path / "cut")
    tiny.assert_same(found, whole, 0)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")
    assert [row["step"] for row in written(tmp_path / "cut")["metrics.jsonl"]] == list(range(1, STEPS + 1))
    saved = (max(cuts) - 1) // 2 * 2  # the step of the checkpoint that the last attempt began at
    assert len(rows) == STEPS - saved


def test_a_finished_run_is_read_not_trained_again(tmp_path: Path) -> None:
    _, whole = run("sft", tmp_path)
    before = written(tmp_path)
    rows, again = run("sft", tmp_path)
    assert rows == []
    tiny.assert_same(again, whole, 0)
    assert written(tmp_path) == before


def test_a_longer_run_goes_on_and_a_shorter_one_is_refused(tmp_path: Path) -> None:
    run("sft", tmp_path, schedule="constant")
    rows, _ = run("sft", tmp_path, schedule="constant", steps=STEPS + 2)
    assert len(rows) == 2
    with pytest.raises(CheckpointError, match="longer run"):
        run("sft", tmp_path, steps=STEPS)


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run("sft", tmp_path)
    assert names(tmp_path) == ["step-00000008", "step-00000009"]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


# ------------------------------------------------------------------------------------------------------- a full disk


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("part", ["save_file", "generator", "_flush", "mkdir", "rename", "json"])
def test_disk_full_during_a_checkpoint(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the call that fails, the checkpoint before stands and the next attempt ends as an undisturbed run."""
    _, whole = run("sft", tmp_path / "whole")
    folder = tmp_path / "cut"
    run("sft", folder, until=5)
    assert names(folder) == ["step-00000002", "step-00000004"]
    with monkeypatch.context() as patch:
        target, name = {
            "save_file": (part_files, "save_file"),
            "generator": (checkpoint, "save_file"),
            "_flush": (checkpoint, "_flush"),
            "mkdir": (Path, "mkdir"),
            "rename": (checkpoint.os, "rename"),
            "json": (Path, "write_text"),
        }[part]
        original = getattr(target, name)

        def inside(self: Path, *args: Any, **kwargs: Any) -> Any:
            return (full if "unfinished" in str(self) else original)(self, *args, **kwargs)

        patch.setattr(target, name, inside if target is Path else full)
        with pytest.raises(CheckpointError, match="step 4 is intact") as caught:
            run("sft", folder)
    assert "No space left" in str(caught.value)
    assert "resumes" in caught.value.fix
    assert isinstance(caught.value, OSError)
    assert names(folder) == ["step-00000002", "step-00000004"]
    _, found = run("sft", folder)
    tiny.assert_same(found, whole, 0)
    assert written(folder) == written(tmp_path / "whole")


def test_a_disk_that_fills_up_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line of metrics is written: an error that says what to do, and the half line is gone after the resume."""
    _, whole = run("ppo", tmp_path / "whole")
    folder = tmp_path / "cut"
    run("ppo", folder, until=3)

    class Half:
        def __init__(self, file: Any):
            self.file = file

        def write(self, data: Any) -> int:
            if len(data) < 40:
                full()
            return self.file.write(data[: len(data) // 2])  # the kernel may write less than it was asked to

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    original: Callable[..., None] = journal.JsonlFile.__init__

    def half(self: Any, path: Path) -> None:
        original(self, path)
        self._file = Half(self._file)

    with monkeypatch.context() as patch:
        patch.setattr(journal.JsonlFile, "__init__", half)
        with pytest.raises(CheckpointError, match="could not be written") as caught:
            run("ppo", folder)
    assert "groups.jsonl" in caught.value.where
    assert not (folder / "groups.jsonl").read_bytes().endswith(b"\n")
    _, found = run("ppo", folder)
    tiny.assert_same(found, whole, 0)
    assert written(folder) == written(tmp_path / "whole")


def test_short_writes_are_finished(tmp_path: Path) -> None:
    """A write that takes only a part of the bytes is no error and loses nothing."""
    file = journal.JsonlFile(tmp_path / "a.jsonl")
    real = file._file

    class Slow:
        def write(self, data: Any) -> int:
            return real.write(data[:7])

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    file._file = Slow()  # type: ignore[assignment]
    file.write([{"words": "x" * 50}, {"b": 2}])
    assert [json.loads(x) for x in (tmp_path / "a.jsonl").read_text().splitlines()] == [{"words": "x" * 50}, {"b": 2}]
    assert file.offset == (tmp_path / "a.jsonl").stat().st_size


# -------------------------------------------------------------------------------------------- a kill at a bad moment


@pytest.mark.parametrize("moment", ["half written", "before the rename", "after the rename", "while removing"])
def test_a_kill_around_a_checkpoint(moment: str, tmp_path: Path) -> None:
    """The states a kill can leave behind, made by hand; none is read, all are swept away, nothing is lost."""
    _, whole = run("sft", tmp_path / "whole")
    folder = tmp_path / "cut"
    run("sft", folder, until=7)
    saved = folder / "checkpoints"
    assert names(folder) == ["step-00000004", "step-00000006"]
    if moment == "half written":
        (saved / ".unfinished-00000008").mkdir()
        (saved / ".unfinished-00000008" / "weights.safetensors").write_bytes(b"half")
    elif moment == "before the rename":
        (saved / "step-00000006").rename(saved / ".unfinished-00000006")
    elif moment == "after the rename":  # the third has not been removed yet
        shutil.copytree(saved / "step-00000004", saved / "step-00000002")
    else:
        (saved / "step-00000004").rename(saved / ".removed-step-00000004")
        (saved / ".removed-step-00000004" / "state.json").unlink()
    _, found = run("sft", folder)
    tiny.assert_same(found, whole, 0)
    assert written(folder) == written(tmp_path / "whole")
    assert names(folder) == ["step-00000008", "step-00000009"]


def test_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    """Of a version without digests: no silent start from nothing, but an error that names it."""
    run("sft", tmp_path, until=7)
    (tmp_path / "checkpoints" / "step-00000006" / "weights.safetensors").write_bytes(b"rubbish")
    (tmp_path / "checkpoints" / "step-00000006" / checkpoint.SUMS).unlink()
    with pytest.raises(CheckpointError, match="an older checkpoint is used") as caught:
        run("sft", tmp_path)
    assert "step-00000006" in caught.value.where
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    rows, _ = run("sft", tmp_path)
    assert len(rows) == STEPS - 4


PARTS = ("weights.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", checkpoint.SUMS)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_checkpoint_whose_bytes_changed(
    tmp_path: Path, part: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named and set aside, and the run goes on from the one before: the same bits as a run without damage."""
    whole = run("sft", tmp_path / "whole")
    folder = tmp_path / "cut" / "checkpoints"
    run("sft", tmp_path / "cut", until=7)
    file = folder / "step-00000006" / part
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(b ^ 0x11 for b in content[middle : middle + 8])
    file.unlink()
    if how != "gone":
        file.write_bytes(content[:middle] if how == "cut" else content)
    if how == "gone" and part == checkpoint.SUMS:
        return  # as one of an earlier version, which is read without a check
    rows, models = run("sft", tmp_path / "cut")
    assert len(rows) == STEPS - 4
    tiny.assert_same(models, whole[1], 0)
    assert f"step 6 is damaged: {part}" in caplog.text
    assert "going on from that of step 4" in caplog.text
    assert (folder / "damaged-step-00000006").is_dir()


def test_damage_without_an_undamaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    run("sft", tmp_path, until=7)
    for step in (4, 6):
        (tmp_path / "checkpoints" / f"step-0000000{step}" / "weights.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"(?s)damaged.*weights.safetensors \(SHA-256") as caught:
        run("sft", tmp_path)
    assert "step-00000006" in caught.value.where


# ------------------------------------------------------------------------------------------------------------ signals


class SignalAt(tiny.Record):
    """A sink that sends this process a signal at a step, `times` in a row."""

    def __init__(self, step: int, number: int, times: int = 1):
        super().__init__()
        self.step, self.number, self.times = step, number, times

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        for _ in range(self.times if step == self.step else 0):
            signal.raise_signal(self.number)
            time.sleep(stopping.SAME * 1.2 if self.times > 1 else 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["sft", "reward", "ppo"])
def test_a_signal_stops_after_the_step_with_a_checkpoint(name: str, number: int, tmp_path: Path) -> None:
    whole = run(name, tmp_path / "whole")
    before = {n: signal.getsignal(n) for n in stopping.SIGNALS}
    for at in (3, 7):
        with pytest.raises(stopping.Stopped) as caught, stopping.installed():
            run(name, tmp_path / "cut", sinks=[SignalAt(at, number)], save_every=0)
        assert caught.value.status == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        assert checkpoint.steps_saved(tmp_path / "cut" / "checkpoints")[-1] == at
        assert stopping.requested() == 0
    assert {n: signal.getsignal(n) for n in stopping.SIGNALS} == before
    rows, models = run(name, tmp_path / "cut")
    tiny.assert_same(rows, whole[0][-len(rows) :], 0)
    tiny.assert_same(models, whole[1], 0)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    sink = SignalAt(3, signal.SIGINT, times=2)
    with pytest.raises(stopping.Stopped), stopping.installed():
        run("sft", tmp_path, sinks=[sink], save_every=0)
    assert checkpoint.steps_saved(tmp_path / "checkpoints") == []
    assert len(sink.rows) == 3


def test_a_signal_outside_of_resumable_work_stops_at_once() -> None:
    with pytest.raises(stopping.Stopped) as caught, stopping.installed():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.status == 143


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.installed():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    run("sft", tmp_path)
    other = Models(policy=tiny.policy(num_hidden_layers=1))
    with pytest.raises(CheckpointError, match="another model"):
        tiny.fit(sft(Offline(tiny.demonstrations(4), 2)), other, steps=STEPS, folder=tmp_path)


def test_metrics_that_were_cut_from_outside(tmp_path: Path) -> None:
    run("sft", tmp_path, until=7)
    (tmp_path / "metrics.jsonl").write_bytes((tmp_path / "metrics.jsonl").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="lost lines"):
        run("sft", tmp_path)


def test_the_controller_and_the_version_come_back(tmp_path: Path) -> None:
    """The adaptive KL coefficient and the policy's version go on where they were."""
    run("ppo", tmp_path, until=5)
    state = json.loads((tmp_path / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["version"] == 4
    assert state["parts"]["after.0"]["beta"] not in (0.05, 0)
    run("ppo", tmp_path)
    groups = [json.loads(line) for line in (tmp_path / "groups.jsonl").read_text().splitlines()]
    assert [g["origin"] for g in groups] == [f"policy@{s}" for s in range(STEPS) for _ in range(5)]
    assert [g["step"] for g in groups] == [s + 1 for s in range(STEPS) for _ in range(5)]


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = tiny.policy(tie_word_embeddings=True)
    models = Models(policy=model)
    tiny.fit(sft(Offline(tiny.demonstrations(4), 2)), models, steps=2, folder=tmp_path)
    own = tiny.parameters(model)
    fresh = Models(policy=tiny.policy(5, tie_word_embeddings=True))
    tiny.fit(sft(Offline(tiny.demonstrations(4), 2)), fresh, steps=2, folder=tmp_path)
    tiny.assert_same(tiny.parameters(fresh.policy), own, 0)
    assert fresh.policy.head.weight is fresh.policy.module.get_input_embeddings().weight
