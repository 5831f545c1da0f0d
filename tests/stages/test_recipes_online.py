"""The recipes rlaif, self_rewarding and iterated, shrunk to seconds by overrides and run to their end."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from tiltyard.data import Kind, LimitBy, read_groups
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback import SimulatedRater
from tiltyard.inputs.files import Rows, groups_of
from tiltyard.models.load import load_language_model
from tiltyard.pipeline import run_recipe
from tiltyard.pipeline.recipe import check, read_recipe
from tiltyard.runs.groups import group_from_dict
from tiltyard.stages.base import StageContext
from tiltyard.training.select import best_worst
from tiltyard.training.source import generator
from tiltyard.types import shares_of

from .conftest import Whole

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop

SMALL = {
    "world.documents": 200,
    "world.dialogues": 200,
    "world.demonstrations": 60,
    "world.prompts": 24,
    "world.held_out": 8,
    "pretrain.steps": 12,
    "pretrain.prompts_per_step": 8,
    "sft.steps": 6,
    "defaults.device": "cpu",
    "evaluate.max_tokens": 8,
    "evaluate.show": 1,
}


class Ran(NamedTuple):
    folder: Path
    results: dict[str, dict[str, Any]]
    text: str


def run(name: str, folder: Path, **more: Any) -> Ran:
    """The packaged recipe with `SMALL` and `more` (a double underscore for a dot) over it."""
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    overrides += [f"{key.replace('__', '.')}={value}" for key, value in more.items()]
    out = io.StringIO()
    outcome = run_recipe(name, overrides, runs_root=folder, console=Console(file=out, width=200))
    return Ran(folder / name, {key: stage["result"] for key, stage in outcome["stages"].items()}, out.getvalue())


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["rlaif", "drlaif", "self_rewarding", "iterated", "people"])
def test_they_are_recipes_of_the_package(name: str) -> None:
    steps = check(read_recipe(name))
    assert steps[0].name == "world"
    assert steps[-1].stage.name == "evaluate"


# --------------------------------------------------------------------------------------------------------------- rlaif


@pytest.fixture(scope="module")
def rlaif(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(
        "rlaif",
        tmp_path_factory.mktemp("rlaif"),
        candidates__limit=10,
        candidates__samples_per_prompt=3,
        candidates__max_tokens=8,
        reward__steps=4,
        reward__prompts_per_step=8,
        ppo__steps=2,
        ppo__prompts_per_step=6,
        ppo__max_tokens=6,
    )


def test_rlaif_learns_from_a_judge_and_nobody_else(rlaif: Ran) -> None:
    assert "label" not in rlaif.results
    labels = list(read_groups(rlaif.folder / "ai_label" / "labels.groups.jsonl"))
    assert len(labels) == rlaif.results["ai_label"]["pairs"] == 30  # all pairs of 3 answers to 10 prompts
    assert all(shares_of(g.preference) is not None and sum(shares_of(g.preference)) == pytest.approx(1) for g in labels)
    assert any(0 < min(shares_of(g.preference) or ()) < 0.5 for g in labels)
    [judge] = {g.origin.split()[-1] for g in labels}
    assert judge.startswith("judge:simulated#")  # and the hash of its questions
    assert rlaif.results["reward"]["steps"] == 4
    summary = json.loads((rlaif.folder / "summary.json").read_text())["models"]
    assert set(summary) == {"base", "sft", "ppo"}
    # what PPO's model cost: its own answers, scored by the reward model, and the judge's questions before that
    assert summary["ppo"]["samples"] == 2 * 6
    assert summary["ppo"]["judge_calls"] == 2 * 6 + rlaif.results["ai_label"]["judge_calls"]
    assert rlaif.results["ai_label"]["judge_calls"] == 2 * 30  # both orders
    assert [summary[name]["rankings"] for name in ("base", "sft", "ppo")] == [0, 0, 0]


def test_direct_rlaif_has_ratings_for_rewards(tmp_path: Path) -> None:
    """Every answer is rated once when it is written, by ten ratings' law around its gold score; nothing else scores."""
    ran = run("drlaif", tmp_path, reinforce__steps=3, reinforce__prompts_per_step=5, reinforce__max_tokens=6)
    assert set(ran.results) == {"world", "pretrain", "sft", "reinforce", "evaluate"}
    assert ran.results["reinforce"]["judge_calls"] == ran.results["reinforce"]["samples"] == 15
    groups = [group_from_dict(row) for row in read(ran.folder / "reinforce" / "groups.jsonl")]
    judge = SimulatedRater(temperature=0.5, votes=4)
    assert [g.scores for g in groups] == [tuple(x.score for x in row) for row in judge.score(groups)]
    rows = read(ran.folder / "reinforce" / "metrics.jsonl")
    for row, step in zip(rows, range(3), strict=True):
        scores = [s for g in groups[5 * step : 5 * step + 5] for s in g.scores or ()]
        assert row["score"] == pytest.approx(sum(scores) / 5)
    summary = json.loads((ran.folder / "summary.json").read_text())["models"]
    assert set(summary) == {"base", "sft", "drlaif"}


