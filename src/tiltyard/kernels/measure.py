"""MKL or oneDNN: times both on a model's own shapes, once for each machine, version of torch and number of threads.

The result is kept in memory and in the user's cache, so that all processes of a machine make the same choice: the two
libraries differ in the last bits. A stage keeps its choice in its config.json as well (`stages.backend`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tiltyard.kernels import library
from tiltyard.kernels.matmul import ENOUGH

Shapes = tuple[tuple[int, int], ...]  # (in, out) of linear layers
GAIN = 1.05  # oneDNN is taken from this speed-up on: torch's own product is used where the two are equal
LARGEST = 1024  # numbers of a side that are measured: the ratio changes little beyond
MOST_SHAPES = 4
ROWS = 128  # tokens
REPEATS = 5
_known: dict[str, float] = {}


def shapes_of(module: nn.Module) -> Shapes:
    """Returns the distinct shapes of a model's linear layers, at most LARGEST a side, the MOST_SHAPES largest."""
    layers = (part for part in module.modules() if isinstance(part, nn.Linear))
    return largest((layer.in_features, layer.out_features) for layer in layers)


def largest(shapes: Any) -> Shapes:
    """Returns pairs (in, out) as `onednn_speedup` measures them."""
    distinct = {(min(i, LARGEST), min(o, LARGEST)) for i, o in shapes}
    return tuple(sorted(distinct, key=lambda shape: (-shape[0] * shape[1], shape))[:MOST_SHAPES])


def onednn_speedup(shapes: Shapes) -> float:
    """Returns MKL's time over oneDNN's for forward and backward products of these shapes; 0 without shapes."""
    if not shapes:
        return 0.0
    known = known_speedup(shapes)
    if known is not None:
        return known
    _known[_key(shapes)] = _keep(shapes, _measured(shapes))
    return _known[_key(shapes)]


def known_speedup(shapes: Shapes) -> float | None:
    """Returns what was measured before in this process or on this machine, or None."""
    key = _key(shapes)
    if key not in _known:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            _known[key] = float(json.loads(_path(key).read_text(encoding="utf-8"))["speedup"])
    return _known.get(key)


def _key(shapes: Shapes) -> str:
    text = f"{torch.__version__} {torch.get_num_threads()} {shapes}".encode()
    return hashlib.sha256(library.processor() + b"\0" + text).hexdigest()[:16]


def _path(key: str) -> Path:
    folder, problem = library.cache_folder()
    if folder is None:
        raise OSError(problem)
    return folder / f"linear-{key}.json"


def _keep(shapes: Shapes, speedup: float) -> float:
    """Stores a measurement unless another process was first; returns the stored one."""
    result = {"speedup": round(speedup, 3), "shapes": shapes, "torch": torch.__version__}
    result |= {"threads": torch.get_num_threads()}
    with contextlib.suppress(OSError):
        path = _path(_key(shapes))
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            temporary.write_text(json.dumps(result), encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        return float(json.loads(path.read_text(encoding="utf-8"))["speedup"])
    return result["speedup"]  # type: ignore[return-value]


def _measured(shapes: Shapes) -> float:
    """Times both libraries in turns: the ratio of the medians."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        runs = [_products(shapes, multiply) for multiply in (functional.linear, _onednn)]
        for repeat in range(REPEATS + 1):
            for run, times in zip(runs, seconds, strict=True):
                began = time.perf_counter()
                run()
                if repeat:  # the first one builds oneDNN's kernels
                    times.append(time.perf_counter() - began)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def _products(shapes: Shapes, multiply: Callable[..., Any]) -> Callable[[], None]:
    """Returns a function that computes each layer's forward product and its input's gradient."""
    generator = torch.Generator().manual_seed(0)
    factors = []
    for i, o in shapes:
        rows = min(max(ROWS, ENOUGH // (i * o)), 4096)  # so many that oneDNN would be used
        x, dout = (torch.randn(rows, n, generator=generator) for n in (i, o))
        factors.append((x, dout, torch.randn(o, i, generator=generator)))

    def run() -> None:
        for x, dout, weight in factors:
            multiply(x, weight)
            multiply(dout, weight.t())

    return run


def _onednn(x: torch.Tensor, weight: torch.Tensor) -> Any:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
