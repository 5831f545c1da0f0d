"""Errors as part of the product: what went wrong, where, what was got, what was expected, what to do.

Every class also inherits the standard exception a caller would expect, so `except ValueError` keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TiltyardError(Exception):
    """Base of all errors that Tiltyard raises on purpose.

    Args:
        what: one sentence without a full stop, e.g. "field 'chosen' is missing".
        where: `file:line`, a row id, a setting's key, a stage.
        got / expected: shown verbatim; both optional.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", got: object = None, expected: object = None, fix: str = ""):
        self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.got is not None:
            parts.append(f"  got:      {self.got}")
        if self.expected is not None:
            parts.append(f"  expected: {self.expected}")
        if self.fix:
            parts.append(f"  to do:    {self.fix}")
        return "\n".join(parts)


class ConfigError(TiltyardError, ValueError):
    """A setting, stage, method or preset that does not exist, does not fit or contradicts another."""


class DataError(TiltyardError, ValueError):
    """A file or row that cannot be used; `where` is `file:line`."""


class ModelError(TiltyardError, ValueError):
    """A model that cannot be loaded or cannot do what was asked of it."""


class CompositionError(TiltyardError, TypeError):
    """An algorithm whose pieces do not fit together (a loss needs a column that no prepare step writes)."""


class ScoringError(TiltyardError, ValueError):
    """A reward function or scorer that gave no usable score; `where` names the row and the response."""


class NonFiniteError(TiltyardError, FloatingPointError):
    """A loss, gradient, weight or distribution that is NaN or infinite. It was not learnt from, saved or sampled."""


class CheckpointError(TiltyardError, OSError):
    """A checkpoint that could not be written or read. The last good one stands."""


class MissingDependency(TiltyardError, ImportError):
    """An optional package is needed and not installed."""


# nothing that ran could be mended by running it again: the command line ends with 2 in place of 1
WRONG_INPUT = (ConfigError, DataError, ModelError, CompositionError, MissingDependency)


def nearest(name: str, options: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest option, or the list of options when none is close."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "one of: " + ", ".join(options)
