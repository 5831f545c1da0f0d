"""What a run left is read back whatever state a kill, a damaged disk or another version of the package left it in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tiltyard.errors import ConfigError, DataError
from tiltyard.files import write_json
from tiltyard.pipeline import run_recipe, state
from tiltyard.runs import RunReader, StageReader, group_to_dict, write_groups
from tiltyard.runs.reader import SCHEMA
from tiltyard.types import Group, Prompt, Response

CONFIG = {"run": "demo", "stage": "ppo", "kind": "ppo", "settings": {"lr": 0.1}, "id": "abc", "started": "2026-01-02"}
DONE = {"result": {"steps": 2}, "seconds": 1.5, "resumed": False, "id": "abc"}
GROUP = Group(Prompt(text="x", ids=(1,)), (Response(ids=(2,), logps=(-0.5,)),))


def stage(folder: Path) -> Path:
    """A finished stage's folder with every file that a stage may leave."""
    for name in ("rounds", "model", "checkpoints/step-00000001", "checkpoints/step-00000002", "checkpoints/.removed-x"):
        (folder / name).mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "done.json", DONE)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    rows = [json.dumps({"step": step, **group_to_dict(GROUP)}) + "\n" for step in (1, 1, 2)]
    (folder / "groups.jsonl").write_text("".join(rows))
    write_groups(folder / "rounds/round-0000.groups.jsonl", [GROUP])
    write_groups(folder / "rounds/round-0003.groups.jsonl", [GROUP, GROUP])
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return stage(tmp_path / "demo/ppo")


def test_a_finished_stage(whole: Path) -> None:
    reader = StageReader(whole)
    assert reader.status == "finished"
    assert reader.config is not None
    assert reader.done is not None
    assert (reader.config.kind, reader.config.settings, reader.config.id) == ("ppo", {"lr": 0.1}, "abc")
    assert (reader.done.result, reader.done.seconds) == ({"steps": 2}, 1.5)
    assert [row["loss"] for row in reader.metric_rows()] == [2.0, 1.0]
    assert list(reader.step_groups()) == [(1, GROUP), (1, GROUP), (2, GROUP)]
    assert (reader.rounds, reader.round_groups(3)) == ([0, 3], [GROUP, GROUP])
    assert (reader.checkpoints, reader.model) == ([1, 2], whole / "model")


def test_an_empty_or_missing_folder(tmp_path: Path) -> None:
    reader = StageReader(tmp_path / "none")
    assert (reader.status, reader.config, reader.done, reader.model) == ("not started", None, None, None)
    assert (reader.metric_rows(), reader.rounds, reader.checkpoints) == ([], [], [])
    with pytest.raises(DataError, match=r"groups.jsonl: no responses are stored here"):
        reader.step_groups()
    with pytest.raises(DataError, match="no such file of groups"):
        reader.round_groups(0)


def test_an_interrupted_stage(whole: Path) -> None:
    (whole / "done.json").unlink()
    shutil.rmtree(whole / "model")
    reader = StageReader(whole)
    assert (reader.status, reader.done, reader.model) == ("interrupted", None, None)


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_incomplete_last_lines_are_skipped(whole: Path, cut: int) -> None:
    for name in ("metrics.jsonl", "groups.jsonl"):
        path = whole / name
        path.write_bytes(path.read_bytes() + path.read_bytes()[:cut].replace(b"\n", b""))
    reader = StageReader(whole)
    assert len(reader.metric_rows()) == 2 + (cut == 25)  # a whole object without its line end is a step
    assert len(list(reader.step_groups())) == 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "groups.jsonl"])
def test_a_broken_line_in_the_middle_is_an_error(whole: Path, name: str) -> None:
    path = whole / name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0][:10] + "\n" + "".join(lines[1:]))
    reader = StageReader(whole)
    with pytest.raises(DataError, match=rf"{name}:1"):
        print(reader.metric_rows() if name == "metrics.jsonl" else list(reader.step_groups()))


