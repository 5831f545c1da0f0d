"""`tiltyard gap`: its files and table, what it refuses, and the verb's arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation import test_along as follow

from models import tiny
from tiltyard import cli
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import save_model
from tiltyard.posterior import measure


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, another one, a reward function and prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    chat = tiny.chat()
    for name, seed in (("model", 0), ("other", 1)):
        save_model(LanguageModel(tiny.causal("llama", seed, vocab_size=300), chat), tmp_path / name)
    rows = [{"prompt": f"what is {word}?"} for word in ("this", "that", "it", "all")]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("rewards.py").write_text("def eighths(prompt, response):\n    return sum(response.ids) % 8 / 8\n")
    return tmp_path


def gap(*words: str, beta: str = "1.0", models: tuple[str, ...] = ("other",)) -> int:
    common = ["--prior", "model", "--reward", "rewards.py:eighths", "--beta", beta]
    sizes = ["max_tokens=4", "samples_per_prompt=32", "device=cpu", "name=g", *words]
    return cli.main(["gap", *models, *common, "prompts.jsonl", *sizes])


def numbers() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs/g/gap/gap.json").read_text())
    return found


def test_one_command_measures_models(there: Path, capsys: pytest.CaptureFixture) -> None:
    assert gap() == 0
    output = capsys.readouterr().out
    found = numbers()
    assert list(found["models"]) == ["prior", "other"]
    for name, one in found["models"].items():
        terms = {key: value["value"] for key, value in one["estimates"].items()}
        # the identity holds in the printed means: all terms have the same samples
        identity = terms["kl"] - terms["factor"] + terms["log_z"]
        assert terms["gap"] == pytest.approx(identity, abs=1e-9), name
        assert one["reward"]["value"] == pytest.approx(terms["factor"])
        assert not one["refused"]
    assert found["models"]["prior"]["estimates"]["kl"]["value"] == 0
    assert found["models"]["other"]["estimates"]["kl"]["value"] > 0
    assert "a response cut at the limit is an outcome" in found["conventions"]
    assert found["best_of_n"][0]["kl"] == pytest.approx(0, abs=1e-9)
    assert {p["at"] for p in found["optimum"]} >= {1.0, 4.0}
    assert "sampling 128 responses" in output
    assert "gap: KL" in output
    assert Path("runs/g/gap/frontier.png").read_bytes()[:4] == b"\x89PNG"
    rows = [json.loads(line) for line in Path("runs/g/gap/responses.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 4 * 32
    assert {"model", "reward", "log_model", "log_prior"} <= set(rows[0])
    assert "gap_prior" not in output


def test_numbers_that_the_weights_do_not_carry_are_refused(there: Path, capsys: pytest.CaptureFixture) -> None:
    assert gap(beta="0.01") == 0
    output = capsys.readouterr().out
    assert "refused" in output
    assert "samples a prompt" in output or "no number of samples" in output
    for one in numbers()["models"].values():
        if one["refused"]:
            assert "gap" not in one["estimates"]
            assert {"kl", "factor", "entropy"} <= set(one["estimates"])
    assert any(one["refused"] for one in numbers()["models"].values())


def test_weights_of_two_values_have_no_k_hat(there: Path, capsys: pytest.CaptureFixture) -> None:
    """The prior's weights are exp(r / beta), two values here; those of the other model's mixture are many."""
    Path("rewards.py").write_text("def eighths(prompt, response):\n    return float(sum(response.ids) % 8 == 0)\n")
    assert gap() == 0
    output = capsys.readouterr().out
    prior, other = numbers()["models"].values()
    assert prior["support"]["k_hat"] is None
    assert other["support"]["k_hat"] is not None
    assert "k-hat -: the weights of prior take too few" in output


def test_the_upper_bound_of_a_bounded_reward(there: Path, capsys: pytest.CaptureFixture) -> None:
    assert gap("score_bound=0.875") == 0
    assert "exact samples of pi*, accepted from" in capsys.readouterr().out
    found = numbers()
    assert found["exact_samples"]["accepted"] > 0
    assert found["upper_log_z"] > found["models"]["prior"]["estimates"]["log_z"]["low"] - 0.1
    assert gap("score_bound=0.1", "seed=1") == 2
    assert "above its declared bound" in capsys.readouterr().err


def test_a_reward_may_declare_its_bound(there: Path, capsys: pytest.CaptureFixture) -> None:
    with Path("rewards.py").open("a") as file:
        file.write("\neighths.highest = 0.875\n")
    assert gap() == 0
    assert "no reward is above 0.875" in capsys.readouterr().out
    assert numbers()["upper_log_z"] is not None


@pytest.mark.parametrize(("blocks", "there_are"), [(1, 32), (3, 96), (5, 32)])
def test_an_interrupted_run_goes_on_where_it_stopped(
    blocks: int, there_are: int, there: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of one prompt, four of the prior and four of the model: those that are there are not sampled again."""
    monkeypatch.setattr(measure, "AT_ONCE", 32)
    assert gap() == 0
    files = [Path("runs/g/gap") / name for name in ("responses.jsonl", "prior_under_models.jsonl", "gap.json")]
    whole = [file.read_bytes() for file in files]
    Path("runs/g").rename("runs/whole")
    real, left, calls = measure.sample, blocks, []

    def stops(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > left:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(measure, "sample", stops)
    assert gap() != 0
    capsys.readouterr()
    calls.clear()
    left = 100
    assert gap() == 0
    assert len(calls) == 2 * 4 - blocks
    assert f"sampling 128 responses; {there_are} are there" in capsys.readouterr().out
    assert [file.read_bytes() for file in files] == whole


def test_gold_and_a_training_run_beside_the_gap(there: Path, capsys: pytest.CaptureFixture) -> None:
    with Path("rewards.py").open("a") as file:
        file.write("\ndef short(prompt, response):\n    return -len(response.text) / 8\n")
    folder = Path("trained")
    folder.mkdir()
    follow.stage(folder)
    assert gap("gold=rewards.py:short", "along=[trained]") == 0
    output = capsys.readouterr().out
    assert "best-of-N: gold = " in output
    assert "trained: gold = " in output
    assert "trained, first to last fifth of 10 steps" in output
    found = numbers()
    assert found["models"]["other"]["gold"]["value"] < 0
    assert found["overoptimisation"]["n"] == [1, 2, 4, 8, 16]
    assert found["along"][0]["name"] == "trained"
    for name in ("overoptimisation", "collapse"):
        assert Path(f"runs/g/gap/{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert gap("along=[other]", "seed=2") == 2
    assert "no responses are stored here" in capsys.readouterr().err


def test_what_the_verb_refuses(there: Path, capsys: pytest.CaptureFixture) -> None:
    common = ["--prior", "model", "--reward", "rewards.py:eighths", "--beta", "1"]
    assert cli.main(["gap", "prompts.jsonl", *common]) == 2
    assert "gap needs a model and prompts" in capsys.readouterr().err
    assert cli.main(["gap", "missing", "prompts.jsonl", *common]) == 2
    assert "there is no such model" in capsys.readouterr().err
    assert gap("temperatur=2") == 2
    assert "temperature" in capsys.readouterr().err
    assert gap(beta="0") == 2
    assert gap(models=("{}",)) == 2


def test_json_is_the_whole_result(there: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["gap", "other", "--prior", "model", "--reward", "rewards.py:eighths", "--beta", "1", "prompts.jsonl"]
    sizes = ["max_tokens=3", "samples_per_prompt=16", "name=j"]
    assert cli.main([*words, *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {"conventions", "models", "refusals", "optimum", "best_of_n"}
    assert cli.main([*words, *sizes, "cut=ended"]) == 2  # a model of random weights ends hardly any response
    assert "no response to a prompt ended" in capsys.readouterr().err


REWARD = "rewards.py:eighths"
SIZES = {"prompts": "prompts.jsonl", "reward": REWARD, "max_tokens": 4, "device": "cpu"}


def recipe(**sizes: Any) -> None:
    """Two stages `infer`, and `gap` with both of them."""
    best = {"method": "infer", "model": "model", "sampler": "best_of_n", "candidates": 4, "samples_per_prompt": 8}
    particles = {"method": "infer", "model": "model", "sampler": "smc", "particles": 16, "every": 1, "beta": 1}
    particles |= {"most": 512, "score_bound": 0.875, "samples_per_prompt": 4}
    last = {"models": ["other"], "prior": "model", "beta": 1, "samples_per_prompt": 16}
    last |= {"samplers": ["best", "particles"]}
    stages = {"best": best | SIZES, "particles": particles | SIZES, "gap": last | SIZES}
    for key, value in sizes.items():
        name, _, setting = key.partition("__")
        stages[name][setting] = value
    body = {"name": "s", "stages": [{name: one} for name, one in stages.items()]}
    Path("s.yaml").write_text(json.dumps(body))


def test_samplers_stand_beside_models(there: Path, capsys: pytest.CaptureFixture) -> None:
    """Stages `infer` report as `tiltyard sample --infer` does, and are points of the frontier."""
    recipe()
    assert cli.main(["run", "s.yaml"]) == 0
    output = capsys.readouterr().out
    assert "smc: 16 responses to 4 prompts" in output
    assert "particles: sampled without training, reward" in output
    assert "KL to prior at most" in output
    found = json.loads(Path("runs/s/gap/gap.json").read_text())["samplers"]
    assert list(found) == ["best", "particles"]
    assert (found["best"]["at_most"], found["particles"]["at_most"]) == (False, True)
    for name, one in found.items():
        body = json.loads(Path(f"runs/s/{name}/infer.json").read_text())
        assert one["reward"] == body["report"]["reward"]
        assert one["kl"] == body["report"]["kl_to_prior"]
        lines = Path(f"runs/s/{name}/responses.jsonl").read_text().splitlines()
        assert len(lines) == 1 + 4
    assert body["report"]["kl"] is not None
    recipe(gap__max_tokens=3)
    assert cli.main(["run", "s.yaml"]) == 2
    assert "of other prompts or lengths" in capsys.readouterr().err
    recipe(particles__sampler="smcc")
    assert cli.main(["run", "s.yaml"]) == 2
    assert "did you mean 'smc'" in capsys.readouterr().err


def test_models_along_training_are_measured(there: Path, capsys: pytest.CaptureFixture) -> None:
    """`models_every` keeps the policy of some steps; `along` says how far each is from pi*."""
    words = ["train", "rloo", "model=model", f"reward={REWARD}", "prompts=prompts.jsonl", "steps=3", "models_every=1"]
    words += ["prompts_per_step=2", "max_tokens=4", "lr=1e-2", "beta=1", "device=cpu", "name=t"]
    assert cli.main(words) == 0
    kept = sorted(p.name for p in Path("runs/t/rloo/models").iterdir())
    assert kept == ["step-00000001", "step-00000002", "step-00000003"]
    weights = [Path(f"runs/t/rloo/{name}/model.safetensors").read_bytes() for name in ("model", f"models/{kept[-1]}")]
    assert weights[0] == weights[1]
    assert gap("along=[runs/t/rloo]", models=("runs/t/rloo",)) == 0
    assert "rloo, models along training: step 1 KL to pi*" in capsys.readouterr().out
    found = numbers()
    assert found["kept"] == {"rloo": {str(k): f"rloo@{k}" for k in (1, 2, 3)}}
    one = found["models"]["rloo@3"]["estimates"]["kl"]["value"]
    assert one == pytest.approx(found["models"]["rloo"]["estimates"]["kl"]["value"], rel=0.5)
