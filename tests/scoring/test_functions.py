"""Reward functions: what they may be, and that every way to fail names the function and the row."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.errors import ConfigError, ScoringError, TiltyardError
from tiltyard.scoring import FunctionScorer
from tiltyard.scoring.functions import ALWAYS_NONE
from tiltyard.types import Group, Prompt, Response

GROUPS = [
    Group(Prompt(text="a", id=f"p{i}"), tuple(Response(text=t) for t in texts), origin=f"rows.jsonl:{i + 1}")
    for i, texts in enumerate((("one", "three"), ("two",), (), ("four", "five", "seven")))
]
LENGTHS = [tuple(float(len(r.text)) for r in g.responses) for g in GROUPS]


def length(prompt: Prompt, response: Response) -> Any:
    return len(response.text)


class Lengths:
    """A callable object."""

    def __call__(self, prompt: Prompt, response: Response) -> int:
        return len(response.text)


class AsyncLengths:
    async def __call__(self, prompt: Prompt, response: Response) -> int:
        return len(response.text)


async def async_length(prompt: Prompt, response: Response) -> int:
    await asyncio.sleep(0)
    return len(response.text)


async def async_lengths(group: Group) -> list[int]:
    return [len(r.text) for r in group.responses]


def scaled(scale: float, prompt: Prompt, response: Response) -> float:
    return scale * len(response.text)


FINE: dict[str, Any] = {
    "plain": length,
    "float": lambda prompt, response: float(len(response.text)),
    "numpy": lambda prompt, response: np.float32(len(response.text)),
    "tensor": lambda prompt, response: torch.tensor(len(response.text)),
    "object": Lengths(),
    "partial": functools.partial(scaled, 1.0),
    "default": lambda prompt, response, scale=1.0: scale * len(response.text),
    "async": async_length,
    "async_object": AsyncLengths(),
    "group": lambda group: [len(r.text) for r in group.responses],
    "group_tuple": lambda group: tuple(len(r.text) for r in group.responses),
    "group_array": lambda group: np.array([len(r.text) for r in group.responses]),
    "group_tensor": lambda group: torch.tensor([len(r.text) for r in group.responses]),
    "group_generator": lambda group: (len(r.text) for r in group.responses),
    "async_group": async_lengths,
}


@pytest.mark.parametrize("limit", [None, 5.0])
@pytest.mark.parametrize("name", FINE)
def test_what_a_function_may_be(name: str, limit: float | None) -> None:
    scored = FunctionScorer(FINE[name], name, time_limit=limit).score(GROUPS)
    assert [g.scores for g in scored] == LENGTHS


class OfRow:
    """A callable object that takes the row."""

    def __call__(self, prompt: Prompt, response: Response, row: dict[str, Any]) -> float:
        return float(response.text == row["answer"])


async def async_of_row(prompt: Prompt, response: Response, *, row: dict[str, Any]) -> float:
    return float(response.text == row["answer"])


@pytest.mark.parametrize(
    "function",
    [OfRow(), async_of_row, lambda prompt, response, row: response.text == row["answer"]],
    ids=["object", "async_keyword", "plain"],
)
def test_a_function_may_take_the_row(function: Any) -> None:
    group = Group(Prompt(text="?", meta={"answer": "42"}), (Response(text="42"), Response(text="43")))
    assert FunctionScorer(function).score([group])[0].scores == (1.0, 0.0)


def test_the_row_of_a_function_is_its_own_copy() -> None:
    def spoils(prompt: Prompt, response: Response, row: dict[str, Any]) -> int:
        row["answer"] = len(row)
        return row.pop("answer")

    group = Group(Prompt(text="?", meta={"answer": "42"}), (Response(text="a"), Response(text="b")))
    scored = FunctionScorer(spoils).score([group])[0]
    assert scored.scores == (1.0, 1.0)
    assert scored.prompt.meta == {"answer": "42"}


def test_a_third_parameter_of_another_name_keeps_its_default() -> None:
    group = Group(Prompt(text="?", meta={"answer": "42"}), (Response(text="a"),))
    assert FunctionScorer(lambda prompt, response, scale=2.0: scale).score([group])[0].scores == (2.0,)


def test_an_annotation_says_that_it_takes_a_group() -> None:
    def lengths(rows: Group) -> list[int]:
        return [len(r.text) for r in rows.responses]

    assert [g.scores for g in FunctionScorer(lengths).score(GROUPS)] == LENGTHS


def test_true_and_false_are_one_and_nought() -> None:
    (group,) = FunctionScorer(lambda prompt, response: response.text == "one").score(GROUPS[:1])
    assert group.scores == (1.0, 0.0)


# ------------------------------------------------------------------------------------------------------------- failures


def _raises(prompt: Prompt, response: Response) -> float:
    if response.text == "two":
        raise KeyError("no such fact")
    return 0.0


async def _async_raises(prompt: Prompt, response: Response) -> float:
    return _raises(prompt, response)


def _gives(value: Any) -> Any:
    return lambda prompt, response: value if response.text == "two" else 0.0


def _gives_group(value: Any) -> Any:
    return lambda group: value if group.prompt.id == "p1" else [0.0] * len(group.responses)


def _hangs(prompt: Prompt, response: Response) -> float:
    if response.text == "two":
        threading.Event().wait(30)
    return 0.0


async def _async_hangs(prompt: Prompt, response: Response) -> float:
    await asyncio.sleep(30 if response.text == "two" else 0)
    return 0.0


async def _blocks_the_loop(prompt: Prompt, response: Response) -> float:
    if response.text == "two":
        time.sleep(4)
    return 0.0


async def _swallows_its_cancellation(prompt: Prompt, response: Response) -> float:
    if response.text != "two":
        return 0.0
    while True:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(4)
            raise


async def _coroutine() -> float:
    return 1.0


def _exits(prompt: Prompt, response: Response) -> float:
    raise SystemExit(3)


FAILING: dict[str, tuple[Any, str]] = {
    "raises": (_raises, r"raised KeyError"),
    "async_raises": (_async_raises, r"raised KeyError"),
    "nan": (_gives(math.nan), "nan"),
    "infinite": (_gives(-math.inf), "-inf"),
    "text": (_gives("1.0"), "'1.0'"),
    "list": (_gives([1.0, 2.0]), "1.0, 2.0"),
    "complex": (_gives(1j), "1j"),
    "two_numbers": (_gives(torch.tensor([1.0, 2.0])), "tensor"),
    "coroutine": (lambda p, r: _coroutine() if r.text == "two" else 0.0, "coroutine"),
    "too_many": (_gives_group([1.0, 2.0]), "2 values"),
    "too_few": (_gives_group([]), "0 values"),
    "one_number": (_gives_group(1.0), "1.0"),
    "no_dimension": (_gives_group(torch.tensor(1.0)), "tensor"),
    "group_nan": (_gives_group([math.nan]), "nan"),
    "group_text": (_gives_group("1"), "'1'"),
    "group_mapping": (_gives_group({"two": 1.0}), "two"),
    "hangs": (_hangs, "did not return within 0.2 seconds"),
    "async_hangs": (_async_hangs, "did not return within 0.2 seconds"),
    "blocks_the_loop": (_blocks_the_loop, "did not return within 0.2 seconds"),
    "swallows_its_cancellation": (_swallows_its_cancellation, "did not return within 0.2 seconds"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_failure_names_the_function_and_the_row(name: str) -> None:
    function, message = FAILING[name]
    with pytest.raises(ScoringError) as caught:
        FunctionScorer(function, "my_reward", time_limit=0.2, max_concurrent=1).score(GROUPS)
    error = caught.value
    assert "my_reward" in error.what
    assert "rows.jsonl:2" in error.where
    assert "prompt p1" in error.where
    assert message in str(error)
    assert error.fix
    if not name.startswith("group") and name not in ("too_many", "too_few", "one_number", "no_dimension"):
        assert "response 1" in error.where


def test_an_exception_names_its_line() -> None:
    with pytest.raises(ScoringError, match=r"test_functions\.py:\d+") as caught:
        FunctionScorer(_raises).score(GROUPS)
    assert isinstance(caught.value.__cause__, KeyError)


def test_exit_is_an_error_of_the_function() -> None:
    with pytest.raises(ScoringError, match="raised SystemExit"):
        FunctionScorer(_exits).score(GROUPS)


def test_an_error_of_the_toolkit_stays_what_it_is() -> None:
    def check(prompt: Prompt, response: Response) -> float:
        raise ConfigError("not this prompt", where="mine")

    with pytest.raises(ConfigError, match="mine: not this prompt"):
        FunctionScorer(check).score(GROUPS)


@pytest.mark.parametrize("function", [lambda: 0.0, lambda a: 0.0, lambda a, b, c: 0.0, lambda group, more: [], 3])
def test_other_parameters_are_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"other parameters|must be callable"):
        FunctionScorer(function)


@pytest.mark.parametrize("setting", [{"time_limit": 0}, {"time_limit": -1.0}, {"max_concurrent": 0}])
def test_limits_have_a_range(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        FunctionScorer(length, **setting)


# ---------------------------------------------------------------------------------------------------------- concurrency


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_async_calls_run_concurrently_and_no_more_than_allowed(at_once: int) -> None:
    running, most = [0], [0]

    async def count(prompt: Prompt, response: Response) -> float:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.005)
        running[0] -= 1
        return 0.0

    FunctionScorer(count, max_concurrent=at_once).score(GROUPS)
    assert most[0] == min(at_once, 6)


def test_it_works_inside_a_running_event_loop() -> None:
    """As in a notebook."""

    async def notebook() -> list[Group]:
        return FunctionScorer(async_length).score(GROUPS)

    assert [g.scores for g in asyncio.run(notebook())] == LENGTHS


def test_after_a_failure_no_further_call_begins() -> None:
    begun: list[str] = []

    def record(prompt: Prompt, response: Response) -> float:
        begun.append(response.text)
        time.sleep(0.05)
        raise ValueError("no")

    with pytest.raises(ScoringError):
        FunctionScorer(record).score(GROUPS)
    time.sleep(0.15)
    assert len(begun) <= 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=3), st.booleans()), min_size=1))
def test_a_score_is_a_number_of_the_function_or_an_error(values: list[Any]) -> None:
    """Whatever is returned: either every value is finite and comes back as it is, or the first odd one is named."""
    group = Group(Prompt(text="a"), tuple(Response(text=str(i)) for i in range(len(values))), origin="row")
    odd = [i for i, v in enumerate(values) if isinstance(v, str) or (v is not None and not _finite(v))]
    scorer = FunctionScorer(lambda prompt, response: values[int(response.text)], "any")
    if not odd:
        given = [v for v in values if v is not None]  # None abstains: the response is left out
        if len(values) >= ALWAYS_NONE and not given:
            return
        scored = scorer.score([group])
        assert [x for g in scored for x in g.scores or ()] == [float(v) for v in given]
        assert [r.text for g in scored for r in g.responses] == [str(i) for i, v in enumerate(values) if v is not None]
        return
    with pytest.raises(TiltyardError) as caught:
        scorer.score([group])
    assert caught.value.where.endswith(f"response {odd[0] + 1}")


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
