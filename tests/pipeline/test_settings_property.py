"""Properties of all settings of all stages: numbers are finite, and each one changes the result or is of execution."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from tiltyard.config import parse_settings
from tiltyard.errors import ConfigError
from tiltyard.pipeline import state
from tiltyard.pipeline.recipe import Step
from tiltyard.records import ExecutionOnly, execution_keys
from tiltyard.stages.base import Stage, load_all

# what only says how to execute; a new name belongs here or changes the result, which its record declares
EXACT = {
    "trust_remote_code",
    "save_every",
    "eval_every",
    "sample_every",
    "log_to",
    "show_kl",
    "models_every",
    # of a judge behind a server
    "max_calls",
    "max_total_tokens",
    "key_env",
    "headers",
    "timeout",
    "retries",
    "backoff",
    "concurrency",
    "cache",
    "price_in",
    "price_out",
    "max_cost",
    "max_missing",
    # alarms of training change nothing of it
    "alarm_window",
    "alarm_z",
    "alarm_proxy",
    "alarm_length",
    "alarm_repetition",
    "alarm_refusals",
    "alarm_collapse",
    "alarm_kl",
}
EXACT_OF = {"collect": {"enough", "labellers", "serve", "host", "port", "url"}}  # who labels, and where
LAST_BITS = {
    "tokens_per_microbatch",
    "gradient_checkpointing",
    "max_concurrent",
    "device",
    "ref_cache",
    "threads",
    "shard",
}


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return {name: stage for name, stage in load_all().items() if ".py:" not in name}


@pytest.fixture(autouse=True)
def _toys() -> None:
    """The real stages, not the toys of this folder."""


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def every_setting(model: type[BaseModel], record: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, field) of every setting, those of records and of members of unions too."""
    for key, info in model.model_fields.items():
        # an item of a mapping or list has no key of its own
        inner = [] if several(info.annotation) else models_in(info.annotation)
        for one in inner:
            yield from every_setting(one, f"{record}{key}.")
        if not inner:
            yield f"{record}{key}", info


def several(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, list, tuple) or any(map(several, get_args(annotation)))


def test_every_setting_is_declared(stages: dict[str, Stage]) -> None:
    for name, stage in stages.items():
        for key, info in every_setting(stage.settings):
            marks = [mark for mark in info.metadata if isinstance(mark, ExecutionOnly)]
            last = key.rpartition(".")[2]
            assert bool(marks) == (last in EXACT | LAST_BITS | EXACT_OF.get(name, set())), f"{name}.{key}"
            assert [mark.bits for mark in marks] in ([], [last in LAST_BITS]), f"{name}.{key}"
    keys = {key.rpartition(".")[2] for stage in stages.values() for key in stage.neutral}
    assert keys <= EXACT | LAST_BITS | {one for names in EXACT_OF.values() for one in names}
    assert keys >= LAST_BITS | {"save_every", "max_cost"}


def filled(model: type[BaseModel]) -> BaseModel:
    """An instance with something in every required setting; not validated."""
    values: dict[str, Any] = {}
    for key, info in model.model_fields.items():
        if not info.is_required():
            continue
        records = models_in(info.annotation)
        literal = next((a for a in (info.annotation, *get_args(info.annotation)) if get_origin(a) is Literal), None)
        values[key] = filled(records[0]) if records else get_args(literal)[0] if literal else "x"
    return model.model_construct(**values)


def changed(settings: BaseModel, key: str) -> BaseModel:
    head, _, rest = key.partition(".")
    if not rest:
        return settings.model_copy(update={head: f"another {getattr(settings, head)}"})
    inner = getattr(settings, head)
    if inner is None:  # an optional record, e.g. a judge: any of its kinds that has the setting
        kinds = models_in(type(settings).model_fields[head].annotation)
        inner = filled(next(kind for kind in kinds if rest.partition(".")[0] in kind.model_fields))
    return settings.model_copy(update={head: changed(inner, rest)})


def begun(settings: BaseModel, key: str) -> BaseModel:
    """The settings with the record of a key filled, so that only the key differs."""
    head, _, rest = key.partition(".")
    if not rest or getattr(settings, head) is not None:
        return settings
    kinds = models_in(type(settings).model_fields[head].annotation)
    return settings.model_copy(
        update={head: filled(next(kind for kind in kinds if rest.partition(".")[0] in kind.model_fields))}
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fingerprint_holds_what_changes_the_result_and_nothing_else(stages: dict[str, Stage]) -> None:
    files = state.FileHashes()
    for name, stage in stages.items():
        whole, tried = filled(stage.settings), 0
        for key, _ in every_setting(stage.settings):
            head, before = key.partition(".")[0], begun(whole, key)
            if "." in key and not hasattr(getattr(before, head), key.split(".")[1]):
                continue  # of another kind of judge than the default
            pair = [Step("s", stage, settings, frozenset(), (), ()) for settings in (before, changed(before, key))]
            one, other = (state.fingerprint(step, {}, files).digest for step in pair)
            assert (one == other) == (key in stage.neutral), f"{name}.{key}"
            tried += 1
        assert tried >= len(stage.settings.model_fields) - 2


def test_no_number_may_be_infinite_or_nan(stages: dict[str, Stage]) -> None:
    """`lr: .inf` and every other setting with a decimal number."""
    count = 0
    for name, stage in stages.items():
        for key, info in every_setting(stage.settings):
            optional = typing.Union, types.UnionType
            if info.annotation is not float and not (
                get_origin(info.annotation) in optional and float in get_args(info.annotation)
            ):
                continue
            for value in (math.inf, -math.inf, math.nan):
                values: dict[str, Any] = {key.partition(".")[0]: value}
                for part in reversed(key.split(".")[1:]):
                    values = {key.partition(".")[0]: {part: next(iter(values.values()))}}
                if "kind" in dict(every_setting(stage.settings)) and "judge" in key:
                    continue
                with pytest.raises(ConfigError) as caught:
                    parse_settings(stage.settings, values, name)
                text = str(caught.value)
                assert key.rpartition(".")[2] in text or "wrong too" in text
                count += 1
    assert count > 500


def test_a_learning_rate_that_is_infinite_names_itself(stages: dict[str, Stage]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)sft.lr: the setting 'lr' is not finite.*got: +inf.*a finite float > 0"):
        parse_settings(stages["sft"].settings, {"model": "m", "data": "d", "lr": math.inf}, "sft")


def test_keys_of_unions_are_found() -> None:
    stage = load_all()["grpo"]
    assert {"judge.max_cost", "judge.timeout", "run.eval_every", "models.gradient_checkpointing"} <= set(stage.neutral)
    assert execution_keys(stage.settings, bits=True) == tuple(k for k in stage.neutral if k.split(".")[-1] in LAST_BITS)
