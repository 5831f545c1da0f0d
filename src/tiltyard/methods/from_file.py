"""Methods from a user's own file: `my_methods.py:focal_sft`, in recipes, on the command line and in Python."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from tiltyard.errors import ConfigError, TiltyardError, nearest
from tiltyard.files import reading
from tiltyard.methods.base import Method, collected
from tiltyard.runs.ref import existing_path

_SPEC = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


def is_method_file(spec: str) -> bool:
    """True if a text has the form `file.py:function`."""
    return bool(_SPEC.fullmatch(spec))


def load_method(spec: str, folder: Path | None = None, *, where: str = "") -> tuple[Method, Path]:
    """The method that a user's file defines, and the file. The methods of the package are untouched by its names.

    Args:
        spec: `file.py:function`; the function is decorated with `tiltyard.methods.base.method`.
        folder: where the file is looked for after the working folder, e.g. the recipe's.
        where: for errors, e.g. `recipe.yaml:7`.

    Raises:
        ConfigError: no such file or function, the function is no method, or the file's code fails when it is loaded.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ConfigError("this names no method of a file", where=where, got=spec, expected="file.py:function")
    path = existing_path(match["file"], folder)
    if path is None or not path.is_file():
        files = [p.name for base in (Path(), folder or Path()) for p in (base / match["file"]).parent.glob("*.py")]
        fix = nearest(Path(match["file"]).name, files) if files else "give its path from here or from the recipe"
        raise ConfigError(f"there is no file {match['file']}", where=where, got=spec, fix=fix)
    function = getattr(_module(path.resolve(), where), match["name"], None)
    method = getattr(function, "tiltyard_method", None)
    if isinstance(method, Method):
        return method, path
    methods = [n for n, v in vars(_module(path.resolve(), where)).items() if hasattr(v, "tiltyard_method")]
    if function is not None:
        raise ConfigError(
            f"'{match['name']}' of {match['file']} is no method",
            where=where,
            got=type(function).__name__,
            fix="decorate the function with tiltyard.methods.base.method",
        )
    fix = nearest(match["name"], methods) if methods else "define a function and decorate it with @method"
    raise ConfigError(f"there is no method '{match['name']}' in {match['file']}", where=where, got=spec, fix=fix)


def _module(path: Path, where: str) -> ModuleType:
    """The file as a module, loaded once for each content; its folder becomes importable, so it may import others."""
    with reading(path, ConfigError):
        content = path.read_bytes()
    digest = hashlib.sha256(str(path).encode() + content).hexdigest()[:12]
    name = f"tiltyard_methods_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it is a .py file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with collected():
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, TiltyardError) or not isinstance(error, Exception):
            raise
        raise _failed(path, error, where) from error
    return module


def _failed(path: Path, error: Exception, where: str) -> ConfigError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    return ConfigError(
        f"the code of {path.name} fails when it is loaded",
        where=f"{where}: {path}:{line}" if where else f"{path}:{line}",
        got=f"{type(error).__name__}: {error}",
        fix="mend the file, or install what it imports",
    )
