"""`Ref`: the target of a reference in a setting, resolved in one place for recipes, command line and data sources.

    sft                        the stage `sft` of the recipe: its `model` where a model is expected, or else its folder
    sft/groups.jsonl           a file of that stage
    data/rows.jsonl            a path, relative to the working folder or else to the recipe's; ./sft is always one
    runs/demo/sft              a folder that a stage wrote: its `model` where a model is expected
    owner/name                 a model or data set of the hub
    owner/name:config          a data set of the hub with the name of its configuration
    rewards.py:concise         a function in a file
    package.module:concise     a function in an installed module
    scheme:anything            resolved by the reader of the setting

They are tried in this order, so a stage hides a path of the same name, and an existing path hides a hub name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tiltyard.errors import ConfigError, nearest
from tiltyard.files import exists, user_path

RefKind = Literal["stage", "path", "hub", "function", "scheme"]

_IDENTIFIER = r"[A-Za-z_]\w*"
_FILE_FUNCTION = re.compile(rf"(?P<file>[^:]+\.py):(?P<name>{_IDENTIFIER})")
_MODULE_FUNCTION = re.compile(rf"(?P<module>{_IDENTIFIER}(\.{_IDENTIFIER})+):(?P<name>{_IDENTIFIER})")
_HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(:(?P<config>[\w.+-]+))?")
_HUB_LENGTH = 96  # characters that the hub allows for owner/name
_SCHEME = re.compile(r"[a-z][a-z0-9]+:\S+")
_DATA_SUFFIX = re.compile(r"\.(jsonl?|gz|zst|parquet|txt|tsv|ya?ml|csv|py|safetensors|gguf)$", re.IGNORECASE)


@dataclass(frozen=True)
class Ref:
    """The target of a reference.

    Attributes:
        text: as the user wrote it.
        kind: which of the forms above it has.
        name: of the stage, the hub's repository (`owner/name`) or the function; "" for paths and schemes.
        rest: the file inside the stage, the hub data set's configuration, or the function's module; "" if none.
        path: where an existing path is, or the file that holds the function (None if its module cannot be found).
    """

    text: str
    kind: RefKind
    name: str = ""
    rest: str = ""
    path: Path | None = None

    @classmethod
    def of(cls, text: str, *, stages: Collection[str] = (), folder: Path | None = None, where: str = "") -> Ref:
        """Resolves a text.

        Args:
            stages: names of the recipe's stages.
            folder: the recipe's folder; relative paths are also looked up there.
            where: for the error, e.g. `recipe.yaml:7: sft.data`.

        Raises:
            ConfigError: the text refers to nothing; it suggests the nearest stage or file.
        """
        ref = cls.find(text, stages=stages, folder=folder)
        if ref is None:
            function = _FILE_FUNCTION.fullmatch(text)
            raise not_found(function["file"] if function else text, where, stages)
        return ref

    @classmethod
    def find(cls, text: str, *, stages: Collection[str] = (), folder: Path | None = None) -> Ref | None:
        """Resolves a text; None if it refers to nothing."""
        head, _, rest = text.partition("/")
        if head in stages:
            return cls(text, "stage", head, rest)
        path = existing_path(text, folder)
        if path is not None:
            return cls(text, "path", path=path)
        if match := _FILE_FUNCTION.fullmatch(text):
            file = existing_path(match["file"], folder)
            return None if file is None else cls(text, "function", match["name"], match["file"], file)
        if match := _MODULE_FUNCTION.fullmatch(text):
            return cls(text, "function", match["name"], match["module"], _module_file(match["module"]))
        match = _HUB.fullmatch(text)
        # below a folder that is here, `folder/name` is a misspelt path
        if (
            match
            and len(match["name"]) <= _HUB_LENGTH
            and not _DATA_SUFFIX.search(match["name"])
            and existing_path(str(Path(match["name"]).parent), folder) is None
        ):
            return cls(text, "hub", match["name"], match["config"] or "")
        return cls(text, "scheme") if _SCHEME.fullmatch(text) else None


def existing_path(text: str, folder: Path | None = None) -> Path | None:
    """Finds an existing file or folder: relative to the working folder, then to `folder`; None if there is none."""
    path = user_path(text)
    folders = [Path(), *([folder] if folder else [])]
    return next((base / path for base in folders if text and exists(base / path)), None)


def written_by_stage(path: Path, want: str) -> Path:
    """Returns the given entry (e.g. `model`) of a folder that a stage wrote; any other path as it is."""
    return path / want if want and (path / "config.json").exists() and (path / want).exists() else path


def not_found(text: str, where: str, stages: Collection[str] = ()) -> ConfigError:
    """The error for a text that names neither a stage nor a path, with the nearest name that exists."""
    path, stages = user_path(text), list(stages)
    existing = next(parent for parent in (*path.parents, Path()) if exists(parent))
    missing = path.relative_to(existing).parts[0] if text else ""
    files = [] if not existing.is_dir() else [one.name for one in existing.iterdir() if not one.name.startswith(".")]
    hints = [nearest(text.partition("/")[0], stages), nearest(missing, files)]
    close = next((hint for hint in hints if hint.startswith("did you mean")), "")
    fix = close or (
        f"stages: {', '.join(stages)}" if stages else f"there is nothing called '{missing}' in '{existing}'"
    )
    return ConfigError(f"no such stage or path: '{text}'", where=where, fix=fix)


def _module_file(module: str) -> Path | None:
    """The file of an importable module. Its packages are imported for that, the module itself is not."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None
