"""From files to tasks and back: what is loaded, what is left out and counted, and what training gets."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tiltyard.errors import DataError
from tiltyard.feedback.collect.load import Wanted, items_of, read_items
from tiltyard.runs.groups import write_groups
from tiltyard.types import Group, Message, Prompt, Response


def rows(path, *values):
    path.write_text("\n".join(json.dumps(value) for value in values) + "\n", encoding="utf-8")
    return str(path)


def test_preference_rows_become_pairs(tmp_path):
    path = rows(
        tmp_path / "pairs.jsonl",
        {"prompt": "Capital of France?", "chosen": "Paris.", "rejected": "Lyon.", "source": "quiz"},
        {"prompt": "Same?", "chosen": "yes", "rejected": "yes"},
    )
    items, dropped = read_items(path, Wanted(overlap=2))
    assert [(item.source, item.overlap, item.expected) for item in items] == [("quiz", 2, None)]
    assert dropped == {"two equal responses": 1}
    assert items[0].group.responses[0].meta == {"policy": "unknown"}


def test_the_file_is_right_where_training_and_gold_items_are_made(tmp_path):
    path = rows(
        tmp_path / "gold.jsonl",
        {"prompt": "1?", "chosen": "good", "rejected": "bad", "explanation": "It is good."},
        {"prompt": "2?", "responses": ["a", "b"], "ranks": [2, 1]},
    )
    items, _ = read_items(path, Wanted(stage="training"))
    assert [item.expected for item in items] == [{"choice": "first"}, {"choice": "second"}]
    assert items[0].explanation == "It is good."
    path = rows(tmp_path / "ranked.jsonl", {"prompt": "2?", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]})
    expected = {"ranking": {"ranks": [2, 1, 3]}, "best_worst": {"best": 1, "worst": 2}}
    for kind, verdict in expected.items():
        assert read_items(path, Wanted(kind, "gold"))[0][0].expected == verdict
    with pytest.raises(DataError, match="right verdict"):
        read_items(path, Wanted("rating", "gold"))
    path = rows(tmp_path / "rated.jsonl", {"prompt": "2?", "responses": ["a", "b"], "scores": [2, 7]})
    assert read_items(path, Wanted("rating", "gold"))[0][0].expected == {"ratings": [2, 7]}


def test_pairs_are_drawn_with_their_probability(tmp_path):
    """One of the three pairs of each prompt, each equally often, with probability 1/3 stored."""
    path = rows(
        tmp_path / "sampled.jsonl",
        *({"prompt": f"{k}?", "responses": [{"text": x, "policy": x} for x in "abc"]} for k in range(300)),
    )
    items, _ = read_items(path, Wanted())
    assert {item.probability for item in items} == {1 / 3}
    assert {item.chooser for item in items} == {"random"}
    drawn = Counter(tuple(r.meta["policy"] for r in item.group.responses) for item in items)
    assert len(drawn) == 3
    assert min(drawn.values()) > 60
    everything, _ = read_items(path, Wanted(pairs=0))
    assert len(everything) == 900
    assert {(item.probability, item.chooser) for item in everything} == {(1.0, "all")}


def test_prompts_alone_are_for_writing(tmp_path):
    path = rows(tmp_path / "prompts.jsonl", {"prompt": "Write a poem."})
    (item,), _ = read_items(path, Wanted("write"))
    assert item.group.responses == ()
    with pytest.raises(DataError):
        read_items(path, Wanted())


def test_groups_of_a_stage_keep_their_policy_and_step(tmp_path):
    group = Group(Prompt(messages=(Message("user", "q"),)), (Response(text="a"), Response(text="b")))
    write_groups(tmp_path / "x.groups.jsonl", [group])
    line = json.loads((tmp_path / "x.groups.jsonl").read_text())
    stage = tmp_path / "demo" / "ppo"
    stage.mkdir(parents=True)
    rows(stage / "groups.jsonl", {"step": 7, **line})
    (item,), _ = read_items(str(stage), Wanted())
    assert item.group.responses[0].meta == {"policy": "demo/ppo", "version": "step 7"}
    (item,), _ = read_items(str(tmp_path / "x.groups.jsonl"), Wanted(policy="mine"))
    assert item.group.responses[0].meta == {"policy": "mine"}


def test_a_stage_that_sampled_names_its_model_and_who_trained_it(tmp_path):
    prompt = Prompt(messages=(Message("user", "Who?"),))
    folder = tmp_path / "answers"
    folder.mkdir()
    write_groups(folder / "candidates.groups.jsonl", [Group(prompt, (Response(text="a"), Response(text="b")))])
    config = {"settings": {"model": "ppo"}, "inputs": {"ppo": "0123456789abcdef"}, "schema": 1}
    (folder / "config.json").write_text(json.dumps(config))
    [item], _ = read_items(str(folder), Wanted())
    assert item.group.responses[0].meta == {"policy": "ppo", "version": "0123456789"}
    [item], _ = read_items(str(folder), Wanted(policy="new"))
    assert item.group.responses[0].meta["policy"] == "new"


def test_pairs_of_two_policies_alone():
    prompt = Prompt(messages=(Message("user", "Who?"),))
    answers = tuple(Response(text=f"{name} {k}", meta={"policy": name}) for name in ("old", "new") for k in range(2))
    dropped: Counter[str] = Counter()
    items = items_of([Group(prompt, answers)], Wanted(pairs=0, across=True), "here", dropped)
    assert len(items) == 4
    assert all({r.meta["policy"] for r in item.group.responses} == {"old", "new"} for item in items)
    [item] = items_of([Group(prompt, answers)], Wanted(across=True), "here", dropped)
    assert (item.probability, item.chooser, item.source) == (0.25, "random", "here")
    assert items_of([Group(prompt, answers[:2])], Wanted(across=True), "here", dropped) == []
    assert dropped == {"no two different responses of two policies": 1}
