from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, model_validator

from tiltyard.config import REQUIRED, arguments, describe, parse_settings, settings_model
from tiltyard.errors import ConfigError
from tiltyard.records import Settings
from tiltyard.yaml_values import parse_value, split_assignment

if TYPE_CHECKING:
    from somewhere import Unknown


class Nested(Settings):
    preset: str = "1m"
    width: int = 8


class Common(BaseModel):
    model: str = Field(description="the model to start from")
    lr: Annotated[float, Field(gt=0)] = 1e-4
    steps: int = 10
    nested: Nested | None = None


def method(
    batch: Unknown,
    *,
    lr: float = 1e-5,
    kl: Annotated[float, Field(ge=0, le=1)] = 0.05,
    mode: Literal["adaptive", "fixed"] = "fixed",
    betas: tuple[float, float] = (0.9, 0.95),
    target: Annotated[float | None, Field(allow_inf_nan=True)] = None,
    out: Path = Path("x"),
    whiten: bool = True,
    hook: Unknown = None,
) -> None:
    """A method.

    Args:
        batch: no setting.
        kl: the penalty
            in nats.
        mode, target: how kl moves.

    Returns:
        kl: not this.
    """


@pytest.fixture
def model() -> type[Settings]:
    return settings_model("method", Common, method, skip=["hook"])


def test_union_of_sources(model: type[Settings]) -> None:
    rows = {row.key: row for row in describe(model)}
    assert list(rows) == ["model", "lr", "steps", "nested", "kl", "mode", "betas", "target", "out", "whiten"]
    assert rows["model"].default is REQUIRED
    assert rows["model"].doc == "the model to start from"
    assert rows["lr"] == ("lr", "float > 0", 1e-5, "")  # the later default, the earlier constraint
    assert rows["kl"] == ("kl", "float >= 0, <= 1", 0.05, "the penalty in nats.")
    assert rows["mode"].type == "'adaptive' | 'fixed'"
    assert rows["mode"].doc == rows["target"].doc == "how kl moves."
    assert rows["target"].type == "float | null"


def test_a_later_source_without_a_default_requires_the_setting() -> None:
    def needs(*, steps: int) -> None: ...

    assert next(r for r in describe(settings_model("m", Common, needs)) if r.key == "steps").default is REQUIRED


def test_same_key_with_another_type() -> None:
    def other(*, steps: str = "many") -> None: ...

    with pytest.raises(ConfigError, match=r"m\.steps: two sources declare this setting with different types"):
        settings_model("m", Common, other)


def test_parameters_that_are_no_settings() -> None:
    with pytest.raises(ConfigError, match="cannot be evaluated"):
        settings_model("m", method)

    def bare(*, x=1) -> None: ...

    with pytest.raises(ConfigError, match="has no annotation"):
        settings_model("m", bare)

    def odd(*, x: Console | None = None) -> None: ...

    with pytest.raises(ConfigError, match="no file or command line can give"):
        settings_model("m", odd)


class Console: ...


def test_values_from_yaml_fit(model: type[Settings]) -> None:
    values = {"model": "m", "lr": 1, "betas": [0.8, 0.9], "out": "a/b", "nested": {"width": 4}, "target": math.inf}
    settings: Any = parse_settings(model, values, "sft")
    assert settings.lr == 1.0
    assert settings.betas == (0.8, 0.9)
    assert settings.out == Path("a/b")
    assert settings.nested == Nested(width=4)
    assert settings.target == math.inf
    assert arguments(method, settings, skip=["hook"])["lr"] == 1.0


@pytest.mark.parametrize(
    ("values", "key", "parts"),
    [
        ({"kll": 1}, "kll", ["unknown setting 'kll'", "did you mean 'kl'?"]),
        ({"model": None, "kll": 1}, "kll", ["wrong too: model"]),
        ({"nested": {"wdth": 1}}, "nested.wdth", ["did you mean 'width'?"]),
        ({"nested": {"width": "4"}}, "nested", ["does not fit"]),
        ({"steps": "3"}, "steps", ["got:      '3' (str)", "expected: int"]),
        ({"steps": True}, "steps", ["got:      True (bool)", "expected: int"]),
        ({"steps": 1.5}, "steps", ["expected: int"]),
        ({"whiten": 1}, "whiten", ["expected: bool"]),
        ({"whiten": "yes"}, "whiten", ["expected: bool"]),
        ({"kl": -0.1}, "kl", ["got:      -0.1 (float)", "expected: float >= 0, <= 1"]),
        ({"kl": math.nan}, "kl", ["is not finite", "expected: a finite float >= 0, <= 1"]),
        ({"lr": math.inf}, "lr", ["is not finite", "expected: a finite float > 0"]),
        ({"lr": 0}, "lr", ["expected: float > 0"]),
        ({"mode": "adptive"}, "mode", ["expected: 'adaptive' | 'fixed'"]),
        ({"target": "x"}, "target", ["expected: float | null"]),
        ({"betas": [1]}, "betas", ["expected: tuple[float, float]"]),
        ({"model": 7}, "model", ["in quotes: '7'"]),
    ],
)
def test_values_that_do_not_fit(model: type[Settings], values: dict, key: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(model, {"model": "m", **values}, "ppo", places={key: "r.yaml:7"})
    text = str(caught.value)
    assert text.startswith(f"r.yaml:7: ppo.{key}: ")
    for part in parts:
        assert part in text


def test_required(model: type[Settings]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(model, {}, "ppo")
    assert "ppo.model: the setting 'model' is required" in str(caught.value)
    assert "the model to start from" in str(caught.value)


def test_validators_of_a_source_are_kept() -> None:
    class Pair(BaseModel):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _ordered(self) -> Pair:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    model = settings_model("m", Pair)
    with pytest.raises(ConfigError, match="low is above high"):
        parse_settings(model, {"low": 3}, "m")


def test_settings_are_frozen_and_defaults_not_shared() -> None:
    def listed(*, names: list[str] = []) -> None: ...  # noqa: B006

    model: Any = settings_model("m", listed)
    first, second = model(), model()
    first.names.append("x")
    assert second.names == []
    with pytest.raises(ValueError, match="frozen"):
        first.names = []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("12", 12),
        ("010", 10),
        ("0x10", 16),
        ("1_000", 1000),
        (".inf", math.inf),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("", None),
        ("'3'", "3"),
        ('"a b"', "a b"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("a: b # c", "a: b # c"),
        ("[sft, 1, 2e-5]", ["sft", 1, 2e-5]),
        ("{preset: 12m}", {"preset": "12m"}),
        ("../data/x.jsonl", "../data/x.jsonl"),
        ("-", "-"),
        ("1e", "1e"),
    ],
)
def test_parse_value(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_bad_assignments() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_value("[1,")
    for text in ("kl", "=3", "a..b=1", "a b=1"):
        with pytest.raises(ConfigError, match="no assignment"):
            split_assignment(text)
    assert split_assignment("ppo.kl=0.1") == ("ppo.kl", 0.1)
    assert split_assignment("prompt=a=b") == ("prompt", "a=b")
