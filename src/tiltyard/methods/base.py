"""Declarations of methods: the metadata that the pipeline, the docs and the oracle table read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from tiltyard.errors import ConfigError, nearest
from tiltyard.inputs.auxiliary import AuxData
from tiltyard.inputs.base import InputSource
from tiltyard.inputs.roles import Policy, Reward, Role, Start
from tiltyard.training.algorithm import Algorithm

Family = Literal["pretrain", "sft", "reward", "rl", "offline", "online", "distribution"]


@dataclass(frozen=True)
class Method:
    """A registered method. What users compare methods by is derived from this, never typed (`tiltyard methods`).

    Attributes:
        name: of the stage and of `tiltyard train NAME`.
        build: (source, *, settings) -> Algorithm; its keyword arguments are the method's settings. The docstring's
            first line is the method's summary; an argument's doc ends with `[where its default comes from]`.
        family: the heading under which it is listed.
        source: what it learns from.
        roles: its models; the first is the one that a stage starts from.
        aux_data: a second data set that it may be given, as the second argument of `build`.
        defaults: where the common settings' defaults differ for this method, and `defaults_from` their sources.
        rests_on_labels: whether it needs preferences or labels of people, itself or through its reward model; None: as
            its source says.
        external_api: whether a remote judge is part of it.
        formula: the loss in one or two lines of plain text.
        oracle: the exact optimum or fixed point that the tests hold it to.
        paper: where it was published.
        pitfalls: what goes wrong in practice.
    """

    name: str
    build: Callable[..., Algorithm]
    family: Family
    source: InputSource
    roles: tuple[Role, ...] = (Policy(),)
    aux_data: AuxData | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    defaults_from: str = ""
    rests_on_labels: bool | None = None
    external_api: bool = False
    formula: str = ""
    oracle: str = ""
    paper: str = ""
    pitfalls: str = ""

    def __post_init__(self) -> None:
        if not self.roles or not isinstance(self.roles[0], Start):
            raise ConfigError(
                "the first role of a method is the model that a stage starts from",
                where=self.name,
                got=", ".join(type(role).__name__ for role in self.roles),
                expected="Policy, RewardModel or Encoder first",
            )

    @property
    def start(self) -> Start:
        """The role of the model that a stage starts from and trains."""
        role = self.roles[0]
        assert isinstance(role, Start)
        return role

    @property
    def trains(self) -> tuple[str, ...]:
        """Names of the models that are trained."""
        return tuple(role.name for role in self.roles if role.trained)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the models that are in memory and not trained."""
        return tuple(role.name for role in self.roles if role.counted and not role.trained)

    @property
    def cached(self) -> tuple[str, ...]:
        """Names of the frozen models that may leave once their log-probs of the data are on disk."""
        return tuple(role.name for role in self.roles if role.cached)

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of the frozen models that some settings leave with nothing to do but to be measured against."""
        return tuple(role.name for role in self.roles if role.optional)

    @property
    def samples_policy(self) -> bool:
        """True if responses of a model that is being trained are sampled."""
        return self.source.samples != "no"

    @property
    def human_labels(self) -> bool:
        """True if it depends on preferences or labels of people."""
        scored = any(isinstance(role, Reward) for role in self.roles)
        derived = self.source.human_labels and (scored or not self.samples_policy)
        return derived if self.rests_on_labels is None else self.rests_on_labels

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.build.__doc__ or "").strip().splitlines()[0]


METHODS: dict[str, Method] = {}
_registering: ContextVar[bool] = ContextVar("registering", default=True)


@contextmanager
def collected() -> Iterator[None]:
    """While it lasts, `method` declares without registering: a user's file hides no method of the package."""
    token = _registering.set(False)
    try:
        yield
    finally:
        _registering.reset(token)


def method(
    family: Family, *, source: InputSource, roles: Sequence[Role] = (Policy(),), name: str = "", **declared: Any
) -> Callable[[Callable[..., Algorithm]], Callable[..., Algorithm]]:
    """Registers a function as a method under its own name (or `name`).

    Args:
        family, source, roles, declared: the fields of `Method`.
        name: of the stage; empty: the function's.
    """

    def register(build: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
        key = name or build.__name__
        declaration = Method(key, build, family, source, tuple(roles), **declared)
        if _registering.get():
            METHODS[key] = declaration
        build.tiltyard_method = declaration  # type: ignore[attr-defined]  # read by `methods.from_file`
        return build

    return register


def get_method(name: str) -> Method:
    """Returns the registered method.

    Raises:
        ConfigError: there is none; the error suggests the nearest name.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method '{name}'", fix=nearest(name, METHODS))
    return METHODS[name]
