"""Names of a package that are imported when they are first used (PEP 562), so that importing it is light."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package: it imports a name from the module that defines it.

    Args:
        package: its `__name__`. homes: {module: names}; no name may be that of a module of the package, which hides it.

    Raises (when it is called):
        AttributeError: an unknown name.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find
