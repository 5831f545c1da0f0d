"""The parts of a model card: those that training wrote, which belong to the model, and those that came later."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

NAME = "README.md"
MEASURED, COST = "## Measured", "## Cost of training"
HEAD = re.compile(r"\A---[ \t]*\n(.*?\n)---[ \t]*(?:\n|\Z)", re.DOTALL)  # the YAML between its marks
_SECTION = re.compile(r"^## (?:Measured: |Cost of training\n).*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_INDEX = re.compile(r"^model-index:\n(?:[ -].*\n)*", re.MULTILINE)


def without_measured(text: str) -> str:
    """A card without its cost and without what was measured after training: a measured model is the same model."""
    if not _SECTION.search(text):
        return text
    found = HEAD.match(text)
    head, body = (text[: found.end()], text[found.end() :]) if found else ("", text)
    return _INDEX.sub("", head) + _SECTION.sub("", body)


def card_digest(path: Path) -> str:
    """The digest of a card's lasting parts; of any other README.md that of the file."""
    data = path.read_bytes()
    data = without_measured(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    return hashlib.sha256(str(len(data)).encode() + data).hexdigest()
