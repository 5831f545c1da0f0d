"""`tiltyard eval --reward` and the stage `reward_eval` on trained toys: the files, the numbers, the refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tiltyard.cli import main
from tiltyard.data import read_groups
from tiltyard.inputs.measure import reward_report, scores_of
from tiltyard.models.load import load_scalar_model, save_model
from tiltyard.pipeline import run_recipe

from . import tiny
from .conftest import Whole

USUAL = ("max_length=64", "device=cpu")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(name: str, *rows: Any) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def bench(subsets: dict[str, int]) -> list[dict[str, Any]]:
    """Rows as reward benchmarks have them: numbered, answers as plain strings, a subset, other columns."""
    rows: list[dict[str, Any]] = []
    for subset, count in subsets.items():
        for i in range(count):
            row = {"prompt": f"Who is {subset} {i}?", "chosen": f"A baker {i}.", "rejected": "No" + " no" * (i % 3)}
            rows.append({"id": len(rows), **row, "subset": subset, "chosen_model": "human"})
    return rows


def test_the_figures_are_those_of_training(whole: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    """On the rankings that the label stage made: the same accuracy and number of pairs as held-out measurement has."""
    folder, data = whole.run / "reward", whole.run / "label" / "rankings.groups.jsonl"
    assert main(["eval", "--reward", str(folder), str(data), *USUAL, "name=r", "pairs=true"]) == 0
    printed = capsys.readouterr().out
    out = Path("runs/r/reward_eval")
    report = json.loads((out / "reward_report.json").read_text())
    model, groups = load_scalar_model(folder, device="cpu"), list(read_groups(data))
    expected = reward_report(model, groups, 8192)
    assert report["accuracy"]["value"] == pytest.approx(expected["accuracy"])
    assert report["pairs"] == report["accuracy"]["n"] == expected["pairs"]
    assert f"{report['pairs']} pairs of {report['prompts']} prompts" in printed
    assert f"{report['tied_in_labels']} pairs tied in the labels were excluded" in printed
    assert "pairs tied in score count one half" in printed
    assert report["tau"]["n"] + report["tau_undefined"] == len(groups)
    with Image.open(out / "reward_report.png") as image:
        assert image.format == "PNG"
    rows = tiny.rows(out / "pairs.jsonl")
    assert len(rows) == 3 * len(groups)  # rankings of three have three pairs
    assert sum(row["q"] == 0.5 for row in rows) == report["tied_in_labels"]
    flat = iter(scores_of(model, groups, 8192))
    for number in range(0, len(rows), 3):
        given = next(flat)
        for row in rows[number : number + 3]:
            i, j = row["indices"]
            assert (row["chosen"], row["rejected"]) == pytest.approx((given[i], given[j]))


def test_a_benchmark_has_its_subsets(whole: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    data = lines("bench.jsonl", *bench({"chat": 7, "code": 3}))
    words = ["eval", "--reward", str(whole.run / "reward"), data, *USUAL]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)["stages"]["reward_eval"]["result"]
    assert "by subset" in printed.err
    report = json.loads(Path(result["report"]).read_text())
    rows = {row["label"]: row["accuracy"] for row in report["by_field"]["subset"]["rows"]}
    assert {name: row["n"] for name, row in rows.items()} == {"chat": 7, "code": 3}
    assert result["mean_over_subset"] == pytest.approx((rows["chat"]["value"] + rows["code"]["value"]) / 2)
    assert result["accuracy"] == pytest.approx((7 * rows["chat"]["value"] + 3 * rows["code"]["value"]) / 10)
    assert result["prompts"] == 10
    assert not Path("runs/reward_eval/reward_eval/pairs.jsonl").exists()
    assert main(words) == 0
    assert "skipped" in capsys.readouterr().out


def test_soft_labels_reach_the_report(whole: Whole) -> None:
    rows = [row | {"p_chosen": p} for row, p in zip(bench({"a": 4}), (1.0, 0.75, 0.5, 0.25), strict=True)]
    assert main(["eval", "--reward", str(whole.run / "reward"), lines("soft.jsonl", *rows), *USUAL]) == 0
    report = json.loads(Path("runs/reward_eval/reward_eval/reward_report.json").read_text())
    assert (report["pairs"], report["soft"], report["tied_in_labels"]) == (3, 2, 1)


def test_a_recipe_may_name_it(whole: Whole) -> None:
    lines("bench.jsonl", *bench({"chat": 4}))
    settings = {"model": str(whole.run / "reward"), "data": "bench.jsonl", "max_length": 64, "device": "cpu"}
    Path("judge.yaml").write_text(yaml.safe_dump({"name": "judge", "stages": [{"reward_eval": settings}]}))
    result = run_recipe("judge.yaml")["stages"]["reward_eval"]["result"]
    assert result["pairs"] == 4
    assert 0 <= result["accuracy"] <= 1


def untrained(whole: Whole) -> str:
    model = load_scalar_model(whole.run / "sft" / "model", device="cpu")
    assert not model.head.weight.any()
    save_model(model, Path("untrained"))
    return "untrained"


def ranker(whole: Whole) -> str:
    model = load_scalar_model(whole.run / "reward" / "model", device="cpu")
    model.compares = True
    save_model(model, Path("ranker"))
    return "ranker"


def broken(whole: Whole) -> str:
    model = load_scalar_model(whole.run / "reward" / "model", device="cpu")
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    save_model(model, Path("broken"))
    return "broken"


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (lambda whole: str(whole.run / "sft"), "not a trained reward model|tiltyard train reward"),
        (untrained, "not a trained reward model|tiltyard train reward"),
        (ranker, "a ranker compares two responses"),
        (broken, "not a finite number|bench.jsonl:1"),
        (lambda whole: "nobody", "there is no such model"),
    ],
    ids=["language model", "untrained", "ranker", "not finite", "missing"],
)
def test_models_that_score_nothing_are_refused(
    whole: Whole, capsys: pytest.CaptureFixture[str], model: Any, what: str
) -> None:
    data = lines("bench.jsonl", *bench({"chat": 3}))
    assert main(["eval", "--reward", model(whole), data, *USUAL]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in what.split("|"))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (None, "there are no data to evaluate the reward model on"),
        ([], "bench.jsonl"),
        ([{"prompt": "Who?", "completion": "A baker."}], "bench.jsonl:1|'chosen' is missing"),
        ([{"prompt": "Who?", "responses": ["a", "b"], "ranks": [1, 1]}], "no pair of responses has different labels"),
    ],
    ids=["none named", "empty", "demonstrations", "only ties"],
)
def test_data_without_a_pair_are_refused(
    whole: Whole, capsys: pytest.CaptureFixture[str], rows: Any, what: str
) -> None:
    words = [] if rows is None else [lines("bench.jsonl", *rows)]
    assert main(["eval", "--reward", str(whole.run / "reward"), *words, *(USUAL if words else ())]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in what.split("|"))


def test_data_may_be_named_and_a_typing_error_is_found(whole: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    data = lines("bench.jsonl", *bench({"chat": 3}))
    words = ["eval", "--reward", str(whole.run / "reward"), f"data={data}", "device=cpu"]
    assert main([*words, "max_length=64", "--dry-run"]) == 0
    assert main([*words, "max_lenght=64"]) == 2
    assert "did you mean 'max_length'?" in capsys.readouterr().err
