"""Fields of a `Group` with a preference written as `ranks` or `shares`."""

from __future__ import annotations

from typing import Any

from tiltyard.types import Preference


def fields_of(ranks: Any = None, shares: Any = None, **fields: Any) -> dict[str, Any]:
    """The fields with `preference` in place of ranks or shares; shares go before ranks."""
    if shares is not None:
        return {**fields, "preference": Preference(shares=shares)}
    return fields if ranks is None else {**fields, "preference": Preference(ranks=ranks)}
