"""A recipe as commented YAML: every choice with its reason behind it."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from tiltyard.advice.parts import StageAdvice

WIDTH = 118
_PLAIN = re.compile(r"[A-Za-z_/.][\w/.+-]*")  # texts that YAML reads as texts without quotes
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "nan", "inf", ".nan", ".inf"}


def recipe_text(name: str, facts: Sequence[str], stages: Sequence[StageAdvice]) -> str:
    """The recipe: facts as comments, then the stages."""
    lines = ["# Run it with: tiltyard run FILE; it goes on where it stopped. Change what you like."]
    for fact in facts:
        lines += textwrap.wrap(_one_line(fact), WIDTH, initial_indent="# ", subsequent_indent="#   ")
    lines += [f"name: {yaml_value(name)}", "stages:"]
    for stage in stages:
        lines.append(f"  # {_one_line(stage.does)}")
        lines.append(f"  - {stage.name}:")
        if stage.kind != stage.name:
            lines.append(f"      method: {stage.kind}")
        for key, choice in stage.settings.items():
            lines.append(_line(f"      {key}: {yaml_value(choice.value)}", choice.why))
    return "\n".join(lines) + "\n"


def yaml_value(value: Any) -> str:
    """A value in YAML's flow style, read back as itself."""
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if plain else "".join(map(_escaped, json.dumps(value, ensure_ascii=False)))
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, dict):
        inner = ", ".join(f"{yaml_value(str(key))}: {yaml_value(one)}" for key, one in value.items())
        return "{" + inner + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_value, value)) + "]"
    return str(value)


def _escaped(c: str) -> str:
    """A character of a quoted text; YAML's escape where it is not printable."""
    return c if c.isprintable() else f"\\U{ord(c):08x}"


def _float(value: float) -> str:
    text = repr(value)
    return text if "." in text or "e" in text else text + ".0"


def _line(setting: str, why: str) -> str:
    return f"{setting:<40} # {_one_line(why)}" if why else setting


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
