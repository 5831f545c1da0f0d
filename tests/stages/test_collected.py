"""What people judged on the labelling page trains the house's reward model as it is."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from tiltyard.cli import main
from tiltyard.feedback.collect.app import PACKAGE, collect_app
from tiltyard.feedback.collect.desk import Settings
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.people import add_annotator, add_guideline
from tiltyard.feedback.web.site import Site

ADDRESS = "http://127.0.0.1:8077"


def verdict(task):
    """People prefer the answer with "yes" in it; every seventh pair is a tie or bad on both sides."""
    number = int(task["prompt"][-1]["content"].rpartition(" ")[2].rstrip("?"))
    if task["kind"] == "ranking":
        order = sorted(range(len(task["texts"])), key=lambda k: -task["texts"][k].count("yes"))
        return {"ranks": [1 + order.index(k) for k in range(len(order))]}
    if number % 7 == 0:
        return {"choice": "tie" if number % 2 else "both_bad"}
    return {"choice": "first" if "yes" in task["texts"][0] else "second"}


@pytest.mark.slow
def test_collected_judgements_train_the_reward_model(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pairs = ({"prompt": f"Is it {k}?", "responses": [f"It is, yes, {k}.", f"No, not {k}."]} for k in range(40))
    texts = ["yes yes yes", "yes yes", "yes", "no"]
    ranked = ({"prompt": f"Is it {k}?", "responses": [f"{x} {k}" for x in texts]} for k in range(40, 46))
    for name, rows in (("pairs", pairs), ("ranked", ranked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["collect", "add", "labels.db", "pairs.jsonl"]) == 0
    assert main(["collect", "add", "labels.db", "ranked.jsonl", "--kind", "ranking"]) == 0
    store = Database("labels.db")
    add_guideline(store, "Prefer yes.")
    client = TestClient(collect_app(Site("collect", store, ADDRESS, (PACKAGE,)), Settings()), base_url=ADDRESS)
    client.post("/in", data={"token": add_annotator(store, "ada")[1]})
    head = {"x-csrf-token": client.get("/api/me").json()["csrf"]}
    client.post("/api/guidelines", json={"version": 1}, headers=head)
    for k in range(46):
        task = client.get("/api/task").json()
        sent = {"exposure": task["exposure"], "key": f"k{k}", "verdict": verdict(task)}
        assert client.post("/api/judgements", json=sent, headers=head).status_code == 200
    assert client.get("/api/task").json() is None
    store.close()
    assert main(["export", "labels.db", "--to", "groups", "--out", "labels.groups.jsonl"]) == 0
    words = ("steps=30", "prompts_per_step=8", "max_length=64", "lr=3e-3", "device=cpu", "name=own")
    capsys.readouterr()
    assert main(["train", "reward", f"model={whole.run / 'sft' / 'model'}", "data=labels.groups.jsonl", *words]) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "runs" / "own" / "reward" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
