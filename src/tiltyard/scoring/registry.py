"""Reward functions by name: a Python file, an installed module or an alias; and scorers built from a recipe's settings.

rewards.py:concise          function `concise` of a file, beside the recipe or in the working folder
package.module:function     function of an importable module
gold                        an alias, see `ALIASES`
{from: rule, max_words: 40} wishes about the text of a response, see `scoring.rules`
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tiltyard.errors import ConfigError, TiltyardError, nearest
from tiltyard.files import exists, reading
from tiltyard.scoring.base import Scorer
from tiltyard.scoring.functions import TIME_LIMIT, FunctionScorer
from tiltyard.scoring.parts import RewardPart, is_one_part, reward_parts
from tiltyard.scoring.rules import RULE, RuleFunction
from tiltyard.scoring.weighted import WeightedScorer

ALIASES: dict[str, str] = {  # short names of reward functions
    "gold": "tiltyard.world.reward:gold",
    "refusal": "tiltyard.scoring.refusals:refusal",
}

_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")
_MODULE = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>\w+)")


def register_alias(name: str, spec: str) -> None:
    """Makes `name` another name of the reward function `spec` (`package.module:function`)."""
    ALIASES[name] = spec


def is_function(spec: str) -> bool:
    """True if a reward setting names a function or a rule rather than a stage, a folder or a hub model."""
    return spec in ALIASES or spec == RULE or bool(_FILE.fullmatch(spec) or _MODULE.fullmatch(spec))


def function_file(spec: str, folders: Sequence[Path] = ()) -> Path | None:
    """The file in which the function `file.py:function` is defined; None for a module or an alias.

    Raises:
        ConfigError: there is no such file.
    """
    match = _FILE.fullmatch(ALIASES.get(spec, spec))
    return _find(match["file"], folders, spec) if match else None


def load_function(spec: str, folders: Sequence[Path] = ()) -> Callable[..., Any]:
    """The reward function that a recipe or a command line names.

    Args:
        spec: `file.py:function`, `package.module:function` or an alias.
        folders: where files and modules are looked for after the working folder, e.g. the recipe's folder.

    Raises:
        ConfigError: no such file, module or function, or its code fails when it is loaded.
    """
    target = ALIASES.get(spec, spec)
    if match := _FILE.fullmatch(target):
        module = _module_of_file(_find(match["file"], folders, spec), spec)
    elif match := _MODULE.fullmatch(target):
        module = _module(match["module"], folders, spec)
    else:
        raise ConfigError(
            f"'{spec}' names no reward function",
            where="reward",
            got=spec,
            expected="file.py:function, package.module:function, or one of: " + ", ".join(sorted(ALIASES)),
        )
    function = getattr(module, match["name"], None)
    if not callable(function):
        callables = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ConfigError(
            f"there is no function '{match['name']}' in {match[1]}",
            where=f"reward={spec}",
            got=None if function is None else type(function).__name__,
            fix=nearest(match["name"], callables) if callables else f"define it in {match[1]}",
        )
    return function


def build_reward(
    spec: str | Mapping[str, Any],
    load_model: Callable[[str, RewardPart], Scorer],
    *,
    name: str = "",
    folders: Sequence[Path] = (),
    time_limit: float | None = TIME_LIMIT,
) -> Scorer:
    """The scorer that the setting `reward` describes.

    Args:
        spec: a stage, folder, hub model, function or address; or one part, `{from: rule, max_words: 40}`; or a
            weighted sum `{NAME: {from: SOURCE, weight: W}}`, whose parts are logged as `reward/NAME`. A part of a sum
            may be written as its source alone (weight 1).
        load_model: (name of the metric, part) -> the scorer of a part that is a reward model or a service.
        name: of the metric of a single source; the function's own, `rule` or `reward` by default.
        folders: where functions are looked for, see `load_function`.
        time_limit: seconds a call of a function may take.

    Raises:
        ConfigError: an unknown key, a weight that is no number, or a function that cannot be loaded.
    """
    parts = reward_parts(spec)
    single = isinstance(spec, str) or is_one_part(spec)
    names = [name or _metric(part.source) for part in parts.values()] if single else list(parts)
    scorers = [
        (part.weight, part_scorer(one, part, load_model, folders, time_limit))
        for one, part in zip(names, parts.values(), strict=True)
    ]
    return scorers[0][1] if single and scorers[0][0] == 1.0 else WeightedScorer(scorers)


def _metric(source: str) -> str:
    """The name of the metric of a reward that is no part of a sum: the function's own, `rule`, or else `reward`."""
    return source.rpartition(":")[2] if is_function(source) else "reward"


def part_scorer(
    name: str,
    part: RewardPart,
    load_model: Callable[[str, RewardPart], Scorer],
    folders: Sequence[Path] = (),
    time_limit: float | None = TIME_LIMIT,
) -> Scorer:
    """The scorer of one part, without its weight; arguments as for `build_reward`."""
    if part.rule is not None:
        where = "reward" if name == RULE else f"reward.{name}"
        return FunctionScorer(RuleFunction(part.rule, where), name, time_limit=None)  # patterns have their own limit
    if is_function(part.source):
        return FunctionScorer(load_function(part.source, folders), name, time_limit=time_limit)
    return load_model(name, part)


# ------------------------------------------------------------------------------------------------------ files, modules


def _find(name: str, folders: Sequence[Path], spec: str) -> Path:
    """The file, relative to the working folder or else to one of the folders."""
    candidates = [folder / name for folder in (Path.cwd(), *folders)]
    for path in candidates:
        if exists(path) and path.is_file():
            return path.resolve()
    files = sorted({p.name for path in candidates if exists(path.parent) for p in path.parent.glob("*.py")})
    raise ConfigError(
        f"there is no file {name}",
        where=f"reward={spec}",
        got="looked in " + ", ".join(dict.fromkeys(str(path.parent) for path in candidates)),
        fix=nearest(Path(name).name, files) if files else "give its path from the recipe's or the working folder",
    )


def _module_of_file(path: Path, spec: str) -> ModuleType:
    """The file as a module, loaded once for each content; its folder becomes importable, so it may import others."""
    with reading(path, ConfigError):
        content = path.read_bytes()
    name = f"tiltyard_user_{path.stem}_{hashlib.sha256(str(path).encode() + content).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    _make_importable([path.parent])
    loader = importlib.util.spec_from_file_location(name, path)
    assert loader is not None  # it is a .py file
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    try:
        loader.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception) and not isinstance(error, TiltyardError):
            raise _failed(spec, error, str(path)) from error
        raise
    return module


def _module(name: str, folders: Sequence[Path], spec: str) -> ModuleType:
    _make_importable([Path.cwd(), *folders])
    try:
        return importlib.import_module(name)
    except TiltyardError:
        raise
    except Exception as error:
        raise _failed(spec, error, name) from error


def _make_importable(folders: Sequence[Path]) -> None:
    """Appends the folders to `sys.path`: after everything installed, so that they hide nothing."""
    for folder in map(str, folders):
        if folder not in sys.path:
            sys.path.append(folder)


def _failed(spec: str, error: Exception, origin: str) -> ConfigError:

    lines = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    at = f", {Path(lines[-1].filename).name}:{lines[-1].lineno}" if lines and lines[-1].filename != __file__ else ""
    if isinstance(error, SyntaxError) and error.filename:
        at = f", {Path(error.filename).name}:{error.lineno}"
    return ConfigError(
        f"the code of the reward function cannot be loaded from {origin}",
        where=f"reward={spec}{at}",
        got=f"{type(error).__name__}: {error}",
        fix="mend the file, or install what it imports",
    )
