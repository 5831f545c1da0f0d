"""Settings: declared once, checked always.

A stage's settings are the union of a small common record (a pydantic model) and the keyword-only parameters of the
functions it calls: `settings_model` builds that union, `parse_settings` checks a mapping against it, `arguments`
hands each function its own part back. An unknown key, a wrong type or a value out of range is a `ConfigError` that
names the key, what was got and what was expected. Nothing is converted silently: "3" is not 3, True is not 1.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tiltyard.errors import ConfigError, nearest
from tiltyard.records import RENAMED, Settings, canonical, flat_keys, records_of

Source = type[BaseModel] | Callable[..., Any]
M = TypeVar("M", bound=BaseModel)


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


class Setting(NamedTuple):
    """One line of `describe`: `default` is `REQUIRED` where the user must give a value."""

    key: str
    type: str
    default: Any
    doc: str


# ---------------------------------------------------------------------------------------------- building a model


def settings_model(name: str, *sources: Source, skip: Sequence[str] = ()) -> type[Settings]:
    """One model from several sources; constraints add up, the later source's default wins.

    Args:
        name: the model's name, shown in errors.
        sources: pydantic models (their fields and validators) and functions (their keyword-only parameters).
        skip: parameters that are no settings (callbacks, models); they stay the caller's business.
    """
    fields: dict[str, FieldInfo] = {}
    for source in sources:
        for key, info in _source_fields(source, skip).items():
            fields[key] = _merge(fields[key], info, f"{name}.{key}") if key in fields else info
    models: list[type[BaseModel]] = [s for s in sources if isinstance(s, type) and issubclass(s, BaseModel)]
    bases = [m for m in dict.fromkeys(models) if not any(m is not o and issubclass(o, m) for o in models)]
    for model in bases:
        inherited = set(model.model_fields) & set(skip)
        if inherited:
            raise ConfigError(f"a model's field cannot be skipped: {sorted(inherited)}", where=name)
    if Settings not in bases:
        bases.append(Settings)
    definitions: dict[str, Any] = {key: (_annotated(info), _field(info)) for key, info in fields.items()}
    try:
        return create_model(name, __base__=tuple(bases), **definitions)  # type: ignore[arg-type]
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise ConfigError(
            f"a parameter has a type that no file or command line can give: {str(error).splitlines()[0]}",
            where=name,
            fix="pass it in `skip=`",
        ) from error


def arguments(function: Callable[..., Any], settings: BaseModel, *, skip: Sequence[str] = ()) -> dict[str, Any]:
    """The part of `settings` that `function` declares: what to pass as `function(..., **arguments(...))`."""
    return {key: getattr(settings, key) for key in _keyword_only(function) if key not in skip}


def _keyword_only(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _source_fields(source: Source, skip: Sequence[str]) -> dict[str, FieldInfo]:
    if isinstance(source, type) and issubclass(source, BaseModel):
        return dict(source.model_fields)
    parameters = {key: p for key, p in _keyword_only(source).items() if key not in skip}
    docs = _argument_docs(source)
    hints = _hints(source, parameters)
    fields = {}
    for key, parameter in parameters.items():
        info = FieldInfo.from_annotation(hints[key])
        if parameter.default is not inspect.Parameter.empty:
            info.default = parameter.default
        info.description = info.description or docs.get(key)
        fields[key] = info
    return fields


def _hints(function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The evaluated annotations of these parameters alone (others may name types that are not imported)."""
    wanted = {}
    where = getattr(function, "__qualname__", repr(function))
    for key, parameter in parameters.items():
        if parameter.annotation is inspect.Parameter.empty:
            raise ConfigError(f"the parameter '{key}' has no annotation, so it cannot be a setting", where=where)
        wanted[key] = parameter.annotation
    unwrapped = inspect.unwrap(function)
    holder = types.SimpleNamespace(__annotations__=wanted)
    try:
        return typing.get_type_hints(holder, globalns=getattr(unwrapped, "__globals__", {}), include_extras=True)
    except NameError as error:
        raise ConfigError(f"an annotation cannot be evaluated: {error}", where=where, fix="use `skip=`") from error


