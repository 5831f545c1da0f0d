"""`tiltyard compare`: paired differences of two runs, their settings, and what it refuses."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from tiltyard import cli
from tiltyard.evaluation import EvaluatedResponse
from tiltyard.evaluation.comparison import compare, read_evaluated
from tiltyard.stats.paired import paired_difference


def made(prompts: int, gold, name: str) -> list[EvaluatedResponse]:
    return [
        EvaluatedResponse(f"p{i}", f"question {i}", f"{name} {i}", 5 + i % 3, gold=float(gold[i]), prompt_key=f"k{i}")
        for i in range(prompts)
    ]


def run(root: Path, name: str, models: dict, **settings) -> Path:
    stage = root / name / "evaluate"
    stage.mkdir(parents=True)
    config = {"run": name, "stage": "evaluate", "kind": "evaluate", "settings": {"reward": "", "ref": "", **settings}}
    (stage / "config.json").write_text(json.dumps(config))
    lines = [json.dumps({"model": key, **asdict(r)}) + "\n" for key, of in models.items() for r in of]
    (stage / "answers.jsonl").write_text("".join(lines))
    summary = {"models": {key: {"baseline": next(iter(models))} for key in models}}
    (stage / "summary.json").write_text(json.dumps(summary))
    return root / name


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.normal(size=40)
    golds = {"a": base + rng.normal(0.5, 0.3, 40), "b": base + rng.normal(0.2, 0.3, 40)}
    for name, gold in golds.items():
        run(tmp_path, name, {"sft": made(40, base, "sft"), "ppo": made(40, gold, name)}, seed=0, lr=len(name))
    return tmp_path, golds


def test_the_difference_is_paired_and_the_second_less_the_first(runs, capsys):
    root, golds = runs
    found = compare(read_evaluated(f"{root}/a"), read_evaluated(f"{root}/b"))
    gold = next(row for row in found["rows"] if row["name"] == "gold")
    expected = paired_difference(golds["b"], golds["a"], range(40))
    assert (gold["difference"], gold["low"], gold["mde"]) == pytest.approx((expected.value, expected.low, expected.mde))
    assert gold["q"] >= gold["p"] == expected.p
    assert gold["second"] - gold["first"] == pytest.approx(gold["difference"])
    wins = golds["b"] > golds["a"]
    assert (found["wins"]["wins"], found["wins"]["by"]) == (wins.sum(), "gold")
    assert found["settings"] == []
    assert cli.main(["compare", f"{root}/a", f"{root}/b:ppo"]) == 0
    output = capsys.readouterr().out
    assert "40 prompts, paired" in output
    assert "all settings are the same" in output
    assert cli.main(["compare", f"{root}/a", f"{root}/b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 40


def test_a_model_with_itself_has_no_difference_and_no_smallest_one(runs):
    root, _ = runs
    found = compare(read_evaluated(f"{root}/a:ppo"), read_evaluated(f"{root}/a:ppo"))
    assert all((row["difference"], row["p"], row["mde"]) == (0, 1, None) for row in found["rows"])
    assert found["wins"]["win_rate"] == 0.5
    assert found["wins"]["ties"] == 40


def test_settings_that_differ_and_rewards_that_cannot_be_compared(runs, capsys):
    root, golds = runs
    run(root, "c", {"sft": made(40, golds["a"], "s"), "ppo": made(40, golds["b"], "c")}, seed=1, reward="other")
    assert cli.main(["compare", f"{root}/a", f"{root}/c"]) == 0
    output = capsys.readouterr().out
    assert "evaluate.seed: 0 | 1" in output
    assert "evaluate.lr: 1 | (none)" in output
    assert "scores are not comparable" in output


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ("others", "40 prompts and 20 prompts, none in common"),
        ("nothing", "there is no such run"),
        ("empty", "no finished evaluation"),
        ("a:pop", "no model 'pop'"),
        ("three", "several models: name one"),
        ("broken", "answers.jsonl:1"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_sentence(runs, capsys, second, sentence):
    root, golds = runs
    elsewhere = [replace(r, prompt_key=f"other {r.prompt_key}") for r in made(20, golds["a"], "few")]
    run(root, "others", {"ppo": elsewhere})
    (root / "empty").mkdir()
    run(
        root,
        "three",
        {"sft": made(40, golds["a"], "x"), "p": made(40, golds["a"], "y"), "q": made(40, golds["a"], "z")},
    )
    (run(root, "broken", {"ppo": []}) / "evaluate" / "answers.jsonl").write_text('{"model": "ppo", "text"\n')
    assert cli.main(["compare", f"{root}/a", f"{root}/{second}"]) == 2
    assert sentence in capsys.readouterr().err


def test_of_other_prompts_those_in_common_are_compared(runs, capsys):
    root, golds = runs
    run(root, "few", {"ppo": made(20, golds["b"], "few")})
    found = compare(read_evaluated(f"{root}/a"), read_evaluated(f"{root}/few"))
    gold = next(row for row in found["rows"] if row["name"] == "gold")
    assert gold["difference"] == pytest.approx(float(np.mean(golds["b"][:20] - golds["a"][:20])))
    assert found["prompts"] == 20
    assert cli.main(["compare", f"{root}/a", f"{root}/few"]) == 0
    assert "only the 20 in common are compared; 20 of ppo and 0 of ppo are left out" in " ".join(
        capsys.readouterr().out.split()
    )


def stage(root: Path, name: str, kind: str, **settings) -> None:
    (root / name).mkdir(parents=True)
    config = {"run": root.name, "stage": name, "kind": kind, "settings": settings}
    (root / name / "config.json").write_text(json.dumps(config))
    (root / name / "metrics.jsonl").write_text("")


def test_two_models_of_one_run_are_compared_by_the_stages_that_made_them(tmp_path, capsys):
    """Not by those of the whole run, which are the same."""
    base, better = np.zeros(10), np.linspace(0.5, 1, 10)
    models = {"start": made(10, base, "s"), "dpo": made(10, base, "d"), "ppo": made(10, better, "p")}
    root = run(tmp_path, "one", models)
    config = json.loads((root / "evaluate/config.json").read_text())
    config["settings"]["models"] = {"start": "maker/model", "dpo": "dpo", "ppo": "ppo/model"}
    (root / "evaluate/config.json").write_text(json.dumps(config))
    stage(root, "dpo", "dpo", lr=1e-6, seed=0, label_smoothing=0.1)
    stage(root, "ppo", "ppo", lr=1e-5, seed=0, clip=0.2, gamma=1)
    found = compare(read_evaluated(f"{root}:dpo"), read_evaluated(f"{root}:ppo"))
    assert found["settings"] == [["dpo|ppo", "(kind of stage)", "dpo", "ppo"], ["dpo|ppo", "lr", 1e-6, 1e-5]]
    assert cli.main(["compare", f"{root}:dpo", f"{root}:ppo"]) == 0
    output = capsys.readouterr().out
    assert "dpo|ppo.lr: 1e-06 | 1e-05" in output
    assert "dpo|ppo.clip: (none) | 0.2" in output
    assert cli.main(["compare", f"{root}:start", f"{root}:ppo"]) == 0
    output = capsys.readouterr().out
    assert "how start was made cannot be compared" in output
    assert "all settings are the same" not in output
    assert max(map(len, output.splitlines())) <= 80
