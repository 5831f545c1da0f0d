"""Comparisons here are in real float64 (see tests/reference/float64.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.reference.float64 import exact_norms


@pytest.fixture(autouse=True)
def _exact_norms() -> Iterator[None]:
    with exact_norms():
        yield
