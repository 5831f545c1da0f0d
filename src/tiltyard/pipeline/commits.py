"""The commits of the code that a run uses, where it lies in a git repository: kept in `config.json` for the report."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import tiltyard

SECONDS = 3  # that git may take; without an answer nothing is kept


@cache
def commits() -> dict[str, str]:
    """{"tiltyard": commit of the package, "folder": commit of the working folder}, without those that are in none.

    A commit of files with changes ends in "+changes".
    """
    package = Path(tiltyard.__file__).resolve().parent
    found = {}
    if _git(package, "ls-files", "--error-unmatch", "__init__.py"):  # not a copy inside another repository
        found["tiltyard"] = _commit(package)
    folder = Path.cwd()
    if _git(folder, "rev-parse", "--show-toplevel") != _git(package, "rev-parse", "--show-toplevel"):
        found["folder"] = _commit(folder)
    return {name: commit for name, commit in found.items() if commit}


def _commit(folder: Path) -> str:
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    changed = commit and _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if changed else commit


def _git(folder: Path, *words: str) -> str:
    """The output of a git command; "" where it fails, takes too long, or git is missing."""
    try:
        made = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return made.stdout.strip() if made.returncode == 0 else ""
