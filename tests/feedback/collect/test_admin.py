"""The admin's page: what the figures are, what is undefined, who is found poor, and what the export holds."""

from __future__ import annotations

import json
import random
import re

import pytest

from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.judgements import flag, judge, skip
from tiltyard.feedback.store.people import add_annotator, add_guideline
from tiltyard.runs.groups import read_groups

from ..store.conftest import group
from .test_security import PAYLOADS


def label(store, who, verdict, n=1000, adjudicate=True, **settings):
    """Lets an annotator judge up to `n` tasks; `verdict(task)`."""
    for k in range(n):
        task = next_task(store, who, **settings)
        if task is None:
            break
        judge(store, who, task.exposure, verdict(task), key=f"{who}-{k}-{n}", seconds=4.0, adjudicate=adjudicate)


def better(task, right=True):
    """The verdict that prefers the task's first response, or the other."""
    return {"choice": "first" if (task.shown[0] == 0) == right else "second"}


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition("<main")[2]))


def test_an_empty_store(client):
    html = client("root", "admin").get("/admin").text
    assert "Nothing has been judged yet" in html
    assert "Version 1" not in html
    assert client("eve", "admin").get("/admin/labels.groups.jsonl").text == ""


def test_the_figures(store, client):
    """Two people agree on five of six pairs: 83%, one dispute, and a third person's task."""
    add_tasks(store, [Item(group(k), overlap=2, source="own") for k in range(6)])
    people = [add_annotator(store, name)[0].id for name in ("ada", "bob")]
    label(store, people[0], better)
    root = client("root", "admin")
    assert "undefined" in text_of(root.get("/admin").text)
    label(store, people[1], lambda task: better(task, right=task.task != 4))
    html = root.get("/admin").text
    text = text_of(html)
    assert "12 judgements" in text
    assert re.search(r"Percent agreement 0% 50% 100% 83%", text)
    assert re.search(r"pair real own 6 12 / 12", text)
    assert re.search(r"pair third person own 1 0 / 1", text)
    assert "1 still wanted" in text
    assert re.search(r"Task 4 Question 3\? ada : [12] bob : [12]", text)
    assert re.search(r"1 20\d\d-\d\d-\d\d \d\d:\d\d 0 12 83%", text), "agreement under the version of the guidelines"
    assert re.search(r"model-0 1 6 ", text)
    dispute = text_of(root.get("/admin/task/4").text)
    assert re.search(r"ada real 1 &gt; 2 1 ", dispute)
    assert re.search(r"bob real 2 &gt; 1 1 ", dispute)
    assert "written by model-0 1" in dispute
    for task in (0, 99, 10**12):
        assert root.get(f"/admin/task/{task}").status_code == 404


def test_gold_skips_flags_and_new_guidelines(store, client):
    add_tasks(store, [Item(group(k)) for k in range(5)])
    known = {"stage": "gold", "expected": {"choice": "first"}}
    add_tasks(store, [Item(group(50 + k), **known) for k in range(4)])
    who = add_annotator(store, "ada")[0].id
    task = next_task(store, who)
    skip(store, who, task.exposure, "language")
    flag(store, who, next_task(store, who).exposure, "private: a name")
    label(store, who, better, 2, gold_every=1)
    add_guideline(store, "Prefer the shorter answer.")
    label(store, who, lambda task: better(task, right=task.task != 8), gold_every=1)
    text = text_of(client("root", "admin").get("/admin").text)
    assert "ada not known yet 4 1 4" in text, "judged, skipped, seconds"
    assert "private: a name" in text
    gold = [g.preference.meta["right"] for g in groups(store, stages=("gold",))]
    assert f" {100 * sum(gold) / len(gold):.0f}% " in text
    versions = re.search(r"Versions of the guidelines .*? Models on the board", text).group()
    counts = [int(n) for n in re.findall(r" \d \d{4}-[\d-]+ [\d:]+ \d (\d+) ", versions)]
    assert len(counts) == 2
    assert counts[0] == 2
    assert sum(counts) == 4 + len(gold)


def test_the_export_is_what_stands(store, client, tmp_path):
    add_tasks(store, [Item(group(k)) for k in range(4)])
    add_tasks(store, [Item(group(9), stage="gold", expected={"choice": "first"})])
    label(store, add_annotator(store, "ada")[0].id, better, gold_every=2)
    answer = client("root", "admin").get("/admin/labels.groups.jsonl")
    assert answer.headers["content-disposition"] == 'attachment; filename="labels.groups.jsonl"'
    path = tmp_path / "labels.groups.jsonl"
    path.write_bytes(answer.content)
    assert list(read_groups(path)) == list(groups(store))
    assert [json.loads(line)["preference"]["ranks"] for line in answer.text.splitlines()] == [[1, 2]] * 4
    assert client("eve").get("/admin/labels.groups.jsonl").status_code == 403


def test_hostile_names_are_text(store, client):
    add_tasks(store, [Item(group(k), source=text, overlap=2) for k, text in enumerate(PAYLOADS)])
    for text in PAYLOADS[:2]:
        label(store, add_annotator(store, text)[0].id, lambda task: better(task, right=task.exposure % 2))
    add_guideline(store, PAYLOADS[0])
    html = client(PAYLOADS[2], "admin").get("/admin").text.partition("<main")[2]
    assert not re.search(r"<(script|img|iframe|math|style|meta|view)\b", html, re.IGNORECASE)
    assert not re.search(r"<[^>]*\son\w+\s*=", html)
    assert "&lt;script&gt;window.hacked" in html


@pytest.mark.slow
def test_the_poor_annotator_and_the_biased_one_are_found(store, client):
    """Three people prefer the better answer in 92%, emil in 45%; fred takes what stands first in most cases."""
    rng = random.Random(0)
    add_tasks(store, [Item(group(k), overlap=5) for k in range(90)])
    for name in ("ann", "bea", "cem", "emil", "fred"):

        def verdict(task, name=name):
            if name == "fred" and rng.random() < 0.5:
                return {"choice": "first"}
            right = rng.random() < {"emil": 0.45}.get(name, 0.92)
            return better(task, right=right)

        label(store, add_annotator(store, name)[0].id, verdict, adjudicate=False)
    text = text_of(client("root", "admin").get("/admin").text)
    assert re.search(r"Found poor: emil \.", text), text[:400]
    assert re.search(r"emil poor \d+", text)
    for name in ("ann", "bea", "cem"):
        assert re.search(rf"{name} good \d+", text), name
    habits = re.search(r"Habits in pairs .*? Disagreements", text).group()
    assert habits.count("position bias") >= 1
    assert re.search(r"fred [^a-z]*position bias", habits)
