"""How evaluation names the models of its table."""

from __future__ import annotations

import pytest

from tiltyard.errors import ConfigError
from tiltyard.stages.model_names import named_models


def test_names_are_stages_or_given() -> None:
    assert named_models(["sft", "runs/demo/ppo/model", "owner/big"]) == {
        "sft": "sft",
        "ppo": "runs/demo/ppo/model",
        "big": "owner/big",
    }
    assert named_models({"base": "pretrain"}) == {"base": "pretrain"}


def test_two_of_one_name_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"both be called 'ppo'[\s\S]*name them: models="):
        named_models(["runs/a/ppo", "runs/b/ppo"])
