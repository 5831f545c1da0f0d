"""What a process that trains need not load stays out of its memory, and works all the same when it is called."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from tiltyard.stages.base import load_all

load_all()
import transformers.modeling_utils

heavy = ("matplotlib", "pandas", "datasets", "scipy.optimize", "scipy.stats", "sklearn")
print([name for name in heavy if name in sys.modules])

import numpy as np
from transformers.loss import loss_for_object_detection as detection

assert detection.is_scipy_available()
assert "scipy.optimize" not in sys.modules
assert [list(x) for x in detection.linear_sum_assignment(np.array([[2.0, 1.0], [1.0, 2.0]]))] == [[0, 1], [1, 0]]
"""


def test_heavy_packages_stay_out_of_the_training_process() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"
