"""`tiltyard methods` and `tiltyard show METHOD`: what they derive, and how it is laid out."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest
from pydantic import Field
from rich.console import Console

from tiltyard import cli
from tiltyard.cli.method_tables import HEADINGS, cells, print_comparison, print_stage
from tiltyard.config import describe
from tiltyard.inputs import Policy, Rankings, Reference, Reward
from tiltyard.methods import METHODS
from tiltyard.methods.base import method
from tiltyard.methods.ppo import ppo
from tiltyard.methods.sft import Nll
from tiltyard.stages.base import STAGES, Stage, get_stage, load_all
from tiltyard.stages.methods import (
    FAMILIES,
    compare,
    compose,
    expand,
    method_rows,
    own_keys,
    pieces,
    split_source,
)
from tiltyard.stages.settings import method_settings
from tiltyard.training.algorithm import Algorithm

load_all()  # before the folder's toys take the place of the real stages

FIRST = [
    "name",
    "family",
    "human_labels",
    "on_policy",
    "online_feedback",
    "external_api",
    "models_trainable",
    "models_frozen",
    "paper",
]


def shown(write, width: int, *what: Any) -> list[str]:
    """The lines on a console of this width."""
    out = io.StringIO()
    write(*what, Console(file=out, width=width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@dataclass(frozen=True)
class Often(Rankings):
    """Comparisons for a method that samples besides."""

    samples: Any = "per iteration"
    feedback: Any = "every step"


@pytest.fixture
def cached(monkeypatch) -> str:
    """A method with long words everywhere, whose frozen model can leave."""

    def pairwise_cringe(
        source, *, weight: Annotated[float, Field(ge=0)], seed: Annotated[int, Field(ge=0)] = 0
    ) -> Algorithm:
        """A method whose own setting has no default.

        Args:
            source: any.
            weight: how much, in [0, 1]. [0.3: nobody 1999]
            seed: a common setting that it reads too.
        """
        return Algorithm("pairwise_cringe", source, Nll())

    monkeypatch.setitem(METHODS, "x", METHODS["sft"])  # restores the registry, whatever is registered below
    method(
        "distribution",
        source=Often(),
        roles=(Policy(), Reference(cached=True), Reward()),
        external_api=True,
        defaults={"lr": 1e-4, "prompts_per_step": 7},
        defaults_from="somebody's batch [sic]",
        paper="Somebody 1999; somebody else 2000, [in brackets]",
    )(pairwise_cringe)
    del METHODS["x"]
    made = METHODS.pop("pairwise_cringe")
    monkeypatch.setitem(METHODS, made.name, made)
    stage = Stage(made.name, lambda *_: {}, method_settings(made), summary=made.summary)
    monkeypatch.setitem(STAGES, made.name, stage)
    return made.name


# ------------------------------------------------------------------------------------------------------ what is derived


def test_what_is_known_of_four_methods() -> None:
    """Against the definitions: PPO keeps four models, of which it trains two; imitation keeps one and asks nobody."""
    rows = {row["name"]: row for row in compare()}
    assert [list(row)[: len(FIRST)] for row in rows.values()] == [FIRST] * len(rows)
    found = {name: tuple(rows[name][key] for key in FIRST[1:-1]) for name in ("pretrain", "sft", "reward", "ppo")}
    assert found == {
        "pretrain": ("pretrain", False, False, False, False, 1, 0),
        "sft": ("sft", False, False, False, False, 1, 0),
        "reward": ("reward", True, False, False, False, 1, 0),
        "ppo": ("rl", True, True, True, False, 2, 2),
    }
    assert list(rows) == sorted(rows, key=lambda name: (FAMILIES.index(rows[name]["family"]), name))
    assert set(rows) == set(METHODS)


def test_counts_with_and_without_caching(cached) -> None:
    row = next(row for row in compare("distribution") if row["name"] == cached)
    assert (row["models_trainable"], row["models_frozen"], row["models_frozen_cached"]) == (1, 2, 1)
    texts = dict(zip(HEADINGS, cells(row), strict=True))
    assert texts["models"] == "1 + 2 (1 + 1 cached)"
    assert (texts["samples the policy"], texts["feedback refreshed"], texts["external API"]) == (
        "per iteration",
        "every step",
        "yes",
    )
    assert (row["on_policy"], row["online_feedback"], row["external_api"], row["human_labels"]) == (True,) * 4


def test_families(capsys) -> None:
    assert cli.main(["methods", "--family", "rl", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert {row["family"] for row in rows} == {"rl"}
    assert {row["name"] for row in rows} == {name for name, m in METHODS.items() if m.family == "rl"}
    assert cli.main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare()
    assert cli.main(["methods", "--family", "ofline"]) == 2
    error = capsys.readouterr().err
    assert "unknown family 'ofline'" in error
    assert "did you mean 'offline'?" in error
    assert shown(print_comparison, 80, []) == ["no methods of this family"]


def test_where_a_default_comes_from() -> None:
    assert split_source("a size. [0.1: Rafailov et al. 2023, eq. 7]") == ("a size.", "0.1: Rafailov et al. 2023, eq. 7")
    assert split_source("a share in [0, 1]") == ("a share in [0, 1]", "")
    assert split_source("a share in [0, 1]. [Tiltyard: small]") == ("a share in [0, 1].", "Tiltyard: small")
    assert split_source("a size [Tiltyard: in [0, 1]]") == ("a size", "Tiltyard: in [0, 1]")
    assert split_source("without") == ("without", "")


def test_pieces_are_those_of_the_algorithm() -> None:
    found, algorithm = pieces(METHODS["ppo"]), compose(METHODS["ppo"])
    assert found is not None
    assert [step["name"] for step in found["prepare"]] == [type(step).__name__ for step in algorithm.prepare]
    assert found["loss"]["name"] == "ClippedPolicyAndValue"
    assert found["loss"]["needs"] == list(algorithm.loss.needs)
    assert found["reduce"]["over"] == "response tokens"
    assert [hook["name"] for hook in found["after"]] == ["UpdateKL"]
    assert (found["source"]["name"], found["epochs"], found["minibatches"]) == ("Online", 4, 1)

    def whitened(source: Any, *, whiten_rewards: bool = True) -> Algorithm:
        return ppo(source, whiten_rewards=whiten_rewards)

    other = pieces(replace(METHODS["ppo"], build=whitened))
    assert other is not None
    names = [step["name"] for step in other["prepare"]]
    assert names == [
        n for step in found["prepare"] for n in ([step["name"]] if step["name"] != "Gae" else ["WhitenRewards", "Gae"])
    ]


def test_settings_are_the_stage_s_and_say_whose_they_are(cached) -> None:
    for name in ("sft", "ppo", cached):
        listed = method_rows(METHODS[name], get_stage(name))
        assert [row["key"] for row in listed if row["own"]] == list(own_keys(METHODS[name]))
        assert {row["key"] for row in listed} == {setting.key for setting in describe(get_stage(name).settings)}
        rows = {row["key"].rpartition(".")[2]: row for row in listed}
        for key, value in METHODS[name].defaults.items():
            assert rows[key]["default"] == value
            assert rows[key]["source"] == METHODS[name].defaults_from
    # the common lr is 1e-4, which the made-up method names again: that changes nothing
    assert [key for key, row in rows.items() if row.get("changed")] == ["prompts_per_step"]
    assert rows["prompts_per_step"]["usual"] == 32
    assert [key for key, row in rows.items() if row["own"]] == ["weight"]
    assert rows["weight"]["required"] is True
    assert (rows["weight"]["doc"], rows["weight"]["source"]) == ("how much, in [0, 1].", "0.3: nobody 1999")


def test_show_as_json(capsys) -> None:
    assert cli.main(["show", "ppo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found)[:3] == ["kind", "summary", "refers"]
    assert (found["family"], found["frozen"], found["models_frozen"]) == ("rl", ["ref", "reward"], 2)
    assert found["oracle"] == METHODS["ppo"].oracle
    assert found["formula"] == METHODS["ppo"].formula
    settings = {row["key"]: row for row in found["settings"]}
    assert settings["clip"]["source"].startswith("0.2: Schulman et al. 2017")
    assert (settings["lr"]["changed"], settings["lr"]["default"], settings["lr"]["usual"]) == (True, 1e-5, 1e-4)
    assert (settings["prompts.path"]["required"], settings["prompts.path"]["changed"]) == (True, False)
    assert "default" not in settings["prompts.path"]
    assert cli.main(["show", "world", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["kind", "summary", "refers", "settings"]


# --------------------------------------------------------------------------------------------------- how it is laid out


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_fits(width, cached) -> None:
    """Nothing is cut and no word is broken, although the made-up method has a long word in every column."""
    rows = compare()
    lines = shown(print_comparison, width, rows)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    words = {word.strip("()") for line in lines for word in line.split()}
    for row in rows:
        starts = [line for line in lines if line.startswith(f"{row['name']} ")]
        assert len(starts) == (1 if width == 160 else 2)
        assert row["family"] in starts[-1]
        assert row["data_kind"] in starts[0]
        assert words >= {word.strip("()") for text in cells(row) for word in text.split()} - {""}
    assert words >= {word for heading in HEADINGS for word in heading.split()}
    assert any("1 + 2 (1 + 1 cached)" in line or "  1 + 1 cached" in line for line in lines)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_method_fits(width, cached) -> None:
    for name in ("ppo", cached):
        lines = shown(print_stage, width, expand(name))
        text = " ".join(" ".join(lines).split())
        assert max(map(len, lines)) <= width
        assert "…" not in text
        for row in expand(name)["settings"]:
            assert sum(line.split()[:1] == [row["key"].rpartition(".")[2]] for line in lines) >= 1
    assert "prompts_per_step *" in text
    assert "(other methods: 32)" in text
    assert f"* changed by {cached}; from: somebody's batch [sic]" in text
    assert "[0.3: nobody 1999]" in text
    assert "1 + 2 (1 + 1 cached): trains policy; keeps ref, reward frozen; ref not needed" in text
    assert "they depend on a setting that has no default" in text


def test_other_stages_are_shown_as_a_table_of_settings() -> None:
    lines = shown(print_stage, 160, expand("world"))
    assert lines[0].startswith("world: ")
    assert lines[1].split() == ["setting", "type", "default", "meaning"]
    assert len(lines) == 2 + len(describe(get_stage("world").settings))
