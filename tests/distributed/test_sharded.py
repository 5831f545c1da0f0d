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
from tests.distributed.sharded_runs import NAMES
from tests.training import tiny

from tiltyard.distributed.sharded import Sharded, Trunk, check_units, sharing
from tiltyard.distributed.strategy import Replicated
from tiltyard.errors import ConfigError
from tiltyard.methods import sft
from tiltyard.models.heads import value_head
from tiltyard.training.algorithm import Models
from tiltyard.training.fit import chosen_strategy, fit

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launch(folder: Path, *before: str) -> Path:
    folder.mkdir()
    command = [sys.executable, *before, "-m", "tests.distributed.sharded_runs", str(folder)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sharded")
    return launch(folder / "one"), launch(folder / "two", *TORCHRUN)


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
    bound = 1e-5 if name == "single" else 1e-9
    tiny.assert_same(ours, theirs, bound)
    trained, expected = (load_file(folder / f"{name}.safetensors") for folder in folders[::-1])
    tiny.assert_same(trained, expected, bound)


def test_one_process_has_all_parameters() -> None:
    assert isinstance(chosen_strategy(tiny.run(steps=1, shard=True)), Replicated)


def test_an_optimiser_made_before_is_refused() -> None:
    policy = tiny.policy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    algorithm = sft(tiny.Given([tiny.demonstrations(3)]))
    with pytest.raises(ConfigError, match="before the parameters were spread"):
        fit(algorithm, Models(policy=policy), tiny.run(steps=1), optimizer, strategy=Sharded())


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
