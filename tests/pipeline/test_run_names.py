"""Names that a user chooses become folders: every door to a run checks them, and nothing appears elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tiltyard.advice import Request
from tiltyard.cli.application import main
from tiltyard.errors import ConfigError
from tiltyard.pipeline import run_stage
from tiltyard.pipeline.recipe import Entry, Recipe
from tiltyard.pipeline.run import run

WRONG = ["../evil", "..", ".", "", " ", "/abs", "a/b", "a\nb", "-x", ".hidden", "a b", "x\x00y", "n" * 101, "a\\b"]


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("name", WRONG)
def test_no_door_takes_a_name_that_is_no_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "work/runs"
    root.mkdir(parents=True)
    before, quiet = everything(tmp_path), Console(file=io.StringIO())
    with pytest.raises(ConfigError, match="a run's name is"):
        run_stage("make", {}, name=name, runs_root=root, console=quiet)
    with pytest.raises(ConfigError, match="a run's name is"):
        run(Recipe(name, (Entry("make", "make", {}),)), runs_root=root, console=quiet)
    with pytest.raises(ConfigError, match="no name of a stage"):
        run(Recipe("fine", (Entry(name, "make", {}),)), runs_root=root, console=quiet)
    if name:  # `align` and `init` make one of the model's and the data's where none is given
        with pytest.raises(ConfigError, match="--name: a run's name is"):
            Request(model="m", data="d", name=name)
    for verb in (["train", "make"], ["run", str(tmp_path / "r.yaml")]):
        (tmp_path / "r.yaml").write_text("stages:\n  - make: {}\n")
        assert main([*verb, f"name={name}", "--runs", str(root)]) == 2
    (tmp_path / "r.yaml").unlink()
    assert everything(tmp_path) == before


def test_a_name_of_letters_is_taken(tmp_path: Path) -> None:
    assert main(["train", "make", "name=run-1.2_b", "--runs", str(tmp_path)]) == 0
    assert (tmp_path / "run-1.2_b/make/done.json").is_file()
