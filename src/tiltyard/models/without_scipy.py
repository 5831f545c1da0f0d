"""Keeps scipy out of a process that trains or samples: transformers imports it with every model, for object detection.

`import transformers.modeling_utils` imports its losses for all kinds of models, and three of them import
`scipy.optimize`: 32 MiB of memory. Here these modules get a function that imports it when it is called.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def import_losses() -> None:
    """Imports the losses of transformers without scipy; does nothing if either was imported before."""
    if "transformers.loss.loss_utils" in sys.modules or "scipy.optimize" in sys.modules:
        return
    utils: Any = importlib.import_module("transformers.utils")
    is_available = utils.is_scipy_available
    if not is_available():
        return

    def hidden() -> bool:
        return False

    utils.is_scipy_available = hidden
    try:
        importlib.import_module("transformers.loss.loss_utils")
    finally:
        utils.is_scipy_available = is_available
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers.loss.") and getattr(module, "is_scipy_available", None) is hidden:
                vars(module).update(is_scipy_available=is_available, linear_sum_assignment=_linear_sum_assignment)


def _linear_sum_assignment(*args: Any, **kwargs: Any) -> Any:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(*args, **kwargs)
