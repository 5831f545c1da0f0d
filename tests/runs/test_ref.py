"""One resolver for what a setting's text refers to, and every place where data is read goes through it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from tiltyard.cli.application import app
from tiltyard.data import read_rows
from tiltyard.errors import ConfigError, DataError
from tiltyard.pipeline import run_recipe
from tiltyard.runs import Ref
from tiltyard.runs.ref import not_found
from tiltyard.stages.base import get_stage, references

STAGES = ("pretrain", "sft")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data, a file of functions, a finished stage, and a recipe's folder beside it."""
    folder = tmp_path / "here"
    for name in ("here/data", "here/runs/demo/sft/model", "recipes"):
        (tmp_path / name).mkdir(parents=True)
    (folder / "data/rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "runs/demo/sft/config.json").write_text("{}")
    (folder / "rewards.py").write_text("def concise(prompt, response):\n    return -len(response)\n")
    (tmp_path / "recipes/near.jsonl").write_text("")
    (tmp_path / "recipes/own.py").write_text("")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("text", "kind", "name", "rest", "path"),
    [
        ("sft", "stage", "sft", "", None),
        ("sft/groups.jsonl", "stage", "sft", "groups.jsonl", None),
        ("data/rows.jsonl", "path", "", "", "data/rows.jsonl"),
        ("runs/demo/sft", "path", "", "", "runs/demo/sft"),
        ("near.jsonl", "path", "", "", "{recipe}/near.jsonl"),
        ("owner/name", "hub", "owner/name", "", None),
        ("owner/name:config", "hub", "owner/name", "config", None),
        ("stanfordnlp/SHP-2:reddit.ask-it_1", "hub", "stanfordnlp/SHP-2", "reddit.ask-it_1", None),
        ("rewards.py:concise", "function", "concise", "rewards.py", "rewards.py"),
        ("./rewards.py:concise", "function", "concise", "./rewards.py", "rewards.py"),
        ("own.py:concise", "function", "concise", "own.py", "{recipe}/own.py"),
        ("no_such.module:concise", "function", "concise", "no_such.module", None),
        ("s3://bucket/rows", "scheme", "", "", None),
    ],
)
def test_every_form(here: Path, text: str, kind: str, name: str, rest: str, path: str | None) -> None:
    recipe = here.parent / "recipes"
    expected = None if path is None else Path(path.format(recipe=recipe))
    assert Ref.of(text, stages=STAGES, folder=recipe) == Ref(text, kind, name, rest, expected)  # type: ignore[arg-type]


def test_a_function_of_a_module_has_its_file(here: Path) -> None:
    ref = Ref.of("tiltyard.errors:nearest")
    assert (ref.kind, ref.name, ref.rest) == ("function", "nearest", "tiltyard.errors")
    assert ref.path is not None
    assert ref.path.name == "errors.py"


def test_a_stage_hides_a_path_and_a_path_hides_a_hub_name(here: Path) -> None:
    (here / "sft").mkdir()
    (here / "owner").mkdir()
    (here / "owner/name").mkdir()
    assert Ref.of("sft", stages=STAGES).kind == "stage"
    assert Ref.of("./sft", stages=STAGES).path == Path("sft")
    assert Ref.of("owner/name").path == Path("owner/name")


@pytest.mark.parametrize(
    "text", ["data/typo", "owner/x.jsonl", "data/typo:config", "owner/x.parquet", "name", "a/b/c", ""]
)
def test_what_refers_to_nothing(here: Path, text: str) -> None:
    assert Ref.find(text, stages=STAGES) is None
    with pytest.raises(ConfigError, match="no such stage or path"):
        Ref.of(text, stages=STAGES)


def test_a_missing_file_of_functions_has_a_nearest_name(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such stage or path: 'reward.py'(.|\n)*did you mean 'rewards.py'"):
        Ref.of("reward.py:concise")


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ("data/rwos.jsonl", "did you mean 'rows.jsonl'?"),
        ("dta/rows.jsonl", "did you mean 'data'?"),
        ("sfft/model", "did you mean 'sft'?"),
        ("data/x.csv", "stages: pretrain, sft"),
        ("", "stages: pretrain, sft"),
        ("data/rows.jsonl/x", "stages: pretrain, sft"),
    ],
)
def test_the_nearest_name(value: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text("")
    error = not_found(value, "here", ("pretrain", "sft"))
    assert fix in str(error)
    assert "here" in str(error)
    assert "nothing called 'x.csv' in 'data'" in str(not_found("data/x.csv", "here"))


# ---------------------------------------------------------------------------------- hub names wherever data is read


def row(i: int) -> dict[str, str]:
    return {
        "prompt": f"Where is it? {i}",
        "chosen": f"It is here, {i}.",
        "rejected": f"No, {i}.",
        "text": f"So it is {i}.",
    }


@pytest.fixture
def hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str | None, str]]]:
    """The hub holds one data set; the list collects what was asked for."""
    calls: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        calls.append((path, config, split))
        return [{**row(i), "config": None} for i in range(40)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    yield calls
    assert calls
    assert {call[:2] for call in calls} == {("owner/pairs", "config")}


def test_rows_of_the_hub(hub: list[Any]) -> None:
    rows = list(read_rows("owner/pairs:config", limit=1))
    assert (rows[0].where, rows[0].value) == ("owner/pairs:config[train]:1", row(0))


def test_a_path_object_is_never_a_hub_name(here: Path) -> None:
    with pytest.raises(DataError, match="the folder does not exist"):
        read_rows(Path("owner/pairs"))


def test_check_reads_the_hub(hub: list[Any]) -> None:
    result = CliRunner().invoke(app, ["check", "owner/pairs:config", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["groups"] == 40


RECIPE = """
name: hub
stages:
  - clean: {data: owner/pairs:config}
  - pretrain: {data: owner/pairs:config, steps: 1, arch: {preset: 1m, vocab: 300, context: 64}, max_length: 64}
  - sft: {model: pretrain, data: owner/pairs:config, steps: 1, max_length: 64}
  - reward: {model: sft, data: owner/pairs:config, held_out: owner/pairs:config, steps: 1, max_length: 64}
  - reward_eval: {model: reward, data: owner/pairs:config, max_length: 64}
  - candidates: {model: sft, prompts: owner/pairs:config, reward: reward, max_prompt: 48, max_tokens: 4, limit: 2}
"""


@pytest.mark.slow
def test_every_stage_reads_the_hub(hub: list[Any], here: Path) -> None:
    """Data, prompts and held-out data of a recipe; two splits of one data set are told apart by `split`."""
    (here / "hub.yaml").write_text(RECIPE)
    outcome = run_recipe(here / "hub.yaml", runs_root=here / "runs")
    assert set(outcome["stages"]) == {"clean", "pretrain", "sft", "reward", "reward_eval", "candidates"}


@pytest.mark.parametrize("kind", ["sft", "dpo", "ppo", "clean", "evaluate", "label", "ai_label", "new_prompts"])
def test_settings_of_data_refer(kind: str) -> None:
    stage = get_stage(kind)
    fields = [key for key in ("data", "prompts", "held_out", "model", "models") if key in stage.settings.model_fields]
    assert set(fields) <= set(stage.refers)


def test_references_inside_lists_mappings_and_records() -> None:
    class Record:
        def folders(self) -> dict[str, str]:
            return {"from": "sft"}

    stage = get_stage("evaluate")
    settings: Any = type("Settings", (), dict.fromkeys(stage.refers))()
    settings.models = {"a": "one", "b": ["two", Record()], "c": ""}
    assert [text for _, text in references(stage, settings)] == ["one", "two", "sft"]
