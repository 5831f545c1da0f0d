"""Judgements of other tools come into a store: each once, with file and line, and say what they said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.exchange.judged import group
from tests.exchange.test_forms import PAIRS, RANKINGS, RATINGS, told

from tiltyard.data import BadRows
from tiltyard.data.exchange import write_judged
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.imports import import_judgements
from tiltyard.feedback.store.items import add_tasks
from tiltyard.feedback.store.judgements import judge
from tiltyard.feedback.store.people import add_annotator, annotators
from tiltyard.inputs.judgements import judged


def imported(store, path: Path, **settings):
    found = judged(str(path))
    settings = {"annotator": f"imported:{path.name}", "source": path.name, **settings}
    return import_judgements(store, found.groups, BadRows(settings.pop("rule", "error")), **settings)


@pytest.mark.parametrize("form", ["rows", "argilla", "label_studio", "battles"])
def test_the_same_file_twice_adds_nothing(store, tmp_path, form):
    every = PAIRS if form == "battles" else [*PAIRS, *RANKINGS, *RATINGS]
    write_judged(tmp_path / "x.jsonl", every, form)
    first = imported(store, tmp_path / "x.jsonl")
    assert (sum(first.kinds.values()), first.known) == (len(every), 0)
    found = list(groups(store))
    assert sorted(map(told, found), key=repr) == sorted(map(told, every), key=repr)
    for one in found:
        assert one.preference.meta["imported"].startswith("x.jsonl:")
    (tmp_path / "x.jsonl").rename(tmp_path / "y.jsonl")
    again = imported(store, tmp_path / "y.jsonl")
    assert (again.kinds, again.tasks, again.known) == ({}, 0, len(every))
    assert list(groups(store)) == found


def test_what_cannot_be_added_later_is_kept(store, tmp_path):
    write_judged(tmp_path / "x.jsonl", PAIRS, "rows")
    imported(store, tmp_path / "x.jsonl")
    one = next(g for g in groups(store) if g.prompt.id == "q0" and g.preference.annotator == "ada")
    meta = one.preference.meta
    assert (meta["chosen_with"], meta["shown"], meta["seconds"], meta["comment"]) == (0.25, [1, 0], 4.5, "clear")
    assert (one.preference.guideline, one.preference.when) == ("2", "2026-11-01T10:00:00.000+00:00")
    assert meta["source"] == "own"
    assert meta["imported"] == "x.jsonl:1"
    with store.reading() as connection:
        tasks = connection.scalar(sa.select(sa.func.count()).select_from(t.tasks))
    assert tasks == len({g.prompt.id for g in PAIRS})  # two annotators of one item: one task
    who = add_annotator(store, "eve")[0].id
    assert next_task(store, who) is None  # given out to no one


def test_transcripts_ratings_and_battles_without_names(store, tmp_path):
    write_judged(tmp_path / "hh.jsonl", PAIRS, "hh")
    lines = (tmp_path / "hh.jsonl").read_text()
    (tmp_path / "hh.jsonl").write_text(lines + lines.splitlines()[0] + "\n")  # one row stands there twice
    added = imported(store, tmp_path / "hh.jsonl")
    assert added.annotators == {"imported:hh.jsonl": 3}
    assert imported(store, tmp_path / "hh.jsonl").known == 3
    write_judged(tmp_path / "ultra.jsonl", RATINGS, "ultrafeedback")
    assert imported(store, tmp_path / "ultra.jsonl").kinds == {"rating": 2}
    assert [g.preference.ratings for g in groups(store, kinds=("rating",))] == [(3, 6, 1.5), (4, 4)]
    row = {"question_id": 7, "model_a": "x", "model_b": "y", "winner": "model_b", "judge": "u1", "tstamp": 1.7e9,
           "conversation_a": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}],
           "conversation_b": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "B"}]}  # fmt: skip
    (tmp_path / "battles.jsonl").write_text(json.dumps(row) + "\n")
    imported(store, tmp_path / "battles.jsonl")
    (battle,) = (g for g in groups(store) if g.preference.annotator == "u1")
    assert battle.preference.when.startswith("2023-11-14T22:13:20")
    assert battle.preference.ranks == (2, 1)


def test_an_export_of_the_store_is_known(store, items, tmp_path):
    """What the store wrote comes back as nothing new: its own judgements, and those that it imported."""
    add_tasks(store, items(3))
    who = add_annotator(store, "ada")[0].id
    for k in range(3):
        judge(store, who, next_task(store, who).exposure, {"choice": "first"}, key=f"k{k}")
    write_judged(tmp_path / "hh.jsonl", PAIRS, "hh")
    imported(store, tmp_path / "hh.jsonl")
    before = list(groups(store))
    write_judged(tmp_path / "out.jsonl", before, "rows")
    assert imported(store, tmp_path / "out.jsonl").known == len(before)
    assert list(groups(store)) == before


def test_a_judge_and_the_other_order_of_responses(store, tmp_path):
    """Two annotators who saw the responses in another order have one item; soft labels keep their probability."""
    one = group(0, ranks=(1, 2))
    soft = replace(one.preference, ranks=None, shares=(0.2, 0.8), annotator="judge:x")
    other = replace(one, responses=one.responses[::-1], preference=soft)
    result = import_judgements(store, [one, other], BadRows(), annotator="a", source="s")
    assert (result.tasks, sum(result.kinds.values())) == (1, 2)
    person, machine = groups(store)
    assert person.responses == machine.responses
    assert machine.preference.shares == pytest.approx((0.8, 0.2))
    assert {a.name: a.role for a in annotators(store)} == {"ada": "annotator", "judge:x": "judge"}
    with pytest.raises(ConfigError, match="another kind of annotator"):
        import_judgements(store, [group(1)], BadRows(), annotator="a", judges=("ada",))


def test_what_a_store_cannot_hold_is_named_by_its_line(store, tmp_path):
    write_judged(tmp_path / "x.jsonl", [group(0), group(1)], "rows")
    more = {"models": ["x", "y"], "ranks": [1, 2], "judgement": {"annotator": "u"}}
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write(json.dumps(more) + "\n")
    with pytest.raises(DataError, match="without texts") as error:
        imported(store, tmp_path / "x.jsonl")
    assert error.value.where == "x.jsonl:3"
    assert list(groups(store)) == []
    assert sum(imported(store, tmp_path / "x.jsonl", rule="drop").kinds.values()) == 2
    late = group(2)
    late = replace(late, preference=replace(late.preference, when="yesterday"), origin="f.jsonl:4")
    with pytest.raises(DataError, match="time of a judgement"):
        import_judgements(store, [late], BadRows(), annotator="a")
