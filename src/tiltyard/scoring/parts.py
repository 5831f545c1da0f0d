"""The parts of the setting `reward`: where each score comes from, its weight, and what else its source needs.

runs/demo/reward              a reward model: a stage, a folder or a hub name
{from: MODEL, label: helpful} a label of a classifier, or several: labels: {helpful: 1.0, verbose: -0.2}
rewards.py:concise            a function, see `scoring.registry`
{from: rule, max_words: 40}   wishes about the text of a response, see `scoring.rules`
an address of http         a service that answers with scores
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, model_validator

from tiltyard.config import parse_settings
from tiltyard.errors import ConfigError, nearest
from tiltyard.records import EXECUTION, Settings
from tiltyard.scoring.rules import RULE, Rule, require_wishes

_PART_KEYS = ("from", "weight")
_EXAMPLE = "{from: SOURCE, weight: 1.0}"


class LabelChoice(Settings):
    """The labels of a classifier that make its score: the sum of their logits times their weights."""

    label: Annotated[
        str | int | None, Field(description="of a classifier of several labels: the one whose logit is the reward")
    ] = None
    labels: Annotated[
        dict[str, float], Field(description="or several of them, by name or index, with their weights")
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_form(self) -> LabelChoice:
        if self.label is not None and self.labels:
            raise ValueError("label and labels exclude each other: write labels: {NAME: 1.0, ...}")
        return self

    def weights(self) -> dict[str, float]:
        """The weight of each chosen label; empty where none was chosen."""
        return dict(self.labels) if self.label is None else {str(self.label): 1.0}


class Service(Settings):
    """The limits and secrets of requests by http: to a reward service, and to the server of a judge."""

    timeout: Annotated[float, Field(gt=0, description="seconds a request may take in all"), EXECUTION] = 60.0
    retries: Annotated[int, Field(ge=0, description="times a failed request is sent again"), EXECUTION] = 5
    backoff: Annotated[
        float, Field(ge=0, description="seconds before the first retry, doubled each time"), EXECUTION
    ] = 1.0
    concurrency: Annotated[int, Field(ge=1, le=256, description="requests at the same time"), EXECUTION] = 4
    key_env: Annotated[str, Field(description="environment variable that holds the key; empty: no key"), EXECUTION] = ""
    headers: Annotated[
        dict[str, str],
        Field(description="further headers of the request: name -> the environment variable that holds its value"),
        EXECUTION,
    ] = Field(default_factory=dict)


@dataclass(frozen=True)
class RewardPart:
    """One part of a weighted sum: `source` names a stage, folder, hub model, function or service.

    Attributes:
        weight: its factor in the sum.
        rule: the wishes of a part whose source is `rule`; None for others.
        labels: of a classifier, see `models.labels`; empty for others.
        service: of a source that is an address; None for others.
    """

    source: str
    weight: float = 1.0
    rule: Rule | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    service: Service | None = None


def is_service(source: str) -> bool:
    """True if a reward setting names the address of a service."""
    return source.startswith(("http://", "https://"))


def options_of(source: str) -> type[Settings]:
    """The settings that a part with this source may have besides `from` and `weight`."""
    if source == RULE:
        return Rule
    return Service if is_service(source) else LabelChoice


def is_one_part(spec: Mapping[str, Any]) -> bool:
    """True if a mapping is one part, `{from: SOURCE, ...}`, and not a sum of named parts."""
    return isinstance(spec.get("from"), str)


def reward_parts(spec: str | Mapping[str, Any]) -> dict[str, RewardPart]:
    """The parts of a reward setting by name; a single one is named `reward`.

    Raises:
        ConfigError: an unknown key, a part without a source, a weight that is no finite number, or a rule without a
            wish.
    """
    if isinstance(spec, str):
        return {"reward": _part("", spec)}
    if not spec:
        raise ConfigError("a weighted sum needs at least one part", where="reward", got=dict(spec))
    if is_one_part(spec):
        return {"reward": _part("", spec)}
    return {str(name): _part(str(name), part) for name, part in spec.items()}


def _part(name: str, part: Any) -> RewardPart:
    where = f"reward.{name}" if name else "reward"
    if isinstance(part, str):
        part = {"from": part}
    if not isinstance(part, Mapping):
        raise ConfigError("a part of a reward is a source and a weight", where=where, got=part, expected=_EXAMPLE)
    source, weight = part.get("from"), part.get("weight", 1.0)
    kind = options_of(source) if isinstance(source, str) else LabelChoice
    options = (*_PART_KEYS, *kind.model_fields)
    for key in part:
        if key not in options:
            raise ConfigError(f"unknown key '{key}'", where=where, expected=_EXAMPLE, fix=nearest(str(key), options))
    if not isinstance(source, str) or not source:
        raise ConfigError("a part of a reward names its source", where=f"{where}.from", got=source, expected=_EXAMPLE)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight - weight != 0:
        raise ConfigError("a weight is a finite number", where=f"{where}.weight", got=weight, expected=_EXAMPLE)
    chosen = parse_settings(kind, {key: part[key] for key in part if key not in _PART_KEYS}, where)
    if isinstance(chosen, Rule):
        require_wishes(chosen, where)
        return RewardPart(source, float(weight), rule=chosen)
    if isinstance(chosen, Service):
        return RewardPart(source, float(weight), service=chosen)
    assert isinstance(chosen, LabelChoice)
    return RewardPart(source, float(weight), labels=chosen.weights())
