"""The settings of a method's stage, composed of what its source, its roles and its function declare."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import Field, create_model

from tiltyard.config import settings_model
from tiltyard.errors import ConfigError, nearest
from tiltyard.inputs.settings import StageSettings
from tiltyard.methods.base import Method
from tiltyard.records import Record, Settings, flat_keys, records_of

# settings that refer to stages, files, models or functions
REFERS = (
    "model",
    "data",
    "prompts",
    "reward",
    "monitors",
    "models",
    "demonstrations",
    "corpus",
    "replay",
    "judge",
)


def method_settings(method: Method) -> type[StageSettings]:
    """The settings of a method's stage: its source's and its roles', in records, and the function's own arguments.

    Raises:
        ConfigError: a default of the method is for no setting.
    """
    parts: list[Any] = [method.source.settings, *(model for role in method.roles for model in role.settings)]
    if method.aux_data is not None:
        parts.append(method.aux_data.settings())
    plain = settings_model(method.name, *parts, method.build)
    keys = flat_keys(plain)
    kinds = {key: _record_parts(method, key, kind) for key, kind in records_of(plain).items()}
    owned = {key: {name for kind in some for name in kind.model_fields} for key, some in kinds.items()}
    defaults: dict[str, dict[str, Any]] = {"": {}}
    for key, value in method.defaults.items():
        home = "" if key in plain.model_fields else next((name for name, names in owned.items() if key in names), None)
        if home is None:
            options = {*keys, *(name for names in owned.values() for name in names)}
            raise ConfigError(
                f"the method declares a default for '{key}', which is no setting of it",
                where=method.name,
                fix=nearest(key, options),
            )
        defaults.setdefault(home, {})[key] = value
    records = {key: _record(f"{method.name}_{key}", some, defaults.get(key, {})) for key, some in kinds.items()}
    fields: dict[str, Any] = {key: (kind, _field(kind, plain, key)) for key, kind in records.items()}
    top = settings_model(method.name, plain, _defaults(plain.model_fields, defaults[""]))
    model: Any = create_model(method.name, __base__=top, **fields)
    return model


def _record_parts(method: Method, key: str, kind: type[Record]) -> list[type[Record]]:
    """The models that one record of a method is composed of, without those that another one extends."""
    kinds = [method.source.records.get(key, kind), *(k for role in method.roles for k in role.records.get(key, ()))]
    return [k for k in kinds if not any(k is not other and issubclass(other, k) for other in kinds)]


def _record(name: str, kinds: list[type[Record]], defaults: Mapping[str, Any]) -> type[Record]:
    if len(kinds) == 1 and not defaults:
        return kinds[0]
    known = {key: info for kind in kinds for key, info in kind.model_fields.items()}
    model: Any = settings_model(name, *kinds, _defaults(known, defaults))
    return model


def _defaults(known: Mapping[str, Any], defaults: Mapping[str, Any]) -> type[Settings]:
    fields: dict[str, Any] = {key: (known[key].annotation, value) for key, value in defaults.items()}
    return create_model("defaults", __base__=Settings, **fields)


def _field(kind: type[Record], plain: type[Settings], key: str) -> Any:
    description = plain.model_fields[key].description or (kind.__doc__ or "").strip().partition("\n")[0]
    required = any(info.is_required() for info in kind.model_fields.values())
    return Field(... if required else kind(), description=description)


@cache
def shared_records() -> tuple[str, ...]:
    """The keys of the records that all training stages share."""
    return (*records_of(StageSettings), "sampling")
