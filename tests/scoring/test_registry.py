"""Reward functions by path, module and alias; weighted sums from what a recipe says; every part logged by itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.feedback.worlds import Formula, world_pairs

from tiltyard.errors import ConfigError, ScoringError
from tiltyard.feedback import Grade, GradeScorer, JudgeScorer, Usage
from tiltyard.scoring import (
    FunctionScorer,
    Monitors,
    RewardPart,
    Scale,
    WeightedScorer,
    build_reward,
    check_prompts,
    function_file,
    is_function,
    load_function,
    register_alias,
    reward_parts,
)
from tiltyard.scoring.base import scorer_metrics
from tiltyard.scoring.registry import ALIASES
from tiltyard.types import Group, Prompt, Response
from tiltyard.world import gold

from .stubs import Scripted

FILE = """
from neighbour import LIMIT

def concise(prompt, response):
    return -max(0, len(response.text) - LIMIT)

def ranked(group):
    return list(range(len(group.responses)))

LIMIT_OF = LIMIT
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "rewards.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("LIMIT = 3\n")
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith(("tiltyard_user_", "neighbour", "mine"))]:
        del sys.modules[name]


def group(*texts: str) -> Group:
    return Group(Prompt(text="?", id="p"), tuple(Response(text=t) for t in texts), origin="row:1")


def test_a_function_of_a_file_beside_the_recipe(folder: Path) -> None:
    function = load_function("rewards.py:concise", [folder])
    assert function(None, Response(text="12345")) == -2
    assert load_function("rewards.py:concise", [folder]) is function
    assert function_file("rewards.py:concise", [folder]) == (folder / "rewards.py").resolve()
    assert load_function(f"{folder}/rewards.py:ranked")(group("a", "b")) == [0, 1]


def test_the_working_folder_comes_first(folder: Path) -> None:
    (folder / "work" / "rewards.py").write_text("def concise(prompt, response):\n    return 7\n")
    assert load_function("rewards.py:concise", [folder])(None, None) == 7


def test_a_changed_file_is_loaded_again(folder: Path) -> None:
    first = load_function("rewards.py:concise", [folder])
    (folder / "rewards.py").write_text("def concise(prompt, response):\n    return 1\n")
    assert load_function("rewards.py:concise", [folder]) is not first


def test_a_module_and_an_alias(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.py").write_text("def fixed(prompt, response):\n    return 2.0\n")
    assert load_function("mine:fixed", [folder])(None, None) == 2.0
    monkeypatch.setattr("tiltyard.scoring.registry.ALIASES", dict(ALIASES))
    register_alias("two", "mine:fixed")
    assert is_function("two")
    assert load_function("two", [folder])(None, None) == 2.0
    assert function_file("mine:fixed", [folder]) is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        *((spec, True) for spec in ("gold", "a.py:f", "dir/a.py:f", "pkg.mod:f", "mod:f")),
        *((spec, False) for spec in ("reward", "owner/name", "runs/demo/reward", "a.py", "owner/name:config")),
    ],
)
def test_what_names_a_function(spec: str, expected: bool) -> None:
    assert is_function(spec) is expected


@pytest.mark.parametrize(
    ("spec", "message", "fix"),
    [
        ("reward.py:concise", "there is no file reward.py", "rewards.py"),
        ("rewards.py:concice", "there is no function 'concice'", "concise"),
        ("rewards.py:LIMIT_OF", "there is no function 'LIMIT_OF'", ""),
        ("broken.py:f", "SyntaxError", "mend the file"),
        ("raising.py:f", "ZeroDivisionError", "mend the file"),
        ("importing.py:f", "No module named 'no_such_module'", "install"),
        ("no_such_package.module:f", "No module named", "install"),
        ("quality", "names no reward function", ""),
    ],
)
def test_what_cannot_be_loaded(folder: Path, spec: str, message: str, fix: str) -> None:
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "raising.py").write_text("x = 1 / 0\n")
    (folder / "importing.py").write_text("import no_such_module\n")
    with pytest.raises(ConfigError) as caught:
        load_function(spec, [folder])
    assert message in str(caught.value)
    assert fix in caught.value.fix
    if spec.startswith(("broken", "raising")):
        assert f"{spec.partition(':')[0]}:1" in caught.value.where


# ------------------------------------------------------------------------------------------------------- weighted sums


def constant(name: str, model: str | RewardPart) -> Any:
    source = model if isinstance(model, str) else model.source
    return FunctionScorer(lambda prompt, response: float(len(source)), name)


def test_one_source(folder: Path) -> None:
    assert build_reward("reward", constant).score([group("a")])[0].scores == (6.0,)
    scorer = build_reward("rewards.py:concise", constant, folders=[folder])
    assert (scorer.name, scorer.score([group("12345")])[0].scores) == ("concise", (-2.0,))