@pytest.mark.parametrize("name", ["config.json", "done.json"])
@pytest.mark.parametrize("content", [b"", b'{"run": "de', b"[1]", b"\xff\xfe", b"null"])
def test_a_damaged_file_is_named(whole: Path, name: str, content: bytes) -> None:
    (whole / name).write_bytes(content)
    reader = StageReader(whole)
    with pytest.raises(DataError, match=rf"{name}: the file is damaged") as caught:
        print(reader.status)
    assert "remove the stage's folder" in caught.value.fix


@pytest.mark.parametrize("name", ["config.json", "done.json"])
@pytest.mark.parametrize("schema", [SCHEMA + 1, "2.0"])
def test_a_newer_schema_is_an_error(whole: Path, name: str, schema: Any) -> None:
    value = json.loads((whole / name).read_text())
    write_json(whole / name, {**value, "schema": schema, "tiltyard": "9.1"})
    with pytest.raises(ConfigError, match=rf"{name}: this run was written by a newer Tiltyard(.|\n)*upgrade"):
        print(StageReader(whole).status)


def test_unknown_and_missing_keys(whole: Path) -> None:
    """An older or a patched version may have written more or fewer."""
    write_json(whole / "config.json", {"kind": "ppo", "settings": None, "neutral": ["device"], "later": 1})
    config = StageReader(whole).config
    assert config is not None
    assert (config.kind, config.settings, config.neutral, config.schema) == ("ppo", {}, ("device",), 1)


def test_a_run(whole: Path) -> None:
    stage(whole.parent / "sft")
    write_json(whole.parent / "sft/config.json", {**CONFIG, "stage": "sft", "started": "2026-01-01"})
    (whole.parent / "planned").mkdir()
    (whole.parent / ".old/ppo").mkdir(parents=True)
    run = RunReader(whole.parent)
    assert list(run.stages) == ["sft", "ppo"]
    assert run.summary is None
    write_json(whole.parent / "summary.json", {"models": {}})
    assert RunReader(whole.parent).summary == {"models": {}}
    with pytest.raises(ConfigError, match=r"no stage 'pppo'(.|\n)*did you mean 'ppo'"):
        run.stage("pppo")
    with pytest.raises(ConfigError, match="there is no such run"):
        RunReader(whole.parent / "none")


# ------------------------------------------------------------------------------------- what the pipeline makes of them

RECIPE = "name: r\nstages:\n  - clean: {data: rows.jsonl}\n"


@pytest.fixture
def cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "r.yaml").write_text(RECIPE)
    run_recipe("r.yaml")
    return tmp_path / "runs/r/clean"


def test_the_pipeline_writes_what_the_reader_reads(cleaned: Path) -> None:
    reader = RunReader(cleaned.parent).stage("clean")
    assert reader.config is not None
    assert reader.done is not None
    assert (reader.config.schema, reader.done.schema) == (SCHEMA, SCHEMA)
    assert (reader.config.run, reader.config.kind, reader.done.result["rows"]) == ("r", "clean", 1)
    assert state.execution_id(cleaned) == reader.config.id == reader.done.id


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [("config.json", "run", "its config.json is damaged"), ("done.json", "resume", "its done.json is damaged")],
)
def test_a_damaged_stage_is_done_again(cleaned: Path, name: str, status: str, why: str) -> None:
    (cleaned / name).write_text("{")
    plan = run_recipe("r.yaml", dry_run=True)["stages"]["clean"]
    assert (plan["status"], plan["why"]) == (status, why)
    assert run_recipe("r.yaml")["stages"]["clean"]["result"]["rows"] == 1
    assert StageReader(cleaned).status == "finished"


def test_a_newer_run_is_left_alone(cleaned: Path) -> None:
    path = cleaned / "config.json"
    write_json(path, {**json.loads(path.read_text()), "schema": SCHEMA + 1})
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="written by a newer Tiltyard"):
        run_recipe("r.yaml")
    assert path.read_bytes() == before
