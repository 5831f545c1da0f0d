from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.plugin import LICENSED

sys.path.insert(0, str(Path(__file__).parent))  # for `families`, which is no test

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{LICENSED} is not beside this checkout")
    return folder