def test_a_weighted_sum_and_its_parts(folder: Path) -> None:
    spec = {"quality": {"from": "stage"}, "brevity": {"from": "rewards.py:concise", "weight": 0.5}, "other": "model"}
    scorer = build_reward(spec, constant, folders=[folder])
    (scored,) = scorer.score([group("a", "12345")])
    assert scored.scores == (10.0, 9.0)
    assert scorer_metrics(scorer) == {
        "reward/quality": (10.0, 2.0),
        "reward/brevity": (-2.0, 2.0),
        "reward/other": (10.0, 2.0),
    }
    assert set(scorer_metrics(scorer).values()) == {(0.0, 0.0)}
    assert {name: part.weight for name, part in reward_parts(spec).items()} == {
        "quality": 1.0,
        "brevity": 0.5,
        "other": 1.0,
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "at least one part"),
        ({"a": {"form": "x"}}, "did you mean 'from'"),
        ({"a": {"weight": 1.0}}, "names its source"),
        ({"a": {"from": "x", "weight": "much"}}, "finite number"),
        ({"a": {"from": "x", "weight": float("nan")}}, "finite number"),
        ({"a": {"from": "x", "weight": True}}, "finite number"),
        ({"a": 3}, "a source and a weight"),
    ],
)
def test_what_a_weighted_sum_refuses(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_reward(spec, constant)


def test_two_parts_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="one name"):
        WeightedScorer([(1.0, constant("a", "x")), (1.0, constant("a", "y"))])


class Picky:
    """Grades all texts but '?'."""

    def __init__(self) -> None:
        self.usage = Usage()

    def score(self, groups: list[Group]) -> list[tuple[Grade, ...]]:
        self.usage.calls += 1
        return [tuple(Grade(None if r.text == "?" else 1.0, "odd") for r in g.responses) for g in groups]


def test_what_one_part_leaves_out_the_sum_leaves_out() -> None:
    scorer = WeightedScorer([(1.0, GradeScorer(Picky())), (10.0, constant("length", "abc"))])
    scored = scorer.score([group("a", "?", "b"), group("?", "?"), group("c", "d")])
    assert [[r.text for r in g.responses] for g in scored] == [["a", "b"], ["c", "d"]]
    assert [g.scores for g in scored] == [(31.0, 31.0), (31.0, 31.0)]
    metrics = scorer_metrics(scorer)
    assert metrics["reward/judge"] == (4.0, 4.0)
    assert metrics["judge_calls"] == (1.0, 1.0)


def test_a_group_without_a_verdict_has_no_sum() -> None:
    silent = JudgeScorer(
        Formula(lambda first, second: None if "?" in (first, second) else (0.75 if first < second else 0.25))
    )
    scored = WeightedScorer([(1.0, silent), (1.0, constant("length", "abc"))]).score([group("a", "?"), group("a", "b")])
    assert [g.scores for g in scored] == [(3.75, 3.25)]  # the other group is left out
    with pytest.raises(ScoringError, match="no score"):
        WeightedScorer([(1.0, Scripted(lambda groups: groups))]).score([group("a")])


def test_the_scale_of_a_sum_is_that_of_its_worst_part() -> None:
    judge, fixed = JudgeScorer(Formula(lambda a, b: 0.5), moving=True), constant("a", "x")
    assert WeightedScorer([(1.0, fixed)]).scale == Scale(True, False)
    assert WeightedScorer([(1.0, fixed), (1.0, judge)]).scale == Scale(False, True)


# ---------------------------------------------------------------------------------------------------- gold and monitors


def test_gold_is_a_function_like_any_other() -> None:
    groups = world_pairs(4)
    scored = build_reward("gold", constant).score(groups)
    assert [g.scores for g in scored] == [tuple(gold(g.prompt.meta, r.text).total for r in g.responses) for g in groups]


def test_gold_checks_all_prompts_before_the_first_step() -> None:
    scorer = build_reward({"truth": {"from": "gold"}, "more": "x"}, constant)
    check_prompts(scorer, [g.prompt for g in world_pairs(3)])
    with pytest.raises(ConfigError, match="gold scores belong to the embedded world") as caught:
        check_prompts(scorer, [*(g.prompt for g in world_pairs(3)), Prompt(text="?", id="other")])
    assert caught.value.got == "other"
    check_prompts(constant("a", "x"), [Prompt(text="?")])


def test_monitors_measure_and_change_nothing() -> None:
    monitors = Monitors([constant("first", "abc"), WeightedScorer([(2.0, constant("part", "xy"))], "sum")])
    groups = [group("a", "b"), group("c")]
    assert monitors(groups) == {"reward/first": (9.0, 3.0), "reward/sum": (12.0, 3.0), "reward/part": (6.0, 3.0)}
    assert monitors([])["reward/first"] == (0.0, 0.0)


@pytest.mark.parametrize(
    ("more", "labels"),
    [
        ({}, {}),
        ({"label": "good"}, {"good": 1.0}),
        ({"label": 1}, {"1": 1.0}),
        ({"labels": {"good": 1, "bad": -1}}, {"good": 1.0, "bad": -1.0}),
    ],
)
def test_labels_of_a_classifier(more: dict[str, Any], labels: dict[str, float]) -> None:
    seen: list[RewardPart] = []
    build_reward({"from": "owner/name", **more}, lambda name, part: (seen.append(part), constant(name, part))[1])
    assert dict(seen[0].labels) == labels


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"from": "owner/name", "lable": "good"}, "did you mean 'label'?"),
        ({"from": "owner/name", "label": "a", "labels": {"b": 1.0}}, "exclude each other"),
        ({"from": "gold", "max_words": 3}, "unknown key 'max_words'"),
        ({"from": "owner/name", "labels": {"b": float("nan")}}, "not finite"),
    ],
)
def test_labels_that_cannot_be_read(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_reward(spec, constant)
    assert said in str(caught.value)