# ------------------------------------------------------------------------------------------------------ self-rewarding


@pytest.fixture(scope="module")
def rewarding(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The judge's job is learnt by heart here: forty sentences with a score, many times."""
    return run(
        "self_rewarding",
        tmp_path_factory.mktemp("rewarding"),
        label__limit=12,
        label__max_tokens=8,
        both__steps=140,  # enough that most judgements of a model of this size can be read
        both__epochs=1.0,
        both__lr=3e-3,
        self_rewarding__round_prompts=12,
        self_rewarding__steps=4,
        self_rewarding__prompts_per_step=4,
        self_rewarding__max_tokens=8,
    )


def test_the_policy_answers_judges_and_learns_in_two_rounds(rewarding: Ran) -> None:
    result = rewarding.results["self_rewarding"]
    assert result["steps"] == 4
    assert result["samples"] == 2 * 12 * 4
    assert result["judge_calls"] == 3 * result["samples"]  # three judgements an answer
    folder = rewarding.folder / "self_rewarding"
    for number, version in ((0, 0), (1, 2)):
        groups = list(read_groups(folder / "rounds" / f"round-{number:04d}.groups.jsonl"))
        assert groups
        assert all(len(g.scores or ()) == len(g.responses) >= 2 for g in groups)
        assert {r.policy_version for g in groups for r in g.responses} == {version}
        thirds = {round(3 * s, 9) % 1 for g in groups for s in g.scores or ()}
        assert thirds <= {0.0, 0.5}  # means of three, or of two where one could not be read
        pool = best_worst(groups, generator(0, 7, number))
        learnt = [g for g in read_groups(folder / "groups.jsonl") if f"policy@{version} " in g.origin]
        assert learnt
        assert {g.origin for g in learnt} <= {g.origin for g in pool}
    metrics = read(folder / "metrics.jsonl")
    for row in metrics:
        assert row["length_gap"] == pytest.approx(row["chosen_length"] - row["rejected_length"])
    assert metrics[0]["round"] == 1
    assert metrics[2]["round"] == 2


def test_both_files_are_learnt_from(rewarding: Ran) -> None:
    rows = sum(len(read(rewarding.folder / p)) for p in ("world/demonstrations.jsonl", "judge_skill/rows.jsonl"))
    assert rows == 60 + rewarding.results["judge_skill"]["rows"]
    assert "data world/demonstrations.jsonl: 60 of 60 rows kept" in rewarding.text
    assert f"data judge_skill/rows.jsonl: {rows - 60} of {rows - 60} rows kept" in rewarding.text


# ------------------------------------------------------------------------------------------------------------- iterated


@pytest.fixture(scope="module")
def iterated(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    more: dict[str, Any] = {}
    for number in ("", "_2", "_3"):
        more |= {f"label{number}__limit": 8, f"label{number}__max_tokens": 8, f"label{number}__k": 3}
        more |= {f"reward{number}__steps": 3, f"reward{number}__prompts_per_step": 4}
        more |= {f"ppo{number}__steps": 2, f"ppo{number}__prompts_per_step": 6, f"ppo{number}__max_tokens": 6}
    return run("iterated", tmp_path_factory.mktemp("iterated"), **more)


def test_labels_and_groups_say_whose_answers_they_are_about(iterated: Ran) -> None:
    for stage, model in (("label", "sft"), ("label_2", "ppo"), ("label_3", "ppo_2")):
        groups = list(read_groups(iterated.folder / stage / "rankings.groups.jsonl"))
        assert groups
        assert all(g.origin.startswith("annotator:") and g.origin.endswith(f" of {model}") for g in groups)
        assert {row["model"] for row in read(iterated.folder / stage / "judgements.jsonl")} == {model}
    summary = json.loads((iterated.folder / "summary.json").read_text())["models"]
    assert set(summary) == {"sft", "ppo", "ppo_2", "ppo_3"}
    # of people's rankings each counts all that its reward model has learnt from
    made = [iterated.results[name]["rankings"] for name in ("label", "label_2", "label_3")]
    asked = [summary[name]["rankings"] for name in ("sft", "ppo", "ppo_2", "ppo_3")]
    assert asked == [0, made[0], sum(made[:2]), sum(made)]


def test_the_reward_model_learns_old_and_new_labels(iterated: Ran) -> None:
    for stage, files in (("reward", 1), ("reward_2", 2), ("reward_3", 3)):
        told = [line for line in iterated.text.splitlines() if "rankings.groups.jsonl: 8 groups" in line]
        assert len(told) == 2 + 3  # a line a file, for the lists of two and three
        config = json.loads((iterated.folder / stage / "config.json").read_text())
        data = config["settings"]["data"]["path"]
        assert (len(data) if isinstance(data, list) else 1) == files


# --------------------------------------------------------------------------------------------------------------- people


def test_people_go_round_from_answers_to_labels_to_the_next_policy(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    more: dict[str, Any] = {}
    for number in ("", "_2", "_3"):
        more |= {f"answers{number}__limit": 8, f"answers{number}__max_tokens": 8}
    for number in ("", "_2"):
        more |= {f"reward{number}__steps": 3, f"reward{number}__prompts_per_step": 4}
        more |= {f"ppo{number}__steps": 2, f"ppo{number}__prompts_per_step": 6, f"ppo{number}__max_tokens": 6}
    ran = run("people", tmp_path, **more)
    asked = [ran.results[name]["rankings"] for name in ("collect", "collect_2", "collect_3")]
    assert all(n >= 6 for n in asked)  # of 8 prompts; pairs of equal answers are left out
    met = [[(v["new"], v["old"]) for v in ran.results[f"collect{n}"]["versions"]] for n in ("", "_2", "_3")]
    assert met == [[], [("ppo", "sft")], [("ppo_2", "ppo")]]
    for group in read_groups(ran.folder / "collect_3" / "labels.groups.jsonl"):
        assert group.preference is not None
        assert group.preference.annotator in ran.results["collect_3"]["annotators"]
        assert {r.meta["policy"] for r in group.responses} == {"ppo", "ppo_2"}
        assert all(r.meta["version"] for r in group.responses)  # the execution that trained it
    summary = json.loads((ran.folder / "summary.json").read_text())["models"]
    assert [summary[name]["rankings"] for name in ("sft", "ppo", "ppo_2")] == [0, asked[0], sum(asked[:2])]


# ------------------------------------------------------------------------------------------------------ several files


def reader(whole: Whole, out: io.StringIO) -> Callable[..., Any]:
    chat = load_language_model(whole.run / "sft").chat
    settings = Rows(64, "drop", limit=5)
    outputs = {name: whole.run / name for name in ("world", "label")}
    context = StageContext("r", "s", whole.run, whole.run, outputs, Console(file=out, width=200))

    def load(data: Any, kind: Kind = "demonstrations", by: LimitBy = "first", seed: int = 0) -> Any:
        return groups_of(context, "data", data, kind, chat, settings._replace(limit_by=by), seed)

    return load


def test_a_list_of_files_is_their_groups_one_after_the_other(whole: Whole) -> None:
    out = io.StringIO()
    load = reader(whole, out)
    one, two = "world/demonstrations.jsonl", "world/demonstrations_held_out.jsonl"
    both, alone = load([one, two]), [*load(one), *load(two)]
    assert [(g.prompt, g.responses) for g in both] == [(g.prompt, g.responses) for g in alone]
    assert [g.origin for g in both] == [
        f"{name} {g.origin}" for name, g in zip([one] * 5 + [two] * 5, alone, strict=True)
    ]
    assert f"data {one}: 5 of 5 rows kept" in out.getvalue()  # `limit` counts in each file
    mixed = load(["label/rankings.groups.jsonl", "label/rankings.jsonl"], "comparisons")
    assert mixed[0].origin.startswith("label/rankings.groups.jsonl annotator:")
    assert mixed[-1].origin.startswith("label/rankings.jsonl rankings.jsonl:5")
    assert load([one])[0].prompt == load(one)[0].prompt


def test_a_sample_is_drawn_from_each_file_of_rows_or_of_groups(whole: Whole) -> None:
    out = io.StringIO()
    load = reader(whole, out)
    files = ["label/rankings.groups.jsonl", "label/rankings.jsonl"]
    drawn = load(files, "comparisons", "sample", 3)
    assert len(drawn) == 10
    assert [g.origin for g in drawn] == [g.origin for g in load(files, "comparisons", "sample", 3)]
    assert out.getvalue().count("a sample of 5 of ") == 4
    assert [g.origin for g in drawn] != [g.origin for g in load(files, "comparisons")]
    assert [g.origin for g in drawn] != [g.origin for g in load(files, "comparisons", "sample", 4)]


def test_lists_that_cannot_be_meant(whole: Whole) -> None:
    load = reader(whole, io.StringIO())
    with pytest.raises(ConfigError, match="names each once"):
        load([])
    with pytest.raises(ConfigError, match="names each once"):
        load(["world/prompts.jsonl"] * 2)
    with pytest.raises((ConfigError, DataError), match="has no 'nothing"):
        load(["world/demonstrations.jsonl", "world/nothing.jsonl"])


def test_every_file_of_a_list_is_an_input_of_the_stage(whole: Whole, tmp_path: Path) -> None:
    """A list is checked like a single file, names earlier stages, and a change of any file re-runs the stage."""
    data = tmp_path / "more.jsonl"
    data.write_text(json.dumps({"prompt": "Who?", "completion": "Me."}) + "\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nstages:\n  - sft: {{model: {whole.run}/sft, data: [{whole.run}/world/demonstrations_held_out.jsonl, "
        f"{data}], steps: 1, prompts_per_step: 2, max_length: 64, device: cpu}}\n"
    )

    def status() -> str:
        outcome = run_recipe(recipe, runs_root=tmp_path, console=Console(file=io.StringIO()))
        return str(outcome["stages"]["sft"]["status"])

    assert [status(), status()] == ["run", "skip"]
    data.write_text(data.read_text() + json.dumps({"prompt": "Where?", "completion": "Here."}) + "\n")
    assert status() == "run"
    recipe.write_text(recipe.read_text().replace(str(data), "nowhere.jsonl"))
    with pytest.raises(ConfigError, match="nowhere"):
        status()
