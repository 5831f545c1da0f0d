"""Structured choice: a server that lets a judge write nothing but one of the labels.

`structured_outputs` and `guided_choice` are vLLM's, of today and of earlier versions; a JSON schema with an enumeration
is what OpenAI and most other servers take (`response_format`). Servers refuse a field that they do not know, or ignore
it, so each way is tried once: with a question that no model answers by a number, and two numbers as the only choices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Constrain = Literal["auto", "choice", "json_schema", "none"]
Way = Literal["structured_outputs", "guided_choice", "json_schema", ""]  # "": replies are read as they come

WAYS: dict[Constrain, tuple[Way, ...]] = {
    "auto": ("structured_outputs", "guided_choice", "json_schema"),
    "choice": ("structured_outputs", "guided_choice"),
    "json_schema": ("json_schema",),
    "none": (),
}
FIELDS = ("structured_outputs", "guided_choice", "response_format", "guided_json", "guided_regex")
JSON_TOKENS = 16  # of a reply in JSON; with fewer the schema is not tried
PROBE = ("7193", "7194")
_KEY = "choice"


def choice_fields(way: Way, choices: Sequence[str]) -> dict[str, Any]:
    """The fields of a request under which the reply is one of the choices."""
    if way == "structured_outputs":
        return {"structured_outputs": {"choice": list(choices)}}
    if way == "guided_choice":
        return {"guided_choice": list(choices)}
    if not way:
        return {}
    schema = {
        "type": "object",
        "properties": {_KEY: {"type": "string", "enum": list(choices)}},
        "required": [_KEY],
        "additionalProperties": False,
    }
    return {"response_format": {"type": "json_schema", "json_schema": {"name": _KEY, "strict": True, "schema": schema}}}


def probe_payload(model: str, way: Way, max_tokens: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The request that shows whether a server keeps to the choices of a way."""
    payload: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": max(max_tokens, JSON_TOKENS),
        "temperature": 0.0,
    }
    payload |= choice_fields(way, PROBE)
    return {key: value for key, value in (payload | dict(extra)).items() if value is not None}


def written_choice(text: str) -> str:
    """The choice in a reply of the JSON schema; any other text as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    chosen = value.get(_KEY) if isinstance(value, dict) and len(value) == 1 else None
    return chosen if isinstance(chosen, str) else text