def _merge(old: FieldInfo, new: FieldInfo, where: str) -> FieldInfo:
    if old.annotation != new.annotation:
        raise ConfigError(
            "two sources declare this setting with different types",
            where=where,
            got=type_text(new.annotation),
            expected=type_text(old.annotation),
        )
    merged = FieldInfo(
        annotation=new.annotation,
        default=new.default,
        default_factory=new.default_factory,
        description=new.description or old.description,
    )
    merged.metadata = [*old.metadata, *(m for m in new.metadata if m not in old.metadata)]
    return merged


def _annotated(info: FieldInfo) -> Any:
    annotation: Any = info.annotation
    for constraint in info.metadata:
        annotation = Annotated[annotation, constraint]
    return annotation


def _field(info: FieldInfo) -> Any:
    if info.default_factory is not None:
        return Field(default_factory=info.default_factory, description=info.description)
    default = ... if info.default is PydanticUndefined else info.default
    return Field(default, description=info.description)


def _argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """The `Args:` section of a Google-style docstring; `a, b: text` and `a / b: text` document both."""
    docs: dict[str, str] = {}
    lines = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?:[ \t]+.*(?:\n|$)|\n)*)", lines, re.MULTILINE)
    current: list[str] = []
    for line in section.group(1).splitlines() if section else ():
        entry = re.match(r"^ {2,4}([*\w]+(?:\s*[,/]\s*\w+)*)(?:\s*\([^)]*\))?:\s*(.*)$", line)
        if entry:
            current = [k.strip("* ") for k in re.split(r"[,/]", entry.group(1))]
            docs.update(dict.fromkeys(current, entry.group(2).strip()))
        elif line.strip():
            docs.update({key: f"{docs[key]} {line.strip()}".strip() for key in current})
    return docs


# ------------------------------------------------------------------------------------------------- showing a model


def describe(model: type[BaseModel]) -> list[Setting]:
    """Returns every setting of a model: key (dotted inside records), type with its range, default, one line of doc."""
    rows = []
    records = records_of(model)
    for key, info in model.model_fields.items():
        if key in records:
            rows += [row._replace(key=f"{key}.{row.key}") for row in describe(records[key])]
            continue
        default = REQUIRED if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
        rows.append(Setting(key, type_text(info.annotation, info.metadata), default, info.description or ""))
    return rows


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type as a user reads it: `float > 0`, `'a' | 'b'`, `int | null`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0], [*args[1:], *metadata])
    if origin is Literal:
        text = " | ".join(repr(a) for a in args)
    elif origin in (Union, types.UnionType):
        tags = [_variant(a) for a in args if isinstance(a, type) and issubclass(a, BaseModel)]
        if len(tags) == len(args) and all(tags):
            text = "{" + tags[0].partition(" ")[0] + " " + " | ".join(t.partition(" ")[2] for t in tags) + ", ...}"
        else:
            text = " | ".join(type_text(a) for a in args)
    elif annotation is None or annotation is type(None):
        text = "null"
    elif origin is not None and args:
        inner = ", ".join("..." if a is Ellipsis else type_text(a) for a in args)
        text = f"{getattr(origin, '__name__', origin)}[{inner}]"
    else:
        text = getattr(annotation, "__name__", str(annotation))
    limits = ", ".join(_limits(metadata))
    return f"{text} {limits}" if limits else text


def _limits(metadata: Sequence[Any]) -> Iterator[str]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}
    lengths = {"min_length": "at least {} items", "max_length": "at most {} items", "pattern": "matching {}"}
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _limits(item.metadata)
            continue
        for name, sign in signs.items():
            if getattr(item, name, None) is not None:
                yield f"{sign} {getattr(item, name)}"
        for name, text in lengths.items():
            if getattr(item, name, None) is not None:
                yield text.format(getattr(item, name))


# ------------------------------------------------------------------------------------------------ checking a mapping


