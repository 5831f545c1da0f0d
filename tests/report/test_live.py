"""`tiltyard watch`: what it reads of a run that is being written, its charts, its alarms, at 80 columns."""

from __future__ import annotations

import io
import json
import os
import time

import pytest
from rich.console import Console

from tiltyard.cli import main
from tiltyard.errors import ConfigError
from tiltyard.report.braille import chart
from tiltyard.report.live import Follower, alarms, is_finished, screen, stage_to_watch
from tiltyard.runs import RunReader

from .made import HOSTILE, dump, groups, lines, metrics, stage, whole_run


def shown(found, rows, *, width=80, height=40) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(screen(found, rows, console))
    return console.file.getvalue()


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right():
    rising = chart([0.0, 1.0, 2.0, 3.0], 2, 1)
    assert rising == ["⡠⠊"]
    stars = chart([0.0, 1.0, 2.0, 3.0], 4, 4, braille=False)
    assert stars == ["   *", "  * ", " *  ", "*   "]
    assert chart([], 3, 2) == ["   "] * 2
    assert chart([None, None], 3, 1) == ["   "]
    assert all(len(line) == 10 for line in chart([1.0] * 1000, 10, 3))


def test_means_of_many_values_are_drawn():
    assert chart([0.0, 2.0] * 100 + [3.0, 5.0] * 100, 2, 4, braille=False) == [" *", "  ", "  ", "* "]


def test_the_follower_reads_each_line_once_and_notices_a_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert [row["step"] for row in follower.read()] == [1]
    with path.open("a") as file:
        file.write('ss": 1}\nno json\n{"step": 3}\n')
    assert [row["step"] for row in follower.read()] == [1, 2, 3]
    path.write_text('{"step": 1, "loss": 2}\n')
    assert [row["step"] for row in follower.read()] == [1]


def test_it_follows_the_stage_that_runs(tmp_path):
    run = whole_run(tmp_path)
    reader = RunReader(run)
    assert is_finished(reader)
    assert stage_to_watch(reader).folder.name == "ppo"  # the last with metrics
    lines(stage(run, "grpo", "grpo", number=5) / "metrics.jsonl", metrics(3))
    assert not is_finished(reader)
    assert stage_to_watch(reader).folder.name == "grpo"
    (run / "half").mkdir()
    (run / "half/config.json").write_text('{"schema"')
    assert stage_to_watch(reader).folder.name == "grpo"
    with pytest.raises(ConfigError, match="no stage 'gppo'"):
        stage_to_watch(reader, "gppo")


def test_the_screen_fits_80_columns_and_24_lines(tmp_path):
    run = tmp_path / "open"
    run.mkdir()
    folder = stage(run, "ppo", "ppo", settings={"steps": 200})
    lines(folder / "metrics.jsonl", metrics(50))
    lines(folder / "groups.jsonl", groups(50))
    found = stage_to_watch(RunReader(run))
    text = shown(found, Follower(folder / "metrics.jsonl").read(), height=24)
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 24
    assert "open/ppo · step 50 of 200" in text
    assert "about 75 s left" in text  # 150 steps of half a second
    assert "reward 1 " in text
    assert "KL, nats 5" in text
    assert "+0.50  response 1 of step 50" in text
    wide = shown(found, Follower(folder / "metrics.jsonl").read(), width=40, height=60)
    assert max(map(len, wide.splitlines())) <= 40


def test_alarms(tmp_path):
    run = tmp_path / "bad"
    run.mkdir()
    folder = stage(run, "ppo", "ppo", settings={"steps": 200})
    lines(folder / "metrics.jsonl", [*metrics(20), {"step": 21, "loss": None, "time/seconds": 0.5}])
    dump(folder / "alarms.jsonl", {"step": 9, "kind": "proxy", "text": "the proxy rises, \x1b[31mgold does not"})
    with (folder / "alarms.jsonl").open("a") as file:
        file.write("\n")
    found, rows = stage_to_watch(RunReader(run)), Follower(folder / "metrics.jsonl").read()
    assert alarms(found, rows) == [
        "! step 9: the proxy rises, \\x1b[31mgold does not", "! the loss was not finite at step 21"
    ]  # fmt: skip
    os.utime(folder / "metrics.jsonl", (time.time() - 100, time.time() - 100))
    assert any("no step for 2 min" in line for line in alarms(found, rows))
    dump(folder / "done.json", {"schema": 1, "result": {}, "finished": "2026"})
    assert not any("no step for" in line for line in alarms(found, rows))


def test_texts_of_models_are_shown_literally(tmp_path):
    run = whole_run(tmp_path, text=lambda _m, i: f"\x1b[2J[red]{HOSTILE[i % len(HOSTILE)]}")
    found = stage_to_watch(RunReader(run), "ppo")
    text = shown(found, [])
    assert "\x1b" not in text
    assert "\\x1b[2J[red]" in text


def test_the_verb_on_a_finished_run_and_on_a_pipe(tmp_path, capsys):
    run = whole_run(tmp_path)
    assert main(["watch", str(run)]) == 0
    assert "made/ppo" in capsys.readouterr().out
    assert main(["watch", str(run), "--stage", "reward"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["watch", "nothing", "--runs", str(tmp_path)]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["watch", str(tmp_path / "empty")]) == 0
    assert "no stage was started yet" in capsys.readouterr().out


def test_sinks_get_the_names_of_the_metrics_file(tmp_path):
    """TensorBoard and W&B are sinks."""
    from tiltyard.batch.batch import Batch
    from tiltyard.training.records import StepRecords

    class Sink:
        def log(self, step, metrics):
            self.found = (step, list(metrics))

    sink = Sink()
    records = StepRecords(tmp_path, False, [sink])
    records.write(3, Batch.of([], [], 0), {"loss": 1.0, "reward/gold": float("nan"), "time/seconds": 0.1})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert list(row) == ["step", *sink.found[1]]
    assert row["reward/gold"] is None
