"""`tiltyard study`: a recipe under several seeds, shared stages, means over seeds, models at an equal value."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tiltyard.cli import main
from tiltyard.errors import ConfigError
from tiltyard.pipeline.recipe import find_recipe, parse_recipe, read_recipe
from tiltyard.pipeline.study import run_study, share, summarise
from tiltyard.report.study_tables import cell, print_study, spread

RECIPE = """
name: small
stages:
  - world: {seed: 0, documents: 8, dialogues: 8, demonstrations: 4, prompts: 4, held_out: 4, tuning: 4}
  - words: {method: wordings, prompts: world/tuning.jsonl, seed: 0}
  - drawn: {method: wordings, prompts: world/tuning.jsonl}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_each_seed_is_a_run_and_equal_stages_are_computed_once(recipe: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    run_study(recipe, seeds=3, runs_root=tmp_path / "runs", console=Console(file=out, width=200))
    folders = [tmp_path / "runs/small" / f"seed-{seed}" for seed in range(3)]
    ids = {
        name: {json.loads((f / name / "done.json").read_text())["id"] for f in folders}
        for name in ("world", "words", "drawn")
    }
    assert [len(ids[name]) for name in ("world", "words", "drawn")] == [1, 1, 3]
    texts = {(f / "drawn/wordings.jsonl").read_text() for f in folders}
    assert len(texts) == 3
    again = io.StringIO()
    run_study(recipe, seeds=3, runs_root=tmp_path / "runs", console=Console(file=again, width=200))
    assert again.getvalue().count("skipped") == 9
    assert json.loads((tmp_path / "runs/small/small.json").read_text())["seeds"] == [0, 1, 2]


def test_a_changed_stage_is_not_shared(recipe: Path, tmp_path: Path) -> None:
    run_study(recipe, seeds=1, runs_root=tmp_path, console=Console(file=io.StringIO()))
    one = read_recipe(recipe, ["name=seed-0"])
    other = read_recipe(recipe, ["name=seed-9", "world.prompts=5"])
    assert share(one, other, tmp_path / "small") == []
    assert share(one, read_recipe(recipe, ["name=seed-9", "drawn.seed=9"]), tmp_path / "small") == ["world", "words"]


def test_seeds_belong_to_the_study(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sets the seeds"):
        run_study(recipe, ["defaults.seed=3"], runs_root=tmp_path)
    with pytest.raises(ConfigError, match="--at needs a number"):
        run_study(recipe, at=["kl=far"], runs_root=tmp_path)


def test_the_recipes_of_the_package_and_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_recipe("studies/kl").name == "kl.yaml"
    bases = []
    for name in ("kl", "control", "annotators", "noise", "stability", "seeds"):
        assert main(["study", f"studies/{name}", "--dry-run", "--runs", str(tmp_path)]) == 0
        entries = {entry.name: (entry.kind, dict(entry.values)) for entry in read_recipe(f"studies/{name}").entries}
        bases.append([entries[key] for key in ("world", "pretrain", "sft")])
    assert all(base == bases[0] for base in bases)  # what they share is computed once
    assert "beta_03" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def evaluation(folder: Path, models: dict[str, dict]) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(
        json.dumps({"models": {name: {"baseline": "sft", **facts} for name, facts in models.items()}})
    )


EVALUATE = """
name: measured
stages:
  - compared: {method: evaluate, models: [a], prompts: p.jsonl}
  - pairs: {method: reward_eval, model: a, data: d.jsonl}
  - stable: {method: reward_stability, model: a, data: d.jsonl}
"""


def test_means_differences_and_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p.jsonl", "d.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "a").mkdir()
    recipes = []
    for seed in range(3):
        up = 0.1 * seed
        models = {
            "sft": {
                "gold": 0.2 + up,
                "kl": 0.0,
                "gold_ci": [0.1 + up, 0.3 + up],
                "rewards": {"other": {"value": seed}},
            },
            "rl@1": {"gold": 0.4 + up, "kl": 1.0},
            "rl@2": {"gold": 0.0 + up, "kl": 3.0},
            "dpo@1": {"gold": 0.3 + up, "kl": 0.5},
        }
        evaluation(tmp_path / f"m/seed-{seed}/compared", models)
        for name, result in {
            "pairs": {"pairs": 10, "accuracy": 0.6 + up, "report": "x"},
            "stable": {"groups": 3, "rows": {"wordings": {"icc": 0.9, "icc_ci": [0.8, 1.0]}}},
        }.items():
            (tmp_path / f"m/seed-{seed}/{name}").mkdir()
            (tmp_path / f"m/seed-{seed}/{name}/done.json").write_text(json.dumps({"result": result}))
        recipes.append(parse_recipe(EVALUATE.replace("measured", f"seed-{seed}"), "x.yaml", folder=tmp_path))
    tables = summarise(tmp_path / "m", recipes, {"kl": 0.75})
    found = tables["compared"]
    assert found["sft"]["gold"]["value"] == pytest.approx(0.3)
    assert found["sft"]["gold"]["high"] - 0.3 == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)
    assert found["sft"]["gold"]["within"] == pytest.approx(0.1)
    assert found["sft"]["other"]["values"] == [0, 1, 2]
    assert list(found["sft"]) == ["gold", "other", "kl"]  # a recipe's own monitors before what every table has
    assert found["rl@1"]["gold"]["difference"]["value"] == pytest.approx(0.2)
    assert found["rl@1"]["gold"]["difference"]["high"] == pytest.approx(0.2)  # paired by seed: the same in each
    assert found["rl at kl=0.75"]["gold"]["value"] == pytest.approx(0.2 + 0.75 * 0.2 + 0.1)  # between sft and rl@1
    assert "dpo at kl=0.75" not in found  # not reached
    assert tables["reward_eval"]["pairs"]["accuracy"]["value"] == pytest.approx(0.7)
    assert tables["reward_stability"]["wordings"]["icc"]["n"] == 3
    out = io.StringIO()
    print_study({"seeds": [0, 1, 2], "tables": tables}, Console(file=out, width=160))
    assert "0.300 ± 0.248" in out.getvalue()
    one = {name: {k: {**facts, "n": 1} for k, facts in row.items()} for name, row in found.items() if name == "rl@1"}
    print_study({"seeds": [0, 1, 2], "tables": {"few": one}}, Console(file=out, width=160))
    assert "rl@1 (1 of 3 seeds)" in out.getvalue()
    assert "between seeds the standard deviation is 0.100" in spread(found)
    assert cell({"value": 1.0, "low": float("nan"), "high": float("nan")}) == "1.000"
