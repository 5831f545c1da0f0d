"""The data of the page: one JSON island that no text can leave, and the hashes that the page's policy allows."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def island(value: Any) -> str:
    """JSON in which no character begins or ends markup: inside `<script type="application/json">` it stays data.

    Raises:
        ValueError: a number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in ESCAPES.items():  # they occur in strings alone, where the escape means the same
        text = text.replace(character, escape)
    return text.encode("utf-8", "replace").decode("utf-8")


def size(value: Any) -> int:
    """Bytes of a value in the island."""
    return len(island(value).encode())


def source_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy allows one inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
