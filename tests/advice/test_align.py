"""`tiltyard align` end to end: a run that was killed twice ends with the model and figures of one that was not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.stages.planted import Place as Kill
from tests.stages.planted import half_model, killed

import tiltyard.stages.before_after as before_after
import tiltyard.stages.train as train
from tiltyard.advice import Request
from tiltyard.advice.align import align, next_steps
from tiltyard.cli import main, wish
from tiltyard.errors import ConfigError
from tiltyard.models.load import load_language_model

from .conftest import Place, pairs

Write = Callable[[str, list[dict[str, Any]]], Path]
pytestmark = pytest.mark.slow


def go(request: Request, root: Path) -> tuple[dict[str, Any], str]:
    out = io.StringIO()
    outcome = align(request, runs_root=root, console=Console(file=out, width=160))
    return outcome, out.getvalue()


def test_killed_is_uninterrupted(place: Place, write: Write, tmp_path: Path) -> None:
    data = write("pairs.jsonl", pairs(30))
    request = Request(str(place.model), str(data), minutes=1, name="mine", size="lora")
    _, text = go(request, tmp_path / "whole")
    for words in ("the recipe, with the reason for every choice", "prefers the better answer", "wins against before"):
        assert words in text
    recipe = (tmp_path / "whole/mine/recipe.yaml").read_text()
    (tmp_path / "cut/mine").mkdir(parents=True)
    for name in ("recipe.yaml", "request.json"):  # measured again the choices might be others
        (tmp_path / "cut/mine" / name).write_text((tmp_path / "whole/mine" / name).read_text())
    places = [
        Kill(train, "save_model", 1, half_model),
        Kill(before_after, "sample", 2),
    ]
    for kill in places:
        killed(lambda: go(request, tmp_path / "cut"), kill.plant)
    again, text = go(request, tmp_path / "cut")
    assert "going on with" in text
    assert recipe == (tmp_path / "cut/mine/recipe.yaml").read_text()
    weights = ("dpo/model/model.safetensors", "reward/model/model.safetensors")
    for name in (*weights, "dpo/model/README.md", "before_after/answers.jsonl"):
        assert (tmp_path / "whole/mine" / name).read_bytes() == (tmp_path / "cut/mine" / name).read_bytes()
    kept, other = (tmp_path / root / "mine/before_after/before_after.json" for root in ("whole", "cut"))
    assert kept.read_text() == other.read_text()
    card = (Path(again["model"]) / "README.md").read_text()
    assert card.count("## Measured: before to after training") == 1
    assert "| `wins against before` |" in card
    assert str(tmp_path) not in card
    load_language_model(again["model"])
    assert any("tiltyard chat" in line for line in next_steps(again))
    with pytest.raises(ConfigError, match="begun with other wishes"):
        go(Request(str(place.model), str(data), minutes=2, name="mine", size="lora"), tmp_path / "cut")


def test_the_verbs(place: Place, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write("pairs.jsonl", pairs(20)), tmp_path / "mine.yaml"
    words = ["init", "--model", str(place.model), "--data", str(data), "--minutes", "1", "--out", str(out)]
    assert main(words) == 0
    assert f"tiltyard run {out}" in capsys.readouterr().out.replace("\n", "")
    assert main(words) == 2  # it is there
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force", "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)
    assert advice["text"] == out.read_text()
    assert advice["seconds"] > 0
    assert main(["run", str(out), "--dry-run", "--runs", str(tmp_path / "runs")]) == 0
    capsys.readouterr()
    assert main(["init", "--model", str(place.model)]) == 2
    assert "no --data" in capsys.readouterr().err
    assert main(["align", str(place.model), str(data), "--lora", "--full"]) == 2
    assert main(["align", str(place.model), str(data), "--minutes", "1", "--dry-run", "--runs", str(tmp_path)]) == 0
    assert not list(tmp_path.glob("chatty*"))


ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "imitate": (
        [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(20)],
        {},
        "held-out loss",
    ),
    "labelled": (
        [
            {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
            for row in pairs(20, 1)
            for key in ("chosen", "rejected")
        ],
        {},
        "moves with the label",
    ),
    "reward": (
        [{"prompt": row["prompt"]} for row in pairs(12, 1)],
        {"reward": "{from: rule, max_words: 4}"},
        "pass rate",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_wish_ends_with_its_measurement(place: Place, write: Write, tmp_path: Path, name: str) -> None:
    rows, more, line = ROWS[name]
    request = Request(str(place.model), str(write("rows.jsonl", rows)), minutes=0.1, name=name, **more)
    outcome, text = go(request, tmp_path)
    lines = {one["name"]: one for one in outcome["stages"]["before_after"]["result"]["lines"]}
    assert line in lines
    assert lines["KL from before"]["after"]["value"] > 0
    assert f"{line}: " in text
    load_language_model(outcome["model"])
    assert go(request, tmp_path)[0]["stages"]["before_after"]["status"] == "skip"


def test_what_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["MODEL", "rows.jsonl", "reward", "rewards.py:concise"])
    monkeypatch.setattr(wish.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(wish.typer, "prompt", lambda *args, **how: next(answers))
    assert wish._asked("", "", "", "") == ("MODEL", "rows.jsonl", "reward", "rewards.py:concise")
