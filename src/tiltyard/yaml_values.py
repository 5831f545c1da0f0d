"""YAML values of recipes and `key=value` arguments: the 1.2 core schema, so `no` is a text and `1e-4` a number."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from tiltyard.errors import ConfigError


class CoreLoader(yaml.SafeLoader):
    """YAML as people mean it (the 1.2 core schema): `1e-4` is a number, `no` and `2024-01-01` are texts."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - the name and type are PyYAML's

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As PyYAML's; a value that its tag does not fit (a number of thousands of digits, `!!bool x`) has a place."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            tag = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"no value of type {tag}: {error}", node.start_mark) from None


def _whole(_: CoreLoader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    value = 2**64 if len(text) > 999 else int(text, 0) if re.match(r"[-+]?0[xob]", text) else int(text)
    if not -(2**63) <= value < 2**63:  # Python refuses to read thousands of digits
        raise ValueError("a whole number beyond 64 bits (a text that looks like a number is written in quotes)")
    return value


def _real(_: CoreLoader, node: yaml.ScalarNode) -> float:
    text = node.value.replace("_", "").lower()
    special = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
    return special[text] if text in special else float(text)


_DIGITS = r"[0-9](?:_?[0-9])*"
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"[-+]?{_DIGITS}|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    (
        "float",
        rf"[-+]?(?:(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?|{_DIGITS}[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
CoreLoader.add_constructor("tag:yaml.org,2002:int", _whole)
CoreLoader.add_constructor("tag:yaml.org,2002:float", _real)


def parse_value(text: str, where: str = "") -> Any:
    """The value of a command-line `key=value`: a YAML scalar, a `[list]`, a `{mapping}` or a quoted text.

    A plain text stays as it is, colons and hashes included; nothing after `=` means null.

    Args:
        where: for the error, e.g. `--reward`.

    Raises:
        ConfigError: brackets or quotes that do not fit.
    """
    try:
        loader = CoreLoader(text if text.lstrip()[:1] in ("[", "{", "'", '"') else "")
        node = loader.get_single_node()
        if node is None:
            plain = text.strip()
            node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, plain, (True, False)), plain)
            return text if node.tag == "tag:yaml.org,2002:str" else loader.construct_document(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            f"the value cannot be read: {problem}",
            where=where,
            got=text[:200],
            expected="a word, a number, [a, b] or {key: value}",
            fix="close every bracket and quote, and put the whole into single quotes for the shell",
        ) from None


def split_assignment(text: str) -> tuple[str, Any]:
    """`key=value` as (key, value)."""
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", key):
        raise ConfigError(
            "an argument that is no assignment",
            got=text[:200],
            expected="key=value",
            fix="write the setting's name before the value, without spaces around the sign",
        )
    return key, parse_value(value, key)
