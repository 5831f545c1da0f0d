"""What a method declares about itself, beside its code: the pipeline, the docs and the oracle table read it here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tiltyard.data import Chat, GroupStream, Kind, TooLong
from tiltyard.errors import ConfigError, nearest
from tiltyard.training.algorithm import Algorithm
from tiltyard.types import Group

Family = Literal["pretrain", "sft", "reward", "rl", "offline", "online", "distribution"]
Often = Literal["no", "per iteration", "every step"]
Shape = Literal["any", "pair"]
# (chat, groups, max_length, too_long) -> the groups as the method reads them, then lines about what was left out
Encode = Callable[[Chat, Iterable[Group], int, TooLong], GroupStream[list[str]]]


@dataclass(frozen=True)
class Method:
    """A registered method. What users compare methods by is derived from this, never typed (`tiltyard methods`).

    Attributes:
        name: of the stage and of `tiltyard train NAME`.
        build: (source, *, settings) -> Algorithm; its keyword arguments are the method's settings. The docstring's
            first line says what it does; an argument's doc ends with `[where its default comes from]`.
        eats: what its data are: text, demonstrations, comparisons, labelled or prompts.
        shape: what a comparison must look like: `any` (K answers, ranked) or `pair` (two).
        encode: how the file's groups are rewritten where the method does not read each answer by itself (a ranker reads
            two at once); training and held-out data alike.
        second: kind of a second data set that the method may be given (a setting of that name).
        trains, frozen: models in memory.
        cached: frozen models that are only needed before training starts, because what they say of fixed data is
            computed once and kept on disk.
        optional: frozen models that some settings leave with nothing to do but to be measured against; `show_kl` says
            whether they are there then.
        samples: how often the law that answers are drawn from is renewed; "no": no answers are drawn.
        judged: how often fresh feedback is asked for while the method runs.
        human_labels: whether it needs preferences or labels of people, itself or through its reward model.
        external_api: whether a remote judge is part of it.
        defaults: where the common settings' defaults differ for this method, and `tuned` where those come from.
        formula: the loss in one or two lines of plain text.
        oracle: the exact optimum or fixed point that the tests hold it to.
        paper: where it was published.
        watch: what goes wrong in practice.
    """

    name: str
    build: Callable[..., Algorithm]
    family: Family
    eats: Kind
    shape: Shape = "any"
    encode: Encode | None = None
    second: Kind | None = None
    trains: tuple[str, ...] = ("policy",)
    frozen: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    samples: Often = "no"
    judged: Often = "no"
    human_labels: bool = False
    external_api: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tuned: str = ""
    formula: str = ""
    oracle: str = ""
    paper: str = ""
    watch: str = ""

    @property
    def online(self) -> bool:
        return self.eats == "prompts"

    @property
    def pointwise(self) -> bool:
        """Whether it gives one answer one score, whose zero can then be set on demonstrations."""
        return self.family == "reward" and self.encode is None

    @property
    def summary(self) -> str:
        return (self.build.__doc__ or "").strip().splitlines()[0]


METHODS: dict[str, Method] = {}


def method(
    family: Family,
    eats: Kind,
    *,
    name: str = "",
    samples: Often | None = None,
    judged: Often | None = None,
    human_labels: bool | None = None,
    **declared: Any,
) -> Callable[[Callable[..., Algorithm]], Callable[..., Algorithm]]:
    """Registers a function as a method under its own name (or `name`); `declared` are the fields of `Method`.

    Unless said otherwise, a method that eats prompts samples and is judged at every step, and a method that eats
    comparisons, labels or a reward model's scores rests on labels of people.
    """
    often: Often = "every step" if eats == "prompts" else "no"
    labels = eats in ("comparisons", "labelled", "prompts")

    def register(build: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
        key = name or build.__name__
        METHODS[key] = Method(
            key,
            build,
            family,
            eats,
            samples=samples or often,
            judged=judged or often,
            human_labels=labels if human_labels is None else human_labels,
            **declared,
        )
        return build

    return register


def get_method(name: str) -> Method:
    """The registered method, or an error that names the nearest."""
    if name not in METHODS:
        raise ConfigError(f"unknown method '{name}'", fix=nearest(name, METHODS))
    return METHODS[name]