def parse_settings(
    model: type[M],
    values: Mapping[str, Any],
    where: str,
    *,
    places: Mapping[str, str] | None = None,
    written: Mapping[str, str] | None = None,
) -> M:
    """`values` as an instance of `model`, or a `ConfigError`.

    Args:
        model: from `settings_model`.
        values: from YAML, the command line or Python; keys of records with or without the record's name.
        where: what the settings belong to, e.g. the stage's name.
        places: `file:line` of each key (dotted for nested ones; "" for the whole), shown in front.
        written: dotted keys of records as the user wrote them, where `values` have them nested already.
    """
    try:
        nested, spelt = canonical(model, values)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}.{error.where}", got=error.got, fix=error.fix) from None
    try:
        return model.model_validate_json(json.dumps(nested, default=str), strict=True)
    except ValidationError as error:
        raise explained(model, error, where, places or {}, {**spelt, **(written or {})}) from None


def explained(
    model: type[BaseModel],
    error: ValidationError,
    where: str,
    places: Mapping[str, str],
    written: Mapping[str, str],
) -> ConfigError:
    """The first problem of a validation as a `ConfigError`, which also names the other settings that are wrong.

    Args:
        where, places, written: as for `parse_settings`.
    """
    problems = error.errors(include_url=False)
    locs = [p["loc"] for p in problems]  # of a union the member that a value went into is meant, not the others
    problems = [p for p in problems if not (p["type"].endswith("_type") and _outdone(p["loc"], locs))]
    problems.sort(key=lambda p: p["type"] != "extra_forbidden")  # a misspelt key explains the missing one
    names = [_written(model, problem, written) for problem in problems]
    first, key = problems[0], names[0]
    others = sorted({_top(model, name) for name in names} - {_top(model, key), ""})
    also = f"wrong too: {', '.join(others)}" if others else ""
    keys = (key, ".".join(_resolve(model, first["loc"])[0]), _top(model, key), "")
    place = next((p for p in (places.get(k) for k in keys) if p), "")
    shown = key if first["type"] == "extra_forbidden" else _top(model, key)
    spot = f"{where}.{shown}" if shown else where
    return _explain(model, first, key, where=f"{place}: {spot}" if place else spot, also=also)


def _outdone(loc: tuple[Any, ...], others: Sequence[tuple[Any, ...]]) -> bool:
    """True if another problem lies deeper in the same setting than this one, which names a member of its union."""
    return any(len(other) > len(loc) and other[: len(loc) - 1] == loc[:-1] for other in others) and len(loc) > 1


def _written(model: type[BaseModel], problem: Any, written: Mapping[str, str]) -> str:
    """The key of a problem as the user wrote it, or would: `data` for the missing `data.path`."""
    path, _ = _resolve(model, problem["loc"])
    record = records_of(model).get(path[0]) if path else None
    if record is None or len(path) == 1:
        return ".".join(path)
    head = written.get(".".join(path[:2]), path[0] if path[1] == record.main else ".".join(path[:2]))
    return ".".join([head, *path[2:]])


def _top(model: type[BaseModel], key: str) -> str:
    """The first part of a key; of a record's key also the second."""
    parts = key.split(".")
    return ".".join(parts[: 2 if parts[0] in records_of(model) else 1])


