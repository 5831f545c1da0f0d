"""Reading a recipe: YAML and overrides -> checked steps. Everything that can be wrong is found before anything runs.

name: rlhf
defaults: {seed: 1}                  # given to every stage that has the setting
stages:
  - sft: {data: demonstrations.jsonl}
  - ppo: {model: sft, beta: 0.05}
  - ppo_nokl: {method: ppo, model: sft, beta: 0}     # the same kind again, under its own name
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tiltyard.config import parse_settings
from tiltyard.errors import ConfigError, nearest
from tiltyard.files import exists, read_text, user_path
from tiltyard.records import canonical, canonical_key, flat_keys, merged
from tiltyard.runs import Ref
from tiltyard.stages.base import Stage, get_stage, references
from tiltyard.yaml_values import CoreLoader, split_assignment

NAME = r"[A-Za-z0-9_][\w.-]*"
STAGE_NAME = r"[A-Za-z_][\w-]*"
LONGEST_NAME = 100  # of a run or a stage: with a time behind it and a file inside, file systems take it
COMMAND_LINE = "command line"
_KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # tags that a key may have
_LARGEST = 100_000  # values of a recipe


@dataclass(frozen=True)
class Entry:
    """A stage as written: `places` maps a (dotted) key to the `file:line` that set it."""

    name: str
    kind: str
    values: Mapping[str, Any]
    place: str = ""
    places: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[tuple[str, Any, str], ...] = ()  # (dotted key, value, where), in order


@dataclass(frozen=True)
class Recipe:
    """A recipe as written, overrides applied, nothing checked against the stages yet."""

    name: str
    entries: tuple[Entry, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    default_places: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    folder: Path | None = None


@dataclass(frozen=True)
class Step:
    """A checked stage: its settings, the earlier stages it needs and the input paths it reads."""

    name: str
    stage: Stage
    settings: BaseModel
    given: frozenset[str]  # keys that the recipe or the command line set
    uses: tuple[str, ...]  # earlier stages, in order of first mention
    inputs: tuple[tuple[str, Path], ...]  # (as written, where it is)


# ---------------------------------------------------------------------------------------------------------- reading


def find_recipe(name: str | Path) -> Path:
    """A recipe file, or one that comes with the package by its bare name."""
    path = user_path(name)
    there = exists(path)
    if there and path.is_file():
        return path
    root = Path(__file__).parent.parent / "recipes"
    packaged = {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.yaml"))}
    key = str(name).removesuffix(".yaml").removeprefix("recipes/")
    if key in packaged:
        return packaged[key]
    fix = f"the package's recipes: {nearest(key, packaged)}" if packaged else ""
    what = "the recipe is a folder" if there and path.is_dir() else "there is no such recipe"
    raise ConfigError(what, where=str(name), fix=fix)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with `stage.key=value`, `defaults.key=value` and `name=value` applied."""
    path = find_recipe(path)
    recipe = parse_recipe(read_text(path, ConfigError), str(path), folder=path.parent)
    for text in overrides:
        recipe = _override(recipe, text)
    return recipe


def parse_recipe(text: str, source: str, *, folder: Path | None = None) -> Recipe:
    """The recipe in a YAML text; `source` is the file's name for errors."""
    try:
        loader = CoreLoader(text)
        root = loader.get_single_node()
        if root is None:
            fix = "`tiltyard init` writes one for your model and data; docs/recipes.md shows one"
            raise ConfigError("the recipe is empty", where=source, expected="`name:` and `stages:`", fix=fix)
        _no_duplicates(root, source, {})
        value = loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        fix = "see this line and the one before it: an open bracket or quote, a missing `: `, other indents"
        what = f"this is no YAML: {getattr(error, 'problem', None) or error}"
        raise ConfigError(what, where=where, fix=fix) from None
    except RecursionError:
        raise ConfigError(
            "the recipe is nested too deeply", where=source, fix="a recipe has four levels or so"
        ) from None
    if not isinstance(value, dict):
        fix = "`tiltyard init` writes one for your model and data; docs/recipes.md shows one"
        expected = "`name:` and `stages:`"
        raise ConfigError(
            "a recipe is a mapping", where=f"{source}:1", got=type(value).__name__, expected=expected, fix=fix
        )
    nodes = {key.value: (key, node) for key, node in root.value}
    places = {key: _line(node, source) for key, (node, _) in nodes.items()}
    for key in value:
        if key not in ("name", "defaults", "stages"):
            fix = nearest(str(key), ("name", "defaults", "stages"))
            raise ConfigError(f"unknown key '{key}' of a recipe", where=places.get(key, source), fix=fix)
    name = value.get("name", Path(source).stem)
    defaults = value.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise ConfigError("`defaults` is a mapping of settings", where=places["defaults"], got=defaults)
    if not isinstance(value.get("stages"), list) or not value["stages"]:
        expected = "`stages:` with a list, e.g. `- sft: {data: file.jsonl}`"
        got = repr(value["stages"])[:200] if "stages" in value else f"the keys {', '.join(map(str, value))}"
        fix = "`tiltyard stages` lists the kinds of stages"
        raise ConfigError(
            "a recipe needs stages", where=places.get("stages", source), got=got, expected=expected, fix=fix
        )
    items = zip(value["stages"], nodes["stages"][1].value, strict=True)
    entries = tuple(_entry(item, node, source) for item, node in items)
    default_places = dict(_places(nodes["defaults"][1], source)) if defaults else {}
    check_name(name, places.get("name", source))
    return Recipe(str(name), entries, defaults, default_places, source, folder)


