"""Python functions as scorers: of one response or of a whole group, plain or async, with a time limit."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiltyard.errors import ConfigError, ScoringError, TiltyardError
from tiltyard.scoring.base import Cost, Scale, as_float, without_abstentions
from tiltyard.scoring.calls import Outcome, run_calls
from tiltyard.types import Group, Prompt

TIME_LIMIT = 60.0  # seconds a call may take
ALWAYS_NONE = 256  # calls that give None, and none before that gives anything else


@dataclass(frozen=True)
class _Call:
    """One call: of a response of a group, or of the whole group (`response` is None)."""

    group: Group
    response: int | None

    @property
    def where(self) -> str:
        """The row in words: where the group came from, its prompt, the response."""
        names = [self.group.origin, f"prompt {self.group.prompt.id}" if self.group.prompt.id else ""]
        names += [f"response {self.response + 1}"] if self.response is not None else []
        return ", ".join(name for name in names if name)


class FunctionScorer:
    """A Python function as a scorer, e.g. a length penalty, a parser, a verifier.

    The function takes `(prompt, response)` or `(prompt, response, row)` and returns a number, or takes the whole
    `Group` (its first parameter is named `group` or annotated `Group`) and returns one number a response. `row` are the
    fields of the prompt's row, as a dict of the function's own (`prompt.meta`). None in place of a number abstains: the
    response is left out and counted. It may be `async`: calls then run
    concurrently. A function of a whole group may return scores that compare within the group only; say so with
    `comparable=False`.

    An optional attribute `check_prompt(prompt)` of the function is called for every prompt before the first step, and
    raises an error for a prompt that the function cannot score. An optional number `highest` of the function says that
    no score is above it: `function.highest = 1.0`.

    Args:
        function: see above.
        name: of its metric, `reward/NAME`; the function's own by default.
        time_limit: seconds a call may take; None calls it in this thread, without a limit.
        max_concurrent: calls of an async function that run at the same time.
        comparable: whether scores of different prompts may be compared.

    Raises:
        ConfigError: the function takes other parameters, or a limit is out of range.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str = "",
        *,
        time_limit: float | None = TIME_LIMIT,
        max_concurrent: int = 16,
        comparable: bool = True,
    ):
        self.function = function
        self.name = name or _name_of(function)
        self.scale = Scale(comparable=comparable)
        self.time_limit, self.max_concurrent = time_limit, max_concurrent
        for key, value in (("time_limit", time_limit), ("max_concurrent", max_concurrent)):
            if value is not None and not value > 0:
                raise ConfigError("setting out of range", where=key, got=value, expected="above 0")
        self.of_group = takes_group(function)
        self.of_row = not self.of_group and _takes_row(function)
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(type(function), "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        _check_parameters(function, self.name, self.of_group, self.of_row)
        self._cost = Cost()
        self._abstained: float = 0.0  # calls so far, while it has abstained from all of them

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the function's values as scores.

        Raises:
            ScoringError: the function raised, took longer than the limit, or gave something that is no finite number
                or not one number a response; the message names the function, the row and the response.
        """
        calls = [call for group in groups for call in self._calls(group)]
        values: list[Any] = [None] * len(calls)
        outcomes = run_calls(
            [functools.partial(self._invoke, call) for call in calls],
            is_async=self.is_async,
            time_limit=self.time_limit,
            max_concurrent=self.max_concurrent,
        )
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                values[outcome.call] = self._value(calls[outcome.call], outcome)
        self._cost += Cost(calls=len(calls))
        remaining = iter(zip(calls, values, strict=True))
        scored = [without_abstentions(group, self._scores(group, remaining)) for group in groups]
        self._check_answers(calls, values)
        return [group for given, group in zip(groups, scored, strict=True) if group.responses or not given.responses]

    def take_cost(self) -> Cost:
        """Calls of the function since the last time."""
        cost, self._cost = self._cost, Cost()
        return cost

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Calls the function's `check_prompt`, if it has one, on every prompt."""
        check = getattr(self.function, "check_prompt", None)
        if check is not None:
            for prompt in prompts:
                check(prompt)

    @property
    def highest(self) -> float | None:
        """The highest score that there can be, if the function declares one."""
        found = getattr(self.function, "highest", None)
        return None if found is None else float(found)

    # ------------------------------------------------------------------------------------------------ calls

    def _calls(self, group: Group) -> list[_Call]:
        if self.of_group:
            return [_Call(group, None)] if group.responses else []
        return [_Call(group, k) for k in range(len(group.responses))]

    def _invoke(self, call: _Call) -> Any:
        if call.response is None:
            return self.function(call.group)
        prompt, response = call.group.prompt, call.group.responses[call.response]
        return (
            self.function(prompt, response, row=dict(prompt.meta)) if self.of_row else self.function(prompt, response)
        )

    def _value(self, call: _Call, outcome: Outcome) -> Any:
        """The value of a call.

        Raises:
            ScoringError: it raised, hung, or gave a coroutine.
        """
        error, value = outcome.error, outcome.value
        if outcome.timed_out:
            raise ScoringError(
                f"the reward function '{self.name}' did not return within {self.time_limit:g} seconds",
                where=call.where,
                expected="a value in time",
                fix="raise its time_limit, or mend the function for this row",
            )
        if isinstance(error, TiltyardError):
            where = f"{call.where}, {error.where}" if error.where else call.where
            raise type(error)(error.what, where=where, got=error.got, expected=error.expected, fix=error.fix) from error
        if error is not None:
            raise ScoringError(
                f"the reward function '{self.name}' raised {type(error).__name__}",
                where=call.where,
                got=f"{error}{_line_of(error)}",
                fix="mend the function, or leave this row out of the data",
            ) from error
        if inspect.iscoroutine(value):
            value.close()
            raise self._bad_value(call, "a coroutine", "a number; declare the function itself with `async def`")
        return value

    # ----------------------------------------------------------------------------------------------- values

    def _scores(self, group: Group, remaining: Iterator[tuple[_Call, Any]]) -> tuple[float | None, ...]:
        if not self.of_group:
            return tuple(self._number(*next(remaining)) for _ in group.responses)
        if not group.responses:
            return ()
        call, value = next(remaining)
        if value is None:
            return (None,) * len(group.responses)
        if isinstance(value, str | bytes | Mapping | set | frozenset) or not _is_iterable(value):
            raise self._bad_value(call, repr(value), f"a list of {len(group.responses)} numbers, one a response")
        values = list(value)
        if len(values) != len(group.responses):
            raise self._bad_value(call, f"{len(values)} values", f"{len(group.responses)} numbers, one a response")
        return tuple(self._number(_Call(group, k), value) for k, value in enumerate(values))

    def _check_answers(self, calls: Sequence[_Call], values: Sequence[Any]) -> None:
        """Raises a ScoringError if the function has never given anything: it was hardly meant to abstain for ever."""
        self._abstained = self._abstained + len(calls) if all(v is None for v in values) else -math.inf
        if self._abstained >= ALWAYS_NONE:
            raise ScoringError(
                f"the reward function '{self.name}' gave None for every one of its first {self._abstained:.0f} calls",
                where=calls[-1].where,
                got="None",
                expected="a number; None only where it abstains from a response",
                fix="does it lack a `return`?",
            )

    def _number(self, call: _Call, value: Any) -> float | None:
        if value is None:
            return None
        number = as_float(value)
        if not math.isfinite(number):
            raise self._bad_value(call, repr(value), "a finite number")
        return number

    def _bad_value(self, call: _Call, got: str, expected: str) -> ScoringError:
        text = call.group.responses[call.response].text if call.response is not None else ""
        return ScoringError(
            f"the reward function '{self.name}' gave no finite number"
            if call.response is not None or text
            else f"the reward function '{self.name}' gave no list of scores",
            where=call.where,
            got=got if len(got) <= 200 else got[:200] + "...",
            expected=expected,
            fix=f"mend the function for the response {text[:80]!r}" if text else "mend the function for this row",
        )


def takes_group(function: Callable[..., Any]) -> bool:
    """True if the function's first parameter is a whole group: named `group` or annotated `Group`."""
    parameters = _parameters(function)
    if not parameters:
        return False
    annotation = parameters[0].annotation
    named = annotation.rpartition(".")[2] if isinstance(annotation, str) else annotation
    return parameters[0].name == "group" or named is Group or named == "Group"


def _takes_row(function: Callable[..., Any]) -> bool:
    """True if the function has a parameter named `row` after prompt and response."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(p.name == "row" and p.kind in by_name for p in (_parameters(function) or [])[2:])


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """None for a function whose signature cannot be read (written in C)."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _check_parameters(function: Callable[..., Any], name: str, of_group: bool, of_row: bool) -> None:
    if not callable(function):
        raise ConfigError("a reward function must be callable", where=name, got=type(function).__name__)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*([None] if of_group else [None, None]), **({"row": None} if of_row else {}))
    except TypeError as error:
        raise ConfigError(
            f"the reward function '{name}' takes other parameters",
            where=name,
            got=str(signature),
            expected="(prompt, response) or (prompt, response, row), or (group) for a function of a whole group",
            fix="rename or add parameters; further ones need defaults",
        ) from error


def _is_iterable(value: Any) -> bool:
    """True if it can be iterated over; False for a tensor or array without dimensions."""
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "") or type(function).__name__
    return "function" if name == "<lambda>" else str(name)


def _line_of(error: BaseException) -> str:
    """` (rewards.py:12)`: the line of the innermost frame outside this file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
