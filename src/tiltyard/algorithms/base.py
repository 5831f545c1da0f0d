"""What a method declares about itself, beside its code: the pipeline, the docs and the oracle table read it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tiltyard.data import Kind
from tiltyard.errors import ConfigError, nearest
from tiltyard.training.algorithm import Algorithm

Family = Literal["pretrain", "sft", "reward", "rl", "offline", "online", "distribution"]


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: of the stage and of `tiltyard train NAME`.
        build: (source, *, settings) -> Algorithm; its keyword arguments are the method's settings.
        eats: what its data are: text, demonstrations, comparisons or prompts.
        trains, frozen: models in memory.
        defaults: where the common settings' defaults differ for this method.
        paper: where it was published.
        watch: what goes wrong in practice.
    """

    name: str
    build: Callable[..., Algorithm]
    family: Family
    eats: Kind
    trains: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    watch: str = ""

    @property
    def online(self) -> bool:
        return self.eats == "prompts"

    @property
    def summary(self) -> str:
        return (self.build.__doc__ or "").strip().splitlines()[0]


METHODS: dict[str, Method] = {}


def method(
    family: Family,
    eats: Kind,
    *,
    trains: tuple[str, ...] = ("policy",),
    frozen: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
    paper: str = "",
    watch: str = "",
    name: str = "",
) -> Callable[[Callable[..., Algorithm]], Callable[..., Algorithm]]:
    """Registers a function as a method under its own name (or `name`)."""

    def register(build: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
        key = name or build.__name__
        METHODS[key] = Method(key, build, family, eats, trains, frozen, dict(defaults or {}), paper, watch)
        return build

    return register


def get_method(name: str) -> Method:
    if name not in METHODS:
        raise ConfigError(f"unknown method '{name}'", fix=nearest(name, METHODS))
    return METHODS[name]