def _line(node: yaml.Node, source: str) -> str:
    return f"{source}:{node.start_mark.line + 1}"


def _no_duplicates(node: yaml.Node, source: str, sizes: dict[int, int]) -> int:
    """Checks the keys, of which YAML would let the last of two equal ones win silently, and the aliases.

    Returns the number of nodes with every alias written out; `sizes` has those of the nodes that were seen, 0 for one
    that is not complete.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ConfigError("an alias inside of what it names", where=_line(node, source), fix="write it out")
        return sizes[id(node)]
    sizes[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.tag not in _KEYS:
                    where, fix = _line(key, source), f"write it in quotes: '{key.value}'"
                    raise ConfigError("a key is a text", where=where, got=f"{key.value or 'nothing'}", fix=fix)
                if key.value in seen:
                    raise ConfigError(f"the key '{key.value}' stands here twice", where=_line(key, source))
                seen.add(key.value)
            inner.append(value)
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    sizes[id(node)] = 1 + sum(_no_duplicates(one, source, sizes) for one in inner)
    if sizes[id(node)] > _LARGEST:
        raise ConfigError("the recipe is too large with its aliases written out", where=_line(node, source))
    return sizes[id(node)]


def _places(node: yaml.Node, source: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", _line(key, source)
            yield from _places(value, source, f"{prefix}{key.value}.")


def _entry(item: Any, node: yaml.Node, source: str) -> Entry:
    place = _line(node, source)
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, dict) or len(item) != 1:
        fix = "indent the settings under the stage's name" if isinstance(item, dict) and len(item) > 1 else ""
        raise ConfigError(
            "an item of `stages` is one name with its settings",
            where=place,
            got=item,
            expected="e.g. `- sft: {data: file.jsonl}`",
            fix=fix,
        )
    name, values = next(iter(item.items()))
    if not isinstance(name, str) or not re.fullmatch(STAGE_NAME, name):
        fix = "the kind of the stage may stand inside: `- my_name: {method: sft, ...}`"
        raise ConfigError("a stage's name is letters, digits, _ and -", where=place, got=name, fix=fix)
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"the settings of '{name}' are a mapping", where=place, got=values, expected="key: value")
    values = dict(values or {})
    inner = node.value[0][1] if isinstance(node, yaml.MappingNode) else node
    return Entry(name, str(values.pop("method", name)), values, place, dict(_places(inner, source)))


def check_name(name: Any, where: str) -> None:
    """Checks the name of a run, which is the name of its folder too.

    Raises:
        ConfigError: what would lie elsewhere or is no folder's name everywhere.
    """
    if not re.fullmatch(NAME, str(name)) or len(str(name)) > LONGEST_NAME:
        raise ConfigError(
            "a run's name is a folder's name: letters, digits, _, - and .",
            where=where,
            got=repr(name),
            expected=f"1 to {LONGEST_NAME} of these, the first no - or .",
            fix="name=my_run; --runs FOLDER says where runs are kept",
        )


# --------------------------------------------------------------------------------------------------------- overrides


def _override(recipe: Recipe, text: str) -> Recipe:
    where = f"{COMMAND_LINE}: {text}"
    try:
        key, value = split_assignment(text)
    except ConfigError as error:
        error_where = where if error.where == "" else error.where
        expected = "stage.key=value" if error.expected == "key=value" else error.expected
        raise ConfigError(error.what, where=error_where, got=error.got, expected=expected, fix=error.fix) from None
    head, _, rest = key.partition(".")
    if key == "name":
        name = text.partition("=")[2].strip()
        check_name(name, where)
        return replace(recipe, name=name)
    names = [entry.name for entry in recipe.entries]
    if not rest:
        raise ConfigError("an override names a stage and a setting", where=where, expected="stage.key=value")
    if head == "defaults":
        defaults = set_key(recipe.defaults, rest, value, where)
        return replace(recipe, defaults=defaults, default_places={**recipe.default_places, **_marks(rest, where)})
    if head not in names:
        raise ConfigError(f"the recipe has no stage '{head}'", where=where, fix=nearest(head, names))
    entries = tuple(_set_entry(e, rest, value, where) if e.name == head else e for e in recipe.entries)
    return replace(recipe, entries=entries)


def _set_entry(entry: Entry, key: str, value: Any, where: str) -> Entry:
    if key == "method":
        return replace(entry, kind=str(value), place=where)
    return replace(entry, overrides=(*entry.overrides, (key, value, where)))


def _marks(key: str, where: str) -> dict[str, str]:
    parts = key.split(".")
    return {".".join(parts[: n + 1]): where for n in range(len(parts))}


def set_key(values: Mapping[str, Any], key: str, value: Any, where: str) -> dict[str, Any]:
    """A copy of `values` with the dotted `key` set."""
    result = copy.deepcopy(dict(values))
    *path, last = key.split(".")
    inner = result
    for part in path:
        if inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
        if not isinstance(inner, dict):
            raise ConfigError(f"'{part}' has no settings of its own", where=where, got=inner)
    inner[last] = value
    return result


# ---------------------------------------------------------------------------------------------------------- checking


def check(recipe: Recipe) -> list[Step]:
    """Every stage validated: kinds, names, settings, references. Reads nothing but file names."""
    check_name(recipe.name, recipe.source or "name")
    names: list[str] = []
    stages: list[Stage] = []
    for entry in recipe.entries:
        if not re.fullmatch(STAGE_NAME, entry.name) or len(entry.name) > LONGEST_NAME:
            expected = f"1 to {LONGEST_NAME} letters, digits, _ and -"
            raise ConfigError("this is no name of a stage", where=entry.place, got=repr(entry.name), expected=expected)
        if entry.name in names:
            fix = f"give it another name: `- {entry.name}_2: {{method: {entry.kind}, ...}}`"
            raise ConfigError(f"two stages are called '{entry.name}'", where=entry.place, fix=fix)
        names.append(entry.name)
        stages.append(_kind(entry, recipe.folder))
    for key in recipe.defaults:
        options = {k for stage in stages for k in flat_keys(stage.settings)}
        if key not in options:
            where = recipe.default_places.get(key, recipe.source)
            raise ConfigError(f"no stage of this recipe has a setting '{key}'", where=where, fix=nearest(key, options))
    pairs = zip(recipe.entries, stages, strict=True)
    return [_check_entry(recipe, entry, stage, names) for entry, stage in pairs]


def _kind(entry: Entry, folder: Path | None) -> Stage:
    try:
        stage = get_stage(entry.kind, where=entry.place, folder=folder)
    except ConfigError as error:
        if entry.kind == entry.name:
            error.fix += f"; a stage with a name of its own says its kind: `- {entry.name}: {{method: ppo, ...}}`"
            raise ConfigError(error.what, where=entry.place, fix=error.fix) from None
        raise
    if entry.kind != entry.name:
        try:
            get_stage(entry.name)
        except ConfigError:
            return stage
        raise ConfigError(f"a stage called '{entry.name}' cannot be of kind '{entry.kind}'", where=entry.place)
    return stage


def _check_entry(recipe: Recipe, entry: Entry, stage: Stage, names: Sequence[str]) -> Step:
    values, written, places = _values(recipe, entry, stage.settings)
    settings = parse_settings(stage.settings, values, entry.name, places=places, written=written)
    earlier = names[: list(names).index(entry.name)]
    uses: dict[str, None] = {}
    inputs: dict[str, Path] = dict(stage.files)
    for key, value in references(stage, settings):
        spelt = written.get(key, key)
        place = places.get(spelt) or places.get(key.partition(".")[0]) or entry.place
        spot = f"{place}: {entry.name}.{spelt}" if place else f"{entry.name}.{spelt}"
        ref = Ref.of(value, stages=names, folder=recipe.folder, where=spot)
        if ref.path is not None:
            inputs[value] = ref.path
        elif ref.name in earlier and ref.kind == "stage":
            uses[ref.name] = None
        elif ref.kind == "stage":
            what = "names itself" if ref.name == entry.name else f"names '{ref.name}', a later stage"
            expected = f"an earlier stage ({', '.join(earlier)}) or a path" if earlier else "a path"
            fix = "move that stage before this one" if ref.name != entry.name else "name another stage"
            raise ConfigError(f"the stage '{entry.name}' {what}", where=spot, got=value, expected=expected, fix=fix)
    return Step(entry.name, stage, settings, frozenset(written), tuple(uses), tuple(inputs.items()))


def _values(
    recipe: Recipe, entry: Entry, model: type[BaseModel]
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """(the values of a stage with records nested, dotted key -> as it was written, as written -> place).

    The recipe's defaults come first, then the stage's own values, then overrides.
    """
    keys = flat_keys(model)
    shared = {k: v for k, v in recipe.defaults.items() if k in keys}
    try:
        below, above = canonical(model, shared), canonical(model, entry.values)
    except ConfigError as error:
        place = entry.places.get(error.where, entry.place)
        spot = f"{place}: {entry.name}.{error.where}" if place else f"{entry.name}.{error.where}"
        raise ConfigError(error.what, where=spot, got=error.got, fix=error.fix) from None
    values, written = merged(below[0], above[0], model), {**below[1], **above[1]}
    places = {"": entry.place, **recipe.default_places, **entry.places}
    for key, value, where in entry.overrides:
        dotted = canonical_key(model, key)
        values = set_key(values, dotted, value, where)
        written[dotted] = key
        places |= _marks(key, where)
    return values, written, places
