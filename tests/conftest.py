"""One thread: bit-equal results, and room for the other processes that some tests start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `tests.reference`, however pytest was started
