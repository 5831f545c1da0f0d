"""The request that advice is given on: what a user names on the command line or in answer to questions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from tiltyard.errors import ConfigError, nearest
from tiltyard.pipeline.recipe import check_name
from tiltyard.yaml_values import CoreLoader

Want = Literal["imitate", "prefer", "reward", "judge"]
Size = Literal["auto", "lora", "full"]
WANTS: tuple[str, ...] = get_args(Want)


@dataclass(frozen=True)
class Request:
    """A model, data and a wish.

    Args:
        model, data: as written: a folder, file or hub name.
        want: `imitate` demonstrations, `prefer` the better of answers, raise a `reward`, please a `judge`; "" is what
            the data are for.
        reward: a reward model, `file.py:function`, or YAML such as `{from: rule, max_words: 40}`; for `reward`, and for
            measuring the others.
        judge: YAML of an AI judge's settings, such as `{kind: api, url: ..., model: ...}`.
        minutes: the time that everything may take; 0: all rows.
        size: `lora` or `full` training; `auto` chooses.
        default_template: a model without a chat template gets the plain default one.
        clean: leave out repeated rows and answers that are given to everything.
    """

    model: str
    data: str
    want: str = ""
    reward: str = ""
    judge: str = ""
    minutes: float = 30.0
    size: Size = "auto"
    name: str = ""
    seed: int = 0
    split: str = ""
    default_template: bool = False
    clean: bool = True

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name, "--name")
        if self.want and self.want not in WANTS:
            fix = nearest(self.want, WANTS)
            raise ConfigError("unknown wish", where="--want", got=self.want, expected=", ".join(WANTS), fix=fix)
        if not 0 <= self.minutes < float("inf"):
            raise ConfigError(
                "this is no time",
                where="--minutes",
                got=self.minutes,
                expected="minutes; 0: as long as all rows take",
                fix="--minutes 30, or leave it out",
            )
        if self.reward and self.judge:
            raise ConfigError(
                "a reward and a judge", where="--reward", got="both", expected="one of them", fix="leave one out"
            )
        if self.want == "judge" and not self.judge:
            raise ConfigError(
                "the judge is missing",
                where="--judge",
                got="--want judge without --judge",
                expected="the judge's settings in YAML",
                fix="--judge '{kind: model, model: FOLDER}', or '{kind: api, url: ADDRESS, model: NAME}'",
            )
        if self.want == "reward" and not self.reward:
            raise ConfigError(
                "the reward is missing",
                where="--reward",
                got="--want reward without --reward",
                expected="a reward model, FILE.py:FUNCTION, or a rule",
                fix="--reward rewards.py:concise, or --reward '{from: rule, max_words: 40}'",
            )

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON-ready values."""
        return asdict(self)

    @property
    def run_name(self) -> str:
        """The name of the run: as given, or made of the model's and the data's."""
        if self.name:
            return self.name
        parts = [_stem(self.model), _stem(self.data)]
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(filter(None, parts))).strip("-._")[:80] or "align"

    def reward_value(self) -> str | dict[str, Any]:
        """The reward as a recipe's setting holds it."""
        return _value(self.reward, "--reward")

    def judge_value(self) -> dict[str, Any]:
        """The judge's settings.

        Raises:
            ConfigError: no YAML mapping.
        """
        value = _value(self.judge, "--judge")
        if isinstance(value, Mapping):
            return dict(value)
        raise ConfigError(
            "a judge's settings are a mapping",
            where="--judge",
            got=self.judge,
            expected="{kind: model, model: FOLDER}",
            fix="write it in braces and quotes; docs/judges.md lists the settings",
        )


def _stem(name: str) -> str:
    path = Path(name.rstrip("/"))
    stem = path.name.split(".")[0]
    if stem in ("model", "train", "data", "rows") and path.parent.name:
        stem = f"{path.parent.name.split('.')[0]}-{stem}" if stem != "model" else path.parent.name
    return stem


def _value(text: str, where: str) -> str | dict[str, Any]:
    if not text.strip().startswith("{"):
        return text.strip()
    try:
        value = CoreLoader(text).get_single_data()
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            "this is no YAML", where=where, got=text, expected="{from: rule, max_words: 40}", fix=problem
        ) from None
    return dict(value)
