"""`order: file`: rows are taken as they stand, by every source; `shuffle` is another order each epoch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tiltyard.methods import METHODS
from tiltyard.records import records_of
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.stages.settings import method_settings
from tiltyard.training.algorithm import Models
from tiltyard.training.rounds import Rounds
from tiltyard.training.self_play import SelfPlay
from tiltyard.training.source import EpochShuffle, Offline, Online

from . import tiny

SAMPLING = SampleSettings(max_tokens=3)


def score(prompt: Any, response: Any) -> float:
    return float(len(response.ids))


def ids_of(source: Any, steps: int = 5) -> list[str]:
    models = Models(policy=tiny.policy(), ref=tiny.frozen())
    return [g.prompt.id for step in range(steps) for g in source(models, step).groups]


def sources(order: Any) -> dict[str, Any]:
    rows = tiny.demonstrations(7)
    prompts, scorer = [g.prompt for g in rows], FunctionScorer(score)
    return {
        "offline": Offline(rows, 3, order=order),
        "by tokens": Offline(rows, 3, tokens_per_step=30, order=order),
        "self play": SelfPlay(rows, NativeSampler(), 3, 2, SAMPLING, order=order),
        "online": Online(prompts, NativeSampler(), scorer, 3, 2, SAMPLING, order=order),
    }


@pytest.mark.parametrize("name", ["offline", "by tokens", "self play", "online"])
def test_the_file_is_gone_through_as_it_stands(name: str) -> None:
    found = ids_of(sources("file")[name])
    assert found == [str(i % 7) for i in range(len(found))]
    assert len(found) > 7
    shuffled = ids_of(sources("shuffle")[name])
    assert shuffled[:7] != found[:7]
    assert sorted(shuffled[:7]) == sorted(found[:7])


def test_rounds_take_their_prompts_as_they_stand() -> None:
    prompts = [g.prompt for g in tiny.demonstrations(7)]
    rounds = Rounds(prompts, NativeSampler(), FunctionScorer(score), 3, 2, 2, 2, SAMPLING, order="file")
    ids_of(rounds, 1)
    assert [g.prompt.id for g in rounds.held[0]] == ["0", "1", "2"]
    ids_of(rounds, 3)
    assert [g.prompt.id for g in rounds.held[1]] == ["3", "4", "5"]


def test_every_method_that_reads_data_has_the_setting() -> None:
    for name, method in METHODS.items():
        records = records_of(method_settings(method))
        readers = [key for key in ("data", "prompts") if key in records]
        assert readers, name
        assert all("order" in records[key].model_fields for key in readers), name
    assert "order" in inspect.signature(EpochShuffle).parameters
