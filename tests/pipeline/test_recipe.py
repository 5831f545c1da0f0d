from __future__ import annotations

from pathlib import Path

import pytest
from tests.pipeline import toys

from tiltyard.errors import ConfigError
from tiltyard.pipeline.recipe import check, find_recipe, parse_recipe, read_recipe
from tiltyard.stages.base import RESERVED, Stage, get_stage, register


def fails(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(parse_recipe(text, "r.yaml"))
    return str(caught.value)


def test_a_recipe() -> None:
    steps = check(parse_recipe(toys.RECIPE, "r.yaml"))
    assert [(s.name, s.stage.name, s.uses) for s in steps] == [
        ("make", "make", ()),
        ("learn", "learn", ("make",)),
        ("tune", "tune", ("learn",)),
        ("tune_free", "tune", ("learn",)),
        ("measure", "measure", ("learn", "tune", "tune_free")),
    ]
    assert steps[0].settings.seed == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("stages", "parts"),
    [
        ("- make: {txt: 1}", ["r.yaml:4: make.txt: unknown setting 'txt'", "did you mean 'text'?"]),
        ("- make:\n      size: 1\n      text: 5", ["r.yaml:6: make.text", "got:      5 (int)"]),
        ("- make:\n      size: 0", ["r.yaml:5: make.size", "expected: int > 0"]),
        ("- learn:\n      data: toys\n      arch:\n        presett: 1m", ["r.yaml:7: learn.arch.presett", "'preset'"]),
        ("- learn: {}", ["r.yaml:4: learn.data: the setting 'data' is required"]),
        ("- mak: {}", ["r.yaml:4: unknown stage or method 'mak'", "did you mean 'make'?", "method: ppo"]),
        ("- again: {method: tun}", ["r.yaml:4: unknown stage or method 'tun'", "did you mean 'tune'?"]),
        ("- make: {method: tune}", ["r.yaml:4: a stage called 'make' cannot be of kind 'tune'"]),
        ("- make: {}\n  - make: {}", ["r.yaml:5: two stages are called 'make'", "make_2: {method: make"]),
        ("- make: {text: a, text: b}", ["r.yaml:4: the key 'text' stands here twice"]),
        ("- make: {}\n    size: 1", ["r.yaml:4: an item of `stages`", "indent"]),
        ("- make: 3", ["r.yaml:4: the settings of 'make' are a mapping"]),
        ("- 'a/b': {}", ["r.yaml:4: a stage's name is letters"]),
        ("- make: {text: 'a", ["r.yaml:", "this is no YAML"]),
        ("- tune: {model: learn}\n  - learn: {data: make}", ["r.yaml:4: tune.model", "names 'learn', a later stage"]),
        ("- tune: {model: tune}", ["r.yaml:4: tune.model", "the stage 'tune' names itself"]),
        ("- make: {}\n  - learn:\n      data: mke", ["r.yaml:6: learn.data", "no such stage or path: 'mke'", "'make'"]),
        ("- learn: {data: nowhere.jsonl}", ["r.yaml:4: learn.data", "no such stage or path"]),
        ("- make: {}\n  - measure: {models: [make, mkae]}", ["r.yaml:5: measure.models", "did you mean 'make'?"]),
    ],
)
def test_what_is_wrong_and_where(stages: str, parts: list[str]) -> None:
    text = fails(f"name: r\ndefaults: {{seed: 1}}\nstages:\n  {stages}\n")
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "the recipe is empty"),
        ("- 1", "r.yaml:1: a recipe is a mapping"),
        ("name: r\nstage: []", "r.yaml:2: unknown key 'stage' of a recipe\n  to do:    did you mean 'stages'?"),
        ("name: r\nstages: []", "r.yaml:2: a recipe needs stages"),
        ("name: a/b\nstages: [make]", "r.yaml:1: a run's name"),
        ("name: r\ndefaults:\n  sed: 1\nstages: [make]", "r.yaml:3: no stage of this recipe has a setting 'sed'"),
        ("defaults:\n  seed: x\nstages: [make]", "r.yaml:2: make.seed: the setting 'seed' does not fit"),
    ],
)
def test_what_is_wrong_with_the_whole(text: str, part: str) -> None:
    assert part in fails(text)


def test_overrides(recipe: Path) -> None:
    read = read_recipe(
        recipe, ["learn.arch.preset=12m", "tune.kl=1e-3", "name=7", "defaults.seed=5", "measure.models=[tune]"]
    )
    steps = {step.name: step.settings for step in check(read)}
    assert read.name == "7"
    assert steps["learn"].arch.preset == "12m"  # type: ignore[attr-defined]
    assert steps["tune"].kl == 1e-3  # type: ignore[attr-defined]
    assert steps["make"].seed == 5  # type: ignore[attr-defined]
    assert steps["measure"].models == ["tune"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("tun.kl=1", ["the recipe has no stage 'tun'", "did you mean 'tune'?"]),
        ("tune.k=1", ["command line: tune.k=1", "unknown setting 'k'"]),
        ("tune.kl=abc", ["command line: tune.kl=abc", "got:      'abc' (str)"]),
        ("learn.steps.x=1", ["'steps' has no settings of its own"]),
        ("kl=1", ["an override names a stage and a setting"]),
        ("tune", ["no assignment", "stage.key=value"]),
        ("name=a/b", ["a run's name"]),
        ("tune.method=measre", ["unknown stage or method 'measre'"]),
    ],
)
def test_wrong_overrides(recipe: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check(read_recipe(recipe, [override]))
    for part in parts:
        assert part in str(caught.value)


def test_recipes_are_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such recipe"):
        find_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        find_recipe(tmp_path)


def test_paths_hub_names_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    text = "stages:\n  - learn: {data: ./learn}\n"
    assert "no such stage or path" in fails(text)
    (tmp_path / "learn").mkdir()
    assert check(parse_recipe(text, "r.yaml"))[0].inputs == (("./learn", Path("learn")),)
    assert check(parse_recipe("stages:\n  - tune: {model: o/m, reward: gold}", "r.yaml"))[0].uses == ()


def test_registry() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tune'"):
        get_stage("tunee")
    stage = get_stage("make")
    with pytest.raises(ConfigError, match="two kinds of stage"):
        register(Stage("make", stage.run, stage.settings))
    with pytest.raises(ConfigError, match="no setting 'model'"):
        register(Stage("other", stage.run, stage.settings, refers=("model",)))
    assert RESERVED == ("name", "method")
