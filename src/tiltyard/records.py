"""Settings that are grouped in records, and how a mapping that a user wrote becomes one with records.

A `Record` is a nested settings model whose keys may also be written without the record's name:

    optimizer: {warmup: 0.1}      and      warmup: 0.1      mean the same
    data: {path: rows.jsonl}      and      data: rows.jsonl

`canonical` brings both forms to the nested one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from tiltyard.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

# keys of earlier recipes -> today's names; the first that a model has is meant
RENAMED: dict[str, tuple[str, ...]] = {
    "n": ("samples_per_prompt",),
    "batch": ("prompts_per_step",),
    "batch_tokens": ("tokens_per_step",),
    "micro_tokens": ("tokens_per_microbatch",),
    "max_rows": ("max_concurrent",),
    "kl": ("beta",),
    "tau": ("beta",),
    "lam": ("beta",),
    "gamma": ("beta",),
}


class Settings(BaseModel):
    """The base of every settings model: unknown keys forbidden, no coercion, numbers finite, frozen.

    A setting for which infinity means something says so with `Field(allow_inf_nan=True)`; none does today.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)


@dataclass(frozen=True)
class ExecutionOnly:
    """Marks a setting of execution, which does not change what is computed: `Annotated[int, Field(...), EXECUTION]`.

    Such a setting is no part of a stage's fingerprint: to change it never sends a run back to its start. Every setting
    without the mark changes the result.

    Args:
        bits: sums may be taken in another order, so the last bits of a result may depend on it.
    """

    bits: bool = False


EXECUTION = ExecutionOnly()
LAST_BITS = ExecutionOnly(bits=True)


def execution_keys(model: type[BaseModel], *, bits: bool = False) -> tuple[str, ...]:
    """Dotted keys of the settings marked `ExecutionOnly`, also inside records and unions of records.

    Args:
        bits: only those on which the last bits of a result may depend.
    """
    found: dict[str, None] = {}
    for key, info in model.model_fields.items():
        marks = [mark for mark in info.metadata if isinstance(mark, ExecutionOnly)]
        if any(mark.bits or not bits for mark in marks):
            found[key] = None
        elif not marks:
            for inner in _models_in(info.annotation):
                found |= {f"{key}.{name}": None for name in execution_keys(inner, bits=bits)}
    return tuple(found)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings models that a type is made of; not those that are keyed or listed, whose place has no fixed key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType):
        for inner in get_args(annotation):
            yield from _models_in(inner)


class Record(Settings):
    """A nested settings model whose keys may be written without its name; `main` is the key that a bare value sets."""

    main: ClassVar[str] = ""


def part(settings: BaseModel, kind: type[M]) -> M:
    """The settings as an instance of one of the models that they are composed of.

    Raises:
        TypeError: they are not composed of it.
    """
    if not isinstance(settings, kind):
        raise TypeError(f"{type(settings).__name__} has no part {kind.__name__}")
    return settings


def records_of(model: type[BaseModel]) -> dict[str, type[Record]]:
    """The records of a settings model by their keys."""
    fields = {key: info.annotation for key, info in model.model_fields.items()}
    return {key: kind for key, kind in fields.items() if isinstance(kind, type) and issubclass(kind, Record)}


def flat_keys(model: type[BaseModel]) -> dict[str, list[str]]:
    """The keys that may be written at the top: each with the dotted keys that it could mean (one if unambiguous)."""
    records = records_of(model)
    keys = {key: [key] for key in model.model_fields}
    for name, record in records.items():
        for key in record.model_fields:
            if key not in model.model_fields:
                keys.setdefault(key, []).append(f"{name}.{key}")
    return keys


def canonical(model: type[BaseModel], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(values with all keys of records inside their records, dotted key -> as it was written).

    Raises:
        ConfigError: a key was set twice, or belongs to more than one record.
    """
    records, keys = records_of(model), flat_keys(model)
    result: dict[str, Any] = {}
    written: dict[str, str] = {}
    for key, value in values.items():
        homes = keys.get(key, [key])
        if len(homes) > 1:
            raise ConfigError(
                f"the setting '{key}' is in several records", where=key, fix=f"write {' or '.join(homes)}"
            )
        for dotted, inner, spelt in _spread(records, homes[0], key, value):
            if dotted in written:
                raise ConfigError(
                    f"the setting '{dotted}' is set twice", where=dotted, got=f"{written[dotted]}, {spelt}"
                )
            written[dotted] = spelt
            record, _, last = dotted.partition(".")
            whole = result.get(record)
            if isinstance(whole, BaseModel) or (isinstance(inner, BaseModel) and isinstance(whole, dict)):
                fix = f"set it inside {record}, or give no {record}"
                raise ConfigError(f"'{record}' is given whole and a key of it besides", where=dotted, fix=fix)
            if record in records and last:
                result.setdefault(record, {})[last] = inner
            else:
                result[dotted] = inner
    return result, written


def _spread(records: Mapping[str, type[Record]], dotted: str, spelt: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, value, as written) of one entry: of a record each key by itself."""
    record = records.get(dotted)
    if record is None or isinstance(value, BaseModel):
        yield dotted, value, spelt
    elif isinstance(value, Mapping):
        yield from ((f"{dotted}.{key}", inner, f"{spelt}.{key}") for key, inner in value.items())
    elif record.main:
        yield f"{dotted}.{record.main}", value, spelt
    else:
        yield dotted, value, spelt  # no mapping: its type is the error


def canonical_key(model: type[BaseModel], key: str) -> str:
    """The dotted key that an assignment `key=value` means: `warmup` -> `optimizer.warmup`, `data` -> `data.path`."""
    head, _, rest = key.partition(".")
    homes = flat_keys(model).get(head, [head])
    record = records_of(model).get(key)
    if record is not None and record.main:
        return f"{key}.{record.main}"
    return ".".join(filter(None, (homes[0] if len(homes) == 1 else head, rest)))


def merged(below: Mapping[str, Any], above: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Two canonical mappings as one: `above` wins key by key, inside records too."""
    result = {**below, **above}
    for key in records_of(model):
        if isinstance(below.get(key), Mapping) and isinstance(above.get(key), Mapping):
            result[key] = {**below[key], **above[key]}
    return result


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= {f"{key}.{inner}": leaf for inner, leaf in flattened(value).items()}
        else:
            result[key] = value
    return result