def _explain(model: type[BaseModel], problem: Any, key: str, *, where: str, also: str) -> ConfigError:
    path, owner = _resolve(model, problem["loc"])
    if problem["type"] == "extra_forbidden":
        options = list(flat_keys(owner)) if owner else []
        renamed = next((new for new in RENAMED.get(path[-1], ()) if new in options), "")
        homes = flat_keys(model).get(path[-1], []) if len(path) == 2 and path[0] in records_of(model) else []
        elsewhere = f"it is '{homes[0]}'" if homes else nearest(path[-1], options) if options else ""
        hint = f"it is called '{renamed}' now" if renamed else elsewhere
        expected = f"a setting of {_variant(owner)}" if owner and _variant(owner) else None
        fix = "; ".join(filter(None, (hint, also)))
        return ConfigError(f"unknown setting '{key}'", where=where, expected=expected, fix=fix)
    if not key:
        return ConfigError(problem["msg"], where=where, fix=also)
    nested = owner.model_fields.get(path[-1]) if owner and len(path) > 1 else None
    info = nested or model.model_fields[path[0]]
    record = records_of(model).get(path[0]) if len(path) == 1 else None
    if record is not None and record.main:  # what is written for the whole record
        info = record.model_fields[record.main]
    expected = type_text(info.annotation, info.metadata)
    if problem["type"] == "missing" and (nested or len(path) == 1):
        fix = "; ".join(filter(None, (info.description or "", also)))
        return ConfigError(f"the setting '{key}' is required", where=where, expected=expected, fix=fix)
    top = key if nested else _top(model, key)
    what = f"the setting '{top}' does not fit"
    own = problem.get("ctx", {}).get("error")
    if isinstance(own, ConfigError):  # it has parts of its own: a secret in the input is not shown
        return ConfigError(f"{what}: {own.what}", where=where, got=own.got, expected=own.expected, fix=own.fix)
    if problem["type"] in ("value_error", "assertion_error", "missing"):
        inside = "" if nested else key[len(top) + 1 :]
        what += f": {inside + ': ' if inside else ''}{problem['msg']}"
    got, fix = problem["input"], also
    if problem["type"] == "finite_number":
        what, expected = f"the setting '{top}' is not finite", f"a finite {expected}"
    if problem["type"] == "union_tag_invalid":
        tags = re.findall(r"'([^']+)'", problem["ctx"]["expected_tags"])
        fix = "; ".join(filter(None, (nearest(str(problem["ctx"]["tag"]), tags), also)))
    fix = fix or info.description or ""
    if "str" in expected and isinstance(got, int | float):
        fix = "; ".join(filter(None, (f"a text that looks like a number is written in quotes: '{got}'", also)))
    return ConfigError(what, where=where, got=f"{got!r} ({type(got).__name__})", expected=expected, fix=fix)


def _resolve(model: type[BaseModel], loc: Sequence[Any]) -> tuple[list[str], type[BaseModel] | None]:
    """(the keys as a user writes them, the record that the last one belongs to; None if it is in no record).

    A pydantic location also names the variant of a discriminated union, e.g. `judge.api.url` for `judge.url`.
    """
    path: list[str] = []
    owner: type[BaseModel] | None = None
    keyed = False
    inner: dict[str, type[BaseModel]] = {"": model}
    for part in map(str, loc):
        if part in inner and len(inner) > 1:
            inner = {"": inner[part]}
            continue
        if "[" in part:  # the name of a union's member, e.g. `dict[str,RewardSource]` or the tag `[parts]`
            keyed = keyed or part == "[parts]"
            continue
        if keyed:
            path.append(part)  # a key of a mapping of records
            keyed = False
            continue
        path.append(part)
        if part.isdigit() and path[:-1]:
            continue  # an item of a list of records
        owner = inner.get("")
        info = owner.model_fields.get(part) if owner else None
        inner = _variants(info.annotation) if info else {}
        keyed = info is not None and any(get_origin(a) is dict for a in (info.annotation, *get_args(info.annotation)))
        if info is not None and not inner and len(path) == 2 and path[0] in records_of(model):
            break  # a plain setting of a record: what follows names a member of its union or an item
    return path, owner


def _variants(annotation: Any) -> dict[str, type[BaseModel]]:
    """The record in a setting's type under "", or the records of a union by their tag."""
    models = list(dict.fromkeys(_models_in(annotation)))
    if len(models) == 1:
        return {"": models[0]}
    return {_variant(m).rpartition(" ")[2]: m for m in models}


def _variant(model: type[BaseModel]) -> str:
    """`kind: api` for a record whose field `kind` has one possible value; "" for others."""
    for key, info in model.model_fields.items():
        choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        if len(choices) == 1:
            return f"{key}: {choices[0]}"
    return ""


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
