"""`tiltyard rate`, `agreement` and `export` as a user runs them: on a store and on files."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from tests.exchange.judged import battles, group
from tests.feedback.store.conftest import group as stored_group

from tiltyard.cli import main
from tiltyard.data.exchange import write_judged
from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.judgements import judge
from tiltyard.feedback.store.people import add_annotator, add_guideline

STRENGTHS = {"m0": 0.8, "m1": 0.2, "m2": -1.0}


@pytest.fixture
def rows(tmp_path):
    """A file of 200 comparisons, each by two annotators."""
    path = tmp_path / "votes.jsonl"
    write_judged(path, battles(200, STRENGTHS, annotators=2, wrong=0.1))
    return path


@pytest.fixture
def store(tmp_path):
    """A store with 12 judged pairs by two annotators, who disagree on one."""
    database = Database(tmp_path / "labels.db")
    add_guideline(database, "Prefer the answer that helps.")
    people = [add_annotator(database, name)[0] for name in ("ada", "bob")]
    add_tasks(database, [Item(stored_group(k), overlap=2, source="own") for k in range(12)])
    for person in people:
        for k in range(12):
            task = next_task(database, person.id)
            best = "first" if task.shown[0] == (k == 3 and person.name == "bob") else "second"
            judge(database, person.id, task.exposure, {"choice": best}, key=f"{person.name}{k}", seconds=2.0)
    database.close()
    return tmp_path / "labels.db"


def said(capsys, *words, code=0) -> str:
    assert main([*map(str, words)]) == code
    return capsys.readouterr().out


def test_rate_prints_a_board(rows, capsys, tmp_path) -> None:
    text = said(capsys, "rate", rows, "--anchor", "m1", "--plot", tmp_path / "board.png")
    assert re.search(r"m0 +\d+ +\[\d+, \d+\]", text), text
    assert "400 battles on 200 prompts; Bradley-Terry, a tie is half a win for each" in text
    assert (tmp_path / "board.png").stat().st_size > 10_000
    assert "Elo, mean +- sd" in text


def test_rate_shows_each_source_by_itself(capsys, tmp_path) -> None:
    groups = []
    for k, one in enumerate(battles(120, STRENGTHS)):
        meta = {"source": "own" if k % 3 else "drawn"}
        groups.append(replace(one, prompt=replace(one.prompt, meta=meta)))
    write_judged(tmp_path / "x.jsonl", groups)
    text = said(capsys, "rate", tmp_path / "x.jsonl")
    assert "Ratings by source" in text
    assert re.search(r"model +drawn +own", text)


def test_rate_as_json_has_everything(rows, capsys) -> None:
    found = json.loads(said(capsys, "rate", rows, "--json", "--ties", "davidson", "--intervals", "bootstrap",
                            "--rounds", 50, "--equal-length", "--reliability"))  # fmt: skip
    assert [line["model"] for line in found["board"]["standings"]] == ["m0", "m1", "m2"]
    assert found["board"]["settings"]["ties"] == "davidson"
    assert len(found["board"]["length"]) == 2
    assert set(found["reliability"]) == {"a0", "a1"}


def test_rate_prints_abilities(rows, capsys, tmp_path) -> None:
    text = said(capsys, "rate", rows, "--abilities")
    assert re.search(r"a0 +200 +\d\.\d\d +\[-?\d\.\d\d, \d\.\d\d\]", text), text
    assert "Ratings with abilities: m0 " in text
    found = json.loads(said(capsys, "rate", rows, "--abilities", "--json"))["abilities"]
    assert set(found["annotators"]) == {"a0", "a1"}
    assert found["ratings"]["m0"]["low"] < found["ratings"]["m0"]["rating"] < found["ratings"]["m0"]["high"]
    write_judged(tmp_path / "one.jsonl", battles(60, STRENGTHS))
    assert "no abilities: abilities compare annotators" in said(capsys, "rate", tmp_path / "one.jsonl", "--abilities")


def test_rate_of_a_store_keeps_every_registered_policy(store, capsys) -> None:
    text = said(capsys, "rate", store)
    assert "model-0@1" in text
    assert "24 battles on 12 prompts" in text


def test_rate_writes_rewards_that_training_reads(rows, capsys, tmp_path) -> None:
    out = tmp_path / "rewards.jsonl"
    assert "rewards of 200 prompts" in said(capsys, "rate", rows, "--rewards", out)
    row = json.loads(out.read_text().splitlines()[0])
    assert len(row["scores"]) == len(row["responses"]) == 2
    assert "200 groups" in said(capsys, "check", out)


def test_rate_shows_the_corrected_win_rate_beside_the_raw_one(capsys, tmp_path) -> None:
    groups = [group(k, annotator="judge:x", ranks=(1, 2) if k % 3 else (2, 1)) for k in range(60)]
    groups += [group(k, annotator="ada", ranks=(1, 2) if k % 2 else (2, 1)) for k in range(0, 60, 2)]
    write_judged(tmp_path / "both.jsonl", groups)
    text = said(capsys, "rate", tmp_path / "both.jsonl", "--anchor", "sft", "--by", "people")
    assert "Win rates against sft" in text
    assert "x: dpo" in text
    assert "30 battles on 30 prompts" in text


def test_agreement_of_a_store(store, capsys, tmp_path) -> None:
    text = said(capsys, "agreement", store, "--disagreements", tmp_path / "disputed.jsonl")
    assert "Cohen kappa" in text
    assert "24 judgements; 12 items, 12 of them judged by two or more" in text
    (one,) = [json.loads(line) for line in (tmp_path / "disputed.jsonl").read_text().splitlines()]
    assert set(one["labels"]) == {"ada", "bob"}
    found = json.loads(said(capsys, "agreement", store, "--json"))
    assert {row["name"] for row in found["annotators"]} == {"ada", "bob"}


def test_agreement_says_undefined(capsys, tmp_path) -> None:
    write_judged(tmp_path / "x.jsonl", [group(k, ranks=(1, 1), annotator=n) for k in range(6) for n in "ab"])
    text = said(capsys, "agreement", tmp_path / "x.jsonl")
    assert re.search(r"Krippendorff alpha\s+undefined", text)
    assert "chance agreement is 1" in text


def test_export_of_a_store_and_back(store, capsys, tmp_path) -> None:
    out = tmp_path / "pairs.jsonl"
    assert "24 rows as trl" in said(capsys, "export", store, "--to", "trl", "--out", out)
    assert "24 groups" in said(capsys, "check", out)
    parquet = tmp_path / "votes.parquet"
    said(capsys, "export", store, "--out", parquet)
    before, after = (
        json.loads(said(capsys, "rate", source, "--json"))["board"]["standings"] for source in (store, parquet)
    )
    assert before == after


def test_errors_name_the_place(capsys, tmp_path, rows) -> None:
    assert main(["rate", str(rows), "--ties", "davison"]) == 2
    assert "did you mean 'davidson'" in capsys.readouterr().err
    assert main(["rate", "sqlite:///" + str(tmp_path / "none.db")]) == 2
    assert "there is no such store" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "bad.jsonl").write_text('{"model_a": "x", "model_b": "y", "winner": "x"}\n')
    assert main(["rate", str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl:1" in capsys.readouterr().err
    assert main(["rate", str(rows), "--intervals", "sandwhich"]) == 2
    assert main(["export", str(rows), "--out", str(tmp_path / "x.csv")]) == 2


def test_a_store_without_a_judgement_says_what_comes_next(capsys, tmp_path) -> None:
    store = str(tmp_path / "labels.db")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Who?", "chosen": "A baker.", "rejected": "No."}\n')
    assert main(["collect", "add", store, str(tmp_path / "pairs.jsonl")]) == 0
    assert f"a new store: {store}" in capsys.readouterr().err
    for words in (["agreement", store], ["rate", store], ["export", store, "--out", str(tmp_path / "x.groups.jsonl")]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"error: {store}: this store has no judgements yet" in said
        assert f"tiltyard collect serve {store}" in said


def test_a_misspelt_store_is_not_made(capsys, tmp_path) -> None:
    """What changes or reads a store needs one that is there, and a file that cannot be read makes none."""
    store, missing = str(tmp_path / "lables.db"), str(tmp_path / "none.md")
    for words in (
        ["people", store],
        ["people", store, "ada", "--new-link"],
        ["people", store, "ada", "--shut"],
        ["people", store, "ada", "--readmit"],
        ["serve", store],
        ["guidelines", store],
        ["guidelines", store, missing],
        ["add", store, missing],
        ["import", store, missing],
    ):
        assert main(["collect", *words]) == 2
        said = capsys.readouterr().err
        assert "there is no such store" in said or f"{missing}: the file" in said
        assert "\n  to do:" in said
    assert not list(tmp_path.iterdir())
