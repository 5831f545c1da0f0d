"""Two processes that share the parameters (FSDP2) give the loss curve of one, for every method of the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.sharded_runs import NAMES, main, one
from tests.distributed.test_processes import BY_PROCESS
from tests.reference.float64 import exact_norms
from tests.training import tiny

from tiltyard.distributed.parts import TRUNK
from tiltyard.distributed.sharded import Sharded, Trunk, check_units, sharing
from tiltyard.distributed.strategy import Replicated
from tiltyard.errors import ConfigError
from tiltyard.methods import sft
from tiltyard.models.heads import value_head
from tiltyard.models.language import LanguageModel
from tiltyard.training.algorithm import Models
from tiltyard.training.fit import chosen_strategy, fit

ROOT = Path(__file__).parents[2]


def launch(folder: Path, count: int, *rest: str, ends: bool = True) -> Path:
    """Runs the cases by `count` processes; one is this process."""
    folder.mkdir(exist_ok=True)
    if count == 1:
        with exact_norms():
            one(folder, rest[0], *map(int, rest[1:])) if rest else main(folder)
        return folder
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "tests.distributed.sharded_runs", str(folder), *rest]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode == 0) == ends, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sharded")
    return launch(folder / "one", 1), launch(folder / "two", 2)


def curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads((folder / "curves.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one(folders: tuple[Path, Path], name: str) -> None:
    """Every metric of every step, and the trained parameters, which are whole again after the run."""
    ours, theirs = (curves(folder)[name] for folder in folders[::-1])
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for row in (*ours, *theirs) if name == "vbon" else ():
        row.pop("ref_sampled")  # each process samples for the prompts that are new to it
    for key in BY_PROCESS if "ahead" in name else ():
        for row in (*ours, *theirs):
            row.pop(key)
    bound = {"single": 1e-5, "half": 0.05}.get(name, 1e-9)
    tiny.assert_same(ours, theirs, bound)
    trained, expected = (load_file(folder / f"{name}.safetensors") for folder in folders[::-1])
    tiny.assert_same(trained, expected, bound)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_sampled_is_whole_in_every_process(folders: tuple[Path, Path], name: str) -> None:
    """References, reward and value models compute block by block; so does the policy where it does not sample."""
    roles = json.loads((folders[1] / "whole.json").read_text())[name]
    others = {"judged": ["policy"], "engine_adapter": ["policy", "ref"]}  # adapters are merged for an engine elsewhere
    assert set(roles["whole"]) == {*roles["sampled"], *others.get(name, [])}


@pytest.mark.slow
def test_a_model_is_called_in_passes_alone(folders: tuple[Path, Path]) -> None:
    for rank in range(2):
        found = (folders[1] / f"outside-{rank}.txt").read_text()
        assert "outside of a pass" in found
        assert "per_microbatch" in found


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """Three processes killed in the third step, two in the fifth, then one: it ends where one alone ends."""
    folder = tmp_path / "many"
    for count, killed in ((3, "3"), (2, "5")):
        launch(folder, count, "tied", "6", killed, ends=False)
    assert sorted(p.name for p in (folder / "checkpoints").glob("step-*"))[-1] == "step-00000004"
    launch(folder, 1, "tied", "6")
    alone = launch(tmp_path / "alone", 1, "tied", "6")
    curve, expected = (tiny_rows(path / "metrics.jsonl") for path in (folder, alone))
    assert [row["step"] for row in curve] == [1, 2, 3, 4, 5, 6]
    tiny.assert_same(curve, expected, 1e-9)
    tiny.assert_same(*(load_file(path / "trained.safetensors") for path in (folder, alone)), 1e-9)


def tiny_rows(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["renewed", "ahead"])
def test_a_killed_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    cut = launch(tmp_path / "cut", 2, name, "4", "3", ends=False)
    launch(cut, 2, name, "4")
    whole = launch(tmp_path / "whole", 2, name, "4")
    assert tiny_rows(cut / "metrics.jsonl") == tiny_rows(whole / "metrics.jsonl")
    tiny.assert_same(*(load_file(path / "trained.safetensors") for path in (cut, whole)), 0)


def test_one_process_has_all_parameters() -> None:
    assert isinstance(chosen_strategy(tiny.run(steps=1, shard=True)), Replicated)


def test_an_optimiser_made_before_is_refused() -> None:
    policy = tiny.policy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    algorithm = sft(tiny.Given([tiny.demonstrations(3)]))
    with pytest.raises(ConfigError, match="before the parameters were spread"):
        fit(algorithm, Models(policy=policy), tiny.run(steps=1), optimizer, strategy=Sharded())


def test_copies_of_weights_in_bfloat16_are_not_kept_of_a_model_that_is_spread() -> None:
    """They would add up to the whole model, which autocast keeps until a pass has ended."""
    policy = LanguageModel(tiny.policy().module.float(), tiny.CHAT, "bfloat16")
    with policy.autocast():
        assert torch.is_autocast_cache_enabled()
    policy.module.__dict__[TRUNK] = object()
    with policy.autocast():
        assert not torch.is_autocast_cache_enabled()


def test_models_that_share_parameters_are_one_trunk() -> None:
    policy = tiny.policy()
    value = value_head(policy)
    ref = tiny.frozen()
    together = sharing([policy.module, ref.module, value.module, policy.module])
    assert [set(map(id, part)) for part in together] == [{id(ref.module)}, {id(policy.module), id(value.module)}]


def test_what_cannot_be_spread_is_refused() -> None:
    policy = tiny.policy()
    layers = policy.module.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(ConfigError, match="two of its blocks are one parameter"):
        check_units(Trunk([policy.module]), list(layers))
    outside = tiny.policy()
    outside.module.lm_head.weight = outside.module.model.layers[0].mlp.down_proj.weight
    with pytest.raises(ConfigError, match="also used outside"):
        check_units(Trunk([outside.module]), list(outside.module.model.layers))
    mixed = tiny.policy()
    mixed.module.lm_head.float()
    with pytest.raises(ConfigError, match="several widths"):
        check_units(Trunk([mixed.module]), list(mixed.module.model.layers))
