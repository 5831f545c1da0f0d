"""MKL or oneDNN: times both on a model's own shapes, once for each machine, version of torch and number of threads.

The result is kept in memory and in the user's cache, so that all processes of a machine make the same choice: the two
libraries differ in the last bits. A stage keeps its choice in its config.json as well (`stages.backend`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tiltyard.kernels import fused_ops, library

Shapes = tuple[tuple[int, int], ...]  # (in, out) of linear layers
VERSION = 1  # of the measurement: raised when earlier results cannot be compared any more
GAIN = 1.03  # oneDNN is used from this speed-up on; torch's own product where the two are about equal
LARGEST = 1024  # numbers of a side that are measured: the ratio changes little beyond
MOST_SHAPES = 3
MIN_ROWS, MAX_ROWS = 128, 1024  # tokens: a micro-batch's, fewer of a large layer
MULTIPLICATIONS = 1 << 25  # of a product, about
REPEATS = 3  # of each half of a measurement
SECONDS = 0.1  # of each half, about
AGREE = 1.2  # largest ratio of the two halves' results
_known: dict[str, float | None] = {}


def shapes_of(module: nn.Module) -> Shapes:
    """Returns the distinct shapes of a backbone's linear layers, at most LARGEST a side, the MOST_SHAPES largest."""
    layers = (part for part in module.modules() if isinstance(part, nn.Linear))
    return _largest((layer.in_features, layer.out_features) for layer in layers)


def shapes_of_decoder(width: int, heads: int, kv_heads: int, inner: int, head_dim: int | None = None) -> Shapes:
    """Returns the same as `shapes_of` for the blocks of a decoder of the Llama family with these sizes."""
    d = head_dim or width // heads
    query, key = heads * d, kv_heads * d
    return _largest([(width, query), (width, key), (query, width), (width, inner), (inner, width)])


def _largest(shapes: Iterable[tuple[int, int]]) -> Shapes:
    distinct = {(min(i, LARGEST), min(o, LARGEST)) for i, o in shapes}
    return tuple(sorted(distinct, key=lambda shape: (-shape[0] * shape[1], shape))[:MOST_SHAPES])


def onednn_speedup(shapes: Shapes) -> float | None:
    """Returns MKL's time over oneDNN's for the products of a training step with layers of these shapes.

    None without shapes, or where other work on the machine makes two halves of the measurement differ: then nothing is
    kept on the machine, and this process keeps to MKL.
    """
    if not shapes:
        return None
    known, key = known_speedup(shapes), _key(shapes)
    if known is None and key not in _known:
        measured = _measured(shapes)
        _known[key] = None if measured is None else _keep(shapes, measured)
    return _known[key]


def known_speedup(shapes: Shapes) -> float | None:
    """Returns the speedup measured before in this process or on this machine, or None."""
    key = _key(shapes)
    if key not in _known:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            _known[key] = float(json.loads(_path(key).read_text(encoding="utf-8"))["speedup"])
    return _known.get(key)


def _key(shapes: Shapes) -> str:
    text = f"{VERSION} {torch.__version__} {torch.get_num_threads()} {shapes}".encode()
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


def _measured(shapes: Shapes) -> float | None:
    """Times both libraries in turns, product by product: the ratio of the sums of each product's best time.

    The best of several short runs, because other work on the machine only ever adds to a time. With one thread its own
    time is taken, which others' work hardly changes. None if the first and the second half of the runs disagree.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    halves = [[0.0, 0.0], [0.0, 0.0]]  # by half, by library: the sum over products of the best time
    with torch.no_grad():
        pairs = list(_products(shapes))
        for pair in pairs:
            for product in pair:
                product()  # builds oneDNN's kernel
        for totals in halves:
            best = [[math.inf, math.inf] for _ in pairs]
            end = time.perf_counter() + SECONDS
            for repeat in range(REPEATS):
                if repeat and time.perf_counter() > end:
                    break
                for pair, times in zip(pairs, best, strict=True):
                    for index, product in enumerate(pair):
                        began = clock()
                        product()
                        times[index] = min(times[index], clock() - began)
            totals[:] = [sum(times[index] for times in best) for index in (0, 1)]
    ratios = [mkl / onednn for mkl, onednn in halves]
    if max(ratios) > AGREE * min(ratios):
        return None
    return min(half[0] for half in halves) / min(half[1] for half in halves)


def _products(shapes: Shapes) -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    """Yields a layer's three products (forward, gradients of input and weight), by torch and by oneDNN's backend."""
    generator = torch.Generator().manual_seed(0)
    for i, o in shapes:
        rows = min(max(MIN_ROWS, MULTIPLICATIONS // (i * o)), MAX_ROWS)
        x, dout = (torch.randn(rows, n, generator=generator) for n in (i, o))
        weight = torch.randn(o, i, generator=generator)
        yield partial(functional.linear, x, weight), partial(_onednn, x, weight)
        yield partial(functional.linear, dout, weight.t()), partial(_onednn, dout, weight.t())
        if library.load().handle is not None:  # without the C kernels both leave it to torch
            grad = torch.zeros(o, i)
            yield partial(torch.mm, dout.t(), x), partial(fused_ops.weight_grad_, grad, dout, x)


def _onednn(x: torch.Tensor, weight: torch.Tensor) -> Any:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
