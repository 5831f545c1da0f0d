"""One record of a source, with its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One record of a source. `where` is `file.jsonl:17` (lines count from 1) or `file.parquet:row 3`."""

    value: dict[str, Any]
    where: str
