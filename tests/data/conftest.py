from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `families`, which is no test

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    import os

    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        reason = f"the real data is not at {folder}"
        if os.environ.get("TILTYARD_REQUIRE_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
