"""Newer against older policies by labels, and by the gold score where there is one."""

from __future__ import annotations

import pytest

from tiltyard.data import BadRows, parsed_rows
from tiltyard.evaluation.versions import compared
from tiltyard.types import Group, Message, Preference, Prompt, Response
from tiltyard.world import gold, make_world, write_world


def labelled(k: int, ranks, old: str = "sft", new: str = "ppo", meta=None) -> Group:
    prompt = Prompt(messages=(Message("user", f"Question {k}?"),), id=f"q{k}", meta=meta or {})
    responses = (Response(text=f"new {k}", meta={"policy": new}), Response(text=f"old {k}", meta={"policy": old}))
    return Group(prompt, responses, preference=Preference(ranks=ranks, annotator="ada"))


def test_labels_of_the_newer_against_the_older():
    groups = [labelled(k, (1, 2)) for k in range(6)] + [labelled(k, (2, 1)) for k in range(6, 9)]
    groups += [labelled(9, (1, 1)), labelled(10, None)]
    [one] = compared(groups, ["sft", "ppo", "ppo_2"])
    assert (one.new, one.old, one.both_bad, one.gold, one.agreement) == ("ppo", "sft", 1, None, None)
    assert one.labels.value == pytest.approx(6.5 / 10)
    assert one.labels.low < 0.5 < one.labels.high
    assert "preferred in 65.0%" in " ".join(one.lines())
    assert one.to_dict()["labels"]["n"] == 10
    [other] = compared(groups, ["ppo", "sft"])  # the other way round
    assert other.labels.value == pytest.approx(1 - one.labels.value)


def test_where_no_one_prefers_either():
    [one] = compared([labelled(1, None)], ["sft", "ppo"])
    assert one.labels is None
    assert "both are bad" in " ".join(one.lines())


def test_versions_that_never_met_are_left_out():
    assert [(v.new, v.old) for v in compared([labelled(1, (1, 2), "b", "c")], ["a", "b", "c"])] == [("c", "b")]


def test_gold_score_of_the_same_pairs(tmp_path):
    write_world(make_world(0), tmp_path, documents=20, dialogues=20, demonstrations=40, prompts=5, held_out=5, tuning=5)
    rows = [group for _, group in parsed_rows(str(tmp_path / "demonstrations.jsonl"), "demonstrations", BadRows())]
    groups = []
    for k, row in enumerate(rows):
        texts = (row.responses[0].text, "no idea whatever")
        totals = [gold(row.prompt.meta, text).total for text in texts]
        responses = tuple(
            Response(text=text, meta={"policy": name}) for text, name in zip(texts, ("new", "old"), strict=True)
        )
        better = totals[0] > totals[1]
        right = k % 4 != 0  # each fourth label is wrong
        preference = Preference(ranks=(1, 2) if better == right else (2, 1), annotator="ada")
        groups += [Group(row.prompt, responses, preference=preference)] * 2  # two opinions on a pair are one pair
    [one] = compared(groups, ["old", "new"])
    assert one.gold.n == one.labels.n / 2
    assert one.gold.value > 0.8
    assert one.agreement.value == pytest.approx(0.75, abs=0.06)
