"""docs/adding-a-method.md, followed literally from an empty folder; and what is wrong with a file of one's own."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.reference.float64 import exact_norms

from tiltyard import cli
from tiltyard.batch.batch import Batch
from tiltyard.errors import ConfigError
from tiltyard.methods import METHODS, load_method, sft
from tiltyard.pipeline import run_recipe
from tiltyard.training.algorithm import Models
from tiltyard.training.forward import Forward
from tiltyard.training.source import Offline
from training import tiny as training

PAGE = Path(__file__).resolve().parents[2] / "docs/adding-a-method.md"
SHORT = (
    "pretrain.steps=6", "pretrain.limit=60", "sft.steps=4", "sft.limit=40", "focal.steps=4", "focal.limit=40",
    "evaluate.limit=4", "defaults.device=cpu", "defaults.save_every=2",
)  # fmt: skip


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page says to write, in a folder without anything else."""
    monkeypatch.chdir(tmp_path)
    for text in re.findall(
        r"^```(?:python|yaml)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        if named := re.match(r"# (\w+\.(?:py|yaml))\n", text):
            (tmp_path / named[1]).write_text(text, encoding="utf-8")
    return tmp_path


def commands() -> Iterator[list[str]]:
    for text in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        yield from (shlex.split(line)[1:] for line in text.splitlines())


def go(*overrides: str) -> dict[str, Any]:
    outcome = run_recipe("focal.yaml", [*SHORT, *overrides], console=Console(file=io.StringIO()))
    return {name: stage["status"] for name, stage in outcome["stages"].items()}


@pytest.mark.slow
def test_the_page_is_followed(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, show, train = commands()
    assert cli.main([*run, *SHORT]) == 0
    assert {"model", "done.json", "metrics.jsonl"} < {p.name for p in (empty / "runs/focal/focal").iterdir()}
    assert cli.main(show) == 0
    assert "Maximum likelihood with hard tokens weighted up." in capsys.readouterr().out
    assert cli.main([*train, "steps=2", "limit=20", "device=cpu"]) == 0
    assert (empty / "runs/plain/focal_sft/model/model.safetensors").exists()
    # the file is part of the fingerprint: a change runs the stage and what depends on it again, nothing else
    assert set(go().values()) == {"skip"}
    file = empty / "my_methods.py"
    file.write_text(file.read_text() + "\n# changed\n")
    assert go() == {"world": "skip", "pretrain": "skip", "sft": "skip", "focal": "run", "evaluate": "run"}
    assert "focal_sft" not in METHODS


def algorithm(gamma: float = 1.0, count: int = 6) -> Any:
    method, _ = load_method("my_methods.py:focal_sft")
    return method.build(Offline(training.demonstrations(count), 3), gamma=gamma)


@pytest.mark.usefixtures("empty")
def test_its_gradient_is_that_of_finite_differences() -> None:
    """Of -log pi with the weight held constant, in float64 along a random direction."""
    with exact_norms():
        _check_gradient()


def _check_gradient() -> None:
    models, built = Models(policy=training.policy(5)), algorithm()
    batch = Batch.of(training.demonstrations(4), range(4), 4)
    parameters = models["policy"].parameters()
    weight_R = (1 - models["policy"].logp_R(batch.forest)[0].detach().exp()) ** 1.0

    def loss() -> torch.Tensor:
        return -(weight_R * models["policy"].logp_R(batch.forest)[0]).mean()

    per_item, metrics = built.loss(Forward(models, batch, 1.0), batch)
    gradient = torch.autograd.grad(built.reduce.sum(per_item, batch) / built.reduce.count("R", batch), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    ends = []
    with torch.no_grad():
        for size in (1e-5, -2e-5):
            for p, d in zip(parameters, direction, strict=True):
                p += size * d
            ends.append(float(loss()))
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)
    assert set(metrics) == {"p"}


@pytest.mark.usefixtures("empty")
def test_micro_batches_change_nothing_and_gamma_zero_is_sft() -> None:
    ends = []
    for budget in (16, 4096):
        models = Models(policy=training.policy(3))
        training.train(algorithm(), models, steps=4, tokens_per_microbatch=budget)
        ends.append(training.parameters(models["policy"]))
    training.assert_same(*ends)
    plain, focal = Models(policy=training.policy(3)), Models(policy=training.policy(3))
    training.train(sft(Offline(training.demonstrations(6), 3)), plain, steps=4)
    training.train(algorithm(gamma=0.0), focal, steps=4)
    training.assert_same(training.parameters(plain["policy"]), training.parameters(focal["policy"]), 1e-12)


def test_it_resumes_to_the_bit(empty: Path) -> None:
    whole, cut = Models(policy=training.policy(3)), Models(policy=training.policy(3))
    training.train(algorithm(), whole, steps=6)
    training.train(algorithm(), cut, steps=4, schedule="constant", folder=empty / "run", save_every=2)
    again = Models(policy=training.policy(8))
    training.train(algorithm(), again, steps=6, folder=empty / "run", save_every=2)
    training.assert_same(training.parameters(whole["policy"]), training.parameters(again["policy"]), 0)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("my_method.py:focal_sft", ["there is no file my_method.py", "did you mean 'my_methods.py'?"]),
        ("my_methods.py:focal", ["there is no method 'focal' in my_methods.py", "focal_sft"]),
        ("my_methods.py:Focal", ["'Focal' of my_methods.py is no method", "decorate the function"]),
        ("broken.py:anything", ["the code of broken.py fails", "broken.py:2", "ModuleNotFoundError"]),
        ("slip.py:anything", ["slip.py:1", "SyntaxError"]),
    ],
)
def test_what_is_wrong_with_a_file_is_named(empty: Path, spec: str, said: list[str]) -> None:
    (empty / "broken.py").write_text("import os\nimport nowhere_to_be_found\n")
    (empty / "slip.py").write_text("def method(:\n")
    with pytest.raises(ConfigError) as error:
        load_method(spec)
    for text in said:
        assert text in str(error.value)
    assert cli.main(["train", spec, "model=x", "data=y"]) == 2
