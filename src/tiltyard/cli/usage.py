"""Wrong options and arguments, and a disk that takes no more, in the form of every other error."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

import typer

from tiltyard.errors import ConfigError, TiltyardError, nearest

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # click's or typer's own copy of it, by version

_WORDING = re.compile(r"^(Value error, )?(Input should be |.* is not (?=one of ))|, unable to parse.*|\.$")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_PLACE = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


def explained_disk(error: OSError) -> TiltyardError | None:
    """Returns the error for a call that a file system refused; None for other errors of the system."""
    where, got = str(error.filename or "a file"), os.strerror(error.errno or 0)
    if error.errno in _FULL:
        fix = "free some disk space and run the same command again; what was there before is as it was"
        return TiltyardError("the file could not be written", where=where, got=got, fix=fix)
    if error.errno in _FORBIDDEN:
        fix = "name another place, or change who may read and write there"
        return TiltyardError("this file or folder may not be used", where=where, got=got, fix=fix)
    if error.errno in _NO_PLACE:
        fix = "name another path: a file cannot lie below a file or in place of a folder"
        return TiltyardError("this path cannot be used", where=where, got=got, fix=fix)
    return None


def explained_usage(error: Any, words: Sequence[str]) -> ConfigError | None:
    """Returns the error for a command line that cannot be read.

    Args:
        error: a `UsageError`. words: of the command line.

    Returns:
        The error to print; None if nothing was wrong, and the help was printed (a command without its verb).
    """
    context = error.ctx
    command = context.command_path if context is not None else "tiltyard"
    verb = command.removeprefix("tiltyard").strip() or next((word for word in words if word[:1] != "-"), "")
    command = f"tiltyard {verb}".strip()
    help_ = f"{command} --help"
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return None
    if type(error).__name__ == "NoSuchOption":
        unknown = error.option_name
        known = sorted(name for p in context.command.params for name in p.opts if name.startswith("--"))
        return ConfigError(
            f"there is no option {unknown}", where=verb, fix=f"{nearest(unknown, known)}; all options: {help_}"
        )
    parameter = getattr(error, "param", None)
    if parameter is None:  # such as an unknown verb, with the nearest one; an option without its value
        return ConfigError(error.message.rstrip("."), where=verb or "command line", fix=f"{help_} lists what there is")
    option = parameter.param_type_name == "option"
    name = max(parameter.opts, key=len) if option else parameter.metavar or parameter.name
    if type(error).__name__ == "MissingParameter":
        what = f"the {'option' if option else 'argument'} {name} is missing"
        usage = context.get_usage().partition(" ")[2]
        return ConfigError(what, where=verb, expected=" ".join(usage.split()), fix=f"give it; {help_} describes it")
    given = _given(parameter.opts, words) if option else None
    expected = _WORDING.sub("", error.message)
    return ConfigError(
        f"the value of {name} does not fit", where=verb, got=given, expected=expected, fix=f"{help_} describes it"
    )


def _given(names: Sequence[str], words: Sequence[str]) -> str | None:
    """The last value of an option as it stands in the command line."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in names:
            found = following
        elif word.partition("=")[0] in names and "=" in word:
            found = word.partition("=")[2]
    return None if found is None else shlex.quote(found[:200])
