"""`tiltyard bench`: time, arithmetic and memory of a method on the user's model and data.

The stage is composed as by `tiltyard train`, and the same training loop runs for a few steps under the profiler
(`tiltyard.profiler`). Nothing is stored: no checkpoint, no model.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from tiltyard.errors import ConfigError, nearest
from tiltyard.inputs.settings import FileSettings, StageSettings
from tiltyard.kernels.base import Backend
from tiltyard.kernels.library import KernelFlop
from tiltyard.kernels.matmul import linear
from tiltyard.methods import METHODS
from tiltyard.models.load import pick_device
from tiltyard.pipeline.recipe import COMMAND_LINE, Entry, Recipe, check
from tiltyard.pipeline.state import package_version
from tiltyard.profiler import REST, Profiler, Step, peak_memory_mib
from tiltyard.records import part
from tiltyard.stages.base import StageContext
from tiltyard.stages.train import compose
from tiltyard.training.fit import fit

PARTS = ("sample", "score", "forward", "backward", "optimiser", REST)
FIXED = ("steps", "save_every", "eval_every", "sample_every")  # settings that a measurement decides itself


def measure(method: str, values: Mapping[str, Any], *, steps: int = 5, warmup: int = 2) -> dict[str, Any]:
    """Measures a method for `warmup` + `steps` + 1 steps: time in the middle ones, arithmetic in the last.

    Args:
        method: of `tiltyard methods`. values: its stage's settings.

    Returns:
        `seconds` a step; `parts`, which add up to it, each with seconds, share, gflop and share_of_peak; `within`,
        seconds of the parts' own parts; tokens_per_second (trained: packed tokens of the updates; sampled),
        `peak_gflops` of a matrix product on this machine, `share_of_peak`, `peak_memory_mib`, and what ran.

    Raises:
        ConfigError: an unknown method or setting, or a setting that a measurement decides itself.
    """
    settings, context = _stage(method, values, steps + warmup + 1)
    with tempfile.TemporaryDirectory(prefix="tiltyard-bench-") as folder:
        run_folder = Path(folder) / "bench"  # caches are written beside it
        context = replace(context, run_folder=run_folder, folder=run_folder / method)
        context.folder.mkdir(parents=True)
        work = compose(METHODS[method], context, settings)
        models, run = work.models, settings.model_copy(update={"steps": steps + warmup + 1})
        flops = FlopCounter(steps + warmup)
        device = pick_device(settings.models.device)
        watch = Profiler({"seconds": time.perf_counter, "gflop": flops}, _waits(device))
        try:
            with watch:
                fit(work.algorithm, models, run, sinks=[flops])
        finally:
            flops.close()
    report = summarise(watch.steps[warmup:-1], watch.steps[-1], gemm_gflops(device, settings.models.dtype))
    policy = models.get(METHODS[method].trains[0])
    return report | {
        "method": method,
        "model": str(getattr(settings, "model", "")),
        "parameters": sum(p.numel() for p in policy.module.parameters()),
        "models_in_memory": models.in_memory,
        "device": str(device),
        "dtype": settings.models.dtype,
        "threads": torch.get_num_threads(),
        "peak_memory_mib": _peak_mib(device),
        "versions": {
            "tiltyard": package_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _stage(method: str, values: Mapping[str, Any], steps: int) -> tuple[StageSettings, StageContext]:
    """Returns the validated settings of a stage of `steps` steps, and a context without folders."""
    if method not in METHODS:
        raise ConfigError(f"'{method}' is no training method", where="--method", fix=nearest(method, METHODS))
    for key in FIXED:
        if key in values:
            raise ConfigError(
                f"bench sets '{key}' itself", where=f"{COMMAND_LINE}: {key}", fix="use --steps, or leave it out"
            )
    given = {**values, "steps": steps, "save_every": 0}
    places = dict.fromkeys(given, COMMAND_LINE)
    recipe = Recipe("bench", (Entry(method, method, given, COMMAND_LINE, places),))
    settings = part(check(recipe)[0].settings, StageSettings)
    if isinstance(settings, FileSettings) and not settings.tokens_per_step and not settings.data.limit:
        rows = settings.data.model_copy(update={"limit": settings.prompts_per_step * steps})  # no more than are used
        settings = settings.model_copy(update={"data": rows})
    return settings, StageContext("bench", method, Path(), Path(), console=Console(quiet=True))


def summarise(timed: Sequence[Step], counted: Step, peak: float) -> dict[str, Any]:
    """Averages the timed steps; the arithmetic of the counted step is scaled to their number of tokens."""
    n = len(timed)
    parts: dict[str, dict[str, float]] = {name: {"seconds": 0.0, "gflop": 0.0} for name in PARTS}
    within: dict[str, float] = {}
    for step in timed:
        for name, gauges in step.parts.items():
            kind, _, rest = name.partition("/")
            parts.setdefault(kind, {"seconds": 0.0, "gflop": 0.0})["seconds"] += gauges["seconds"] / n
            if rest:
                within[name] = within.get(name, 0.0) + gauges["seconds"] / n
    tokens = {name: sum(step.counts.get(name, 0.0) for step in timed) / n for name in ("tokens", "sampled")}
    scale = tokens["tokens"] / counted.counts["tokens"] if counted.counts.get("tokens") else 1.0
    for name, gauges in counted.parts.items():
        parts.setdefault(name.partition("/")[0], {"seconds": 0.0, "gflop": 0.0})["gflop"] += scale * gauges["gflop"]
    seconds = sum(row["seconds"] for row in parts.values())
    for row in parts.values():
        row["share"] = row["seconds"] / seconds
        row["share_of_peak"] = row["gflop"] / row["seconds"] / peak if row["seconds"] else 0.0
    gflop = sum(part["gflop"] for part in parts.values())
    return {
        "seconds": seconds,
        "steps": [step.total() for step in timed],
        "parts": parts,
        "within": within,
        "tokens_per_second": {"trained": tokens["tokens"] / seconds, "sampled": tokens["sampled"] / seconds},
        "gflop": gflop,
        "peak_gflops": peak,
        "share_of_peak": gflop / seconds / peak,
    }


class FlopCounter:
    """Counts GFLOP of matrix products after the first `after` steps: a metrics sink of the loop, and a gauge.

    Counting slows every operation down, so those steps are not timed.
    """

    def __init__(self, after: int):
        self.after, self.mode, self.on = after, FlopCounterMode(display=False, custom_mapping=_flop_formulas()), False

    def __call__(self) -> float:
        return (self.mode.get_total_flops() + KernelFlop.flop) / 1e9

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - a sink's signature
        if step == self.after:
            self.mode.__enter__()
            self.on = KernelFlop.on = True

    def close(self) -> None:
        """Stops counting."""
        if self.on:
            self.mode.__exit__(None, None, None)
            self.on = KernelFlop.on = False


Shapes = Sequence[int]


def _flop_formulas() -> dict[Any, Any]:
    """FLOP of operations that torch's counter lacks: addmm in place, attention on the CPU, oneDNN's linear layers."""
    aten = torch.ops.aten
    known = {
        aten.addmm_: _addmm,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    if torch.backends.mkldnn.is_available():
        known[torch.ops.mkldnn._linear_pointwise] = _linear
    return known


def _addmm(_: Shapes, a: Shapes, b: Shapes, *others: Any, **named: Any) -> int:  # noqa: ARG001
    return 2 * a[0] * a[1] * b[1]


def _attention(query: Shapes, key: Shapes, value: Shapes, *others: Any, **named: Any) -> int:  # noqa: ARG001
    """All queries with all keys; masked pairs are counted too."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(_: Shapes, query: Shapes, key: Shapes, value: Shapes, *others: Any, **named: Any) -> int:  # noqa: ARG001
    """Five products for the two of the forward pass: the attention weights are recomputed."""
    return 5 * _attention(query, key, value) // 2


def _linear(x: Shapes, *others: Any, out_shape: Shapes = (), **named: Any) -> int:  # noqa: ARG001
    return 2 * math.prod(x) * out_shape[-1]


def gemm_gflops(device: torch.device, dtype: str = "float32", times: int = 7) -> float:
    """Measures peak GFLOP/s: the best of several square products, by torch and by the models' linear layers."""
    size = 8192 if device.type == "cuda" else 2048
    kind = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(dtype, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    out, ready = torch.empty_like(a), _waits(device) or (lambda: None)
    best = math.inf
    onednn = Backend(linear="onednn" if torch.backends.mkldnn.is_available() else "blas")
    for product in (lambda: torch.mm(a, b, out=out), lambda: linear(a, b, backend=onednn)):
        for _ in range(times + 1):
            ready()
            began = time.perf_counter()
            product()
            ready()
            best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9


def _waits(device: torch.device) -> Any:
    return torch.cuda.synchronize if device.type == "cuda" else None


def _peak_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_memory_mib()
