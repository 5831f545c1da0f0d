"""The stage `calibrate`: judges beside people, useless ones, the leakage guard, corrected rates, stores."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.feedback.server import by_length, serving
from tests.feedback.worlds import world_pairs

from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback import AnswerCache
from tiltyard.pipeline import run_recipe
from tiltyard.report.judge_tables import print_calibration
from tiltyard.types import Group
from tiltyard.world import gold

from .planted import Place, after, killed

JUDGE = {"kind": "simulated", "temperature": 0.3}


def run(folder: Path, kind: str = "calibrate", **settings: Any) -> tuple[dict[str, Any], str]:
    recipe = folder / "r.yaml"
    recipe.write_text(f"name: r\nstages:\n  - {kind}: {json.dumps({'device': 'cpu', **settings})}\n")
    out = io.StringIO()
    outcome = run_recipe(recipe, runs_root=folder, console=Console(file=out, width=250))
    return outcome["stages"][kind]["result"], out.getvalue()


def different(count: int) -> list[Group]:
    pairs = [g for g in world_pairs(count) if "turns" not in {**g.responses[0].meta, **g.responses[1].meta}]
    return [g for g in pairs if g.responses[0].text != g.responses[1].text]


def write(path: Path, groups: list[Group], labelled: int | None = None, **more: Any) -> Path:
    """Rows of two responses; the first `labelled` of them with the ranks of their gold scores."""
    with path.open("w") as file:
        for k, g in enumerate(groups):
            texts = [r.text for r in g.responses]
            golds = [gold(g.prompt.meta, text).total for text in texts]
            row: dict[str, Any] = {"id": g.prompt.id, "prompt": [m.to_dict() for m in g.prompt.messages or ()]}
            row |= {"responses": texts, "meta": dict(g.prompt.meta)} | {key: value(k) for key, value in more.items()}
            if labelled is None or k < labelled:
                row["ranks"] = [1 + (golds[0] < golds[1]), 1 + (golds[1] < golds[0])]
            file.write(json.dumps(row) + "\n")
    return path


def test_a_judge_is_measured_beside_the_free_ones(tmp_path) -> None:
    groups = different(40)
    result, text = run(tmp_path, data=str(write(tmp_path / "p.jsonl", groups)), judge=JUDGE, rounds=200)
    (name,) = [name for name in result["rows"] if name.startswith("judge:simulated")]
    assert set(result["rows"]) == {name, "longest", "first", "random"}
    row = result["rows"][name]
    assert row["agreement"]["value"] > 0.9  # the labels are the world's own
    assert row["missing"] == 0
    assert result["rows"]["random"]["agreement"]["value"] == 0.5
    assert json.loads((tmp_path / "r/calibrate/calibration.json").read_text())["rows"][name] == row
    assert "over longest" in text
    assert result["corrected"] == {}


def test_published_verdicts_of_rows_and_a_useless_judge(tmp_path) -> None:
    groups = different(40)
    rng = random.Random(3)
    guesses = [[rng.choice((1, 2)), rng.choice((1, 2, None))] for _ in groups]
    data = write(tmp_path / "p.jsonl", groups, verdicts=lambda k: {"coin": guesses[k]})
    result, text = run(tmp_path, data=str(data), rounds=200)
    row = result["rows"]["coin"]
    assert row["useless"]
    assert row["missing"] > 0  # one order without a verdict: no verdict
    assert "coin is USELESS on these pairs" in text


def test_items_that_a_template_was_tuned_on_are_left_out(tmp_path) -> None:
    groups = different(30)
    data = write(tmp_path / "p.jsonl", groups)
    tuned = write(tmp_path / "tuned.jsonl", groups[:5])
    result, text = run(tmp_path, data=str(data), judge=JUDGE, tuned_on=[str(tuned)], rounds=200)
    assert result["left_out"] >= 5
    assert result["pairs"] == len(groups) - result["left_out"]
    assert f"{result['left_out']} pairs are left out: a judge was tuned on such prompts" in text


def test_people_label_a_part_and_the_judge_the_rest(tmp_path) -> None:
    groups = different(60)
    data = write(tmp_path / "p.jsonl", groups, labelled=20)
    result, text = run(tmp_path, data=str(data), judge=JUDGE, rounds=200)
    (rates,) = result["corrected"].values()
    ppi = rates["the first response"]["ppi"]
    assert ppi["people"]["n"] == 20
    assert ppi["judge"]["n"] == len(groups)
    assert ppi["estimate"]["low"] <= ppi["estimate"]["value"] <= ppi["estimate"]["high"]
    assert "the first response is preferred" in text
    assert "prediction-powered" in text


def test_judgements_of_a_finished_run_are_measured(tmp_path) -> None:
    groups = different(30)
    everything = write(tmp_path / "all.jsonl", groups, labelled=0)
    run(tmp_path, "ai_label", data=str(everything), judge=JUDGE)
    some = write(tmp_path / "some.jsonl", groups[:12])
    result, _ = run(tmp_path, data=str(some), judged=[str(tmp_path / "r/ai_label")], rounds=200)
    assert (result["labelled"], result["pairs"]) == (12, len(groups))
    (rates,) = result["corrected"].values()
    assert rates["the first response"]["ppi"]["judge"]["n"] == len(groups)


def test_chosen_and_rejected_rows_get_a_drawn_order(tmp_path) -> None:
    lines = [{"prompt": f"q{k}", "chosen": f"good {k}", "rejected": f"bad {k}"} for k in range(30)]
    lines = [line | {"verdicts": {"j": [1, 1]}} for line in lines]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result, text = run(tmp_path, data=str(tmp_path / "p.jsonl"), rounds=200)
    assert result["order_drawn"]
    assert 0.1 < result["rows"]["first"]["agreement"]["value"] < 0.9
    assert result["rows"]["j"]["agreement"]["value"] == 1
    assert "the order of `first` was drawn" in text


def test_a_store_has_people_and_gets_judges(tmp_path) -> None:
    """A judge's verdicts stand beside people's: they take no place, and make no adjudication."""
    from tiltyard.feedback.store.assignment import next_task
    from tiltyard.feedback.store.database import Database
    from tiltyard.feedback.store.export import groups as stored
    from tiltyard.feedback.store.items import Item, add_tasks
    from tiltyard.feedback.store.judgements import judge
    from tiltyard.feedback.store.people import add_annotator, add_guideline

    file = tmp_path / "labels.db"
    store = Database(file)
    add_guideline(store, "Prefer the true answer.")
    pairs = different(12)
    add_tasks(store, [Item(g, overlap=1) for g in pairs])
    result, _ = run(tmp_path, "ai_label", store=str(file), judge=JUDGE)
    assert result["pairs"] == len(pairs)
    verdicts = list(stored(store, roles=("judge",)))
    assert len(verdicts) == len(pairs)
    assert all(g.preference.shares is not None and g.preference.meta["orders"] for g in verdicts)
    ada = add_annotator(store, "ada")[0]
    done = 0
    while (task := next_task(store, ada.id)) is not None:
        assert task.stage == "real"
        judge(store, ada.id, task.exposure, {"choice": "first" if done % 2 else "second"}, key=f"k{done}")
        done += 1
    assert done == len(pairs)
    result, _ = run(tmp_path, store=str(file), rounds=200)
    assert (result["labelled"], result["votes"]) == (len(pairs), len(pairs))
    assert any(name.startswith("judge:simulated") for name in result["rows"])
    run(tmp_path, "ai_label", store=str(file), judge=JUDGE)
    assert len(list(stored(store, roles=("judge",)))) == len(pairs)  # once for each task


def test_wrong_settings(tmp_path) -> None:
    data = str(write(tmp_path / "p.jsonl", different(4), labelled=0))
    with pytest.raises(ConfigError, match="give data, or store"):
        run(tmp_path, judge=JUDGE)
    with pytest.raises(ConfigError, match="measured on pairs"):
        run(tmp_path, data=data, judge={**JUDGE, "ask": "score"})
    with pytest.raises(DataError, match="people labelled none"):
        run(tmp_path, data=data, judge=JUDGE)


def test_the_tables_fit_into_a_hundred_columns() -> None:
    """No heading and no interval is folded, whatever the judge is called."""
    share = {"value": 0.812, "low": 0.703, "high": 0.892, "n": 40}
    points = {"value": -0.101, "low": -0.212, "high": -0.051, "n": 40}
    row = {
        "agreement": share,
        "gain": points,
        "kappa": {"value": 0.456},
        "missing": 12,
        "price": 13.6,
        "seconds": 1455.0,
    }
    row |= dict.fromkeys(("longer", "first", "disagree", "repeat"), share) | {"own_excess": points}
    names = ("judge:a-model-of-a-long-name@2026-11-01#0123456789ab", "longest", "first", "random")
    out = io.StringIO()
    people = {"agreement": share, "seconds": 36800.0}
    print_calibration({"rows": dict.fromkeys(names, row), "people": people}, Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    (first, second) = [line for line in lines if line.lstrip().startswith("judge ")]
    assert all(name in first for name in ("agree %", "over longest", "kappa", "none", "price", "seconds"))
    assert all(name in second for name in ("longer %", "first %", "apart %", "repeat %", "own"))
    assert sum("-10.1 [-21.2, -5.1]" in line for line in lines) == 4
    assert sum(line.count("81 [70, 89]") for line in lines) == 16


@pytest.mark.slow
def test_a_killed_calibration_repeats_no_call(tmp_path, monkeypatch) -> None:
    """It keeps no journal: every answer is on the disk before it is used, and the next attempt finds it there."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data = str(write(tmp_path / "p.jsonl", different(12)))
    with serving() as server:
        server.reply = by_length
        judge = {"kind": "api", "model": "m", "url": server.url, "constrain": "none", "concurrency": 1}
        (tmp_path / "whole").mkdir()
        (tmp_path / "cut").mkdir()
        whole, _ = run(tmp_path / "whole", data=data, judge=judge, rounds=200)
        count = len(server.asked)
        server.asked.clear()
        for number in (5, 20):  # answers of the first time; then of the second, which measures repeatability
            killed(
                lambda: run(tmp_path / "cut", data=data, judge=judge, rounds=200),
                Place(AnswerCache, "put", number, after).plant,
            )
        assert 0 < len(server.asked) < count
        found, _ = run(tmp_path / "cut", data=data, judge=judge, rounds=200)
        assert len(server.asked) == count
    for name, row in whole["rows"].items():
        assert {**found["rows"][name], "seconds": None} == {**row, "seconds": None}
