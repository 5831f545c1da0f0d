"""Every test of this folder compares in real float64."""

import pytest

from .float64 import exact_norms


@pytest.fixture(autouse=True)
def _exact_norms():
    with exact_norms():
        yield
