"""`tiltyard bench`: where a method's time goes on one's own model and data, and how near the machine's limit it is.

The stage is composed as `tiltyard train` composes it and the very loop is run for a few steps, with a clock on it
(`tiltyard.profiler`). Nothing is kept: no checkpoint, no model.
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
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from tiltyard.errors import ConfigError, nearest
from tiltyard.kernels.library import Work
from tiltyard.kernels.matmul import multiply
from tiltyard.methods import METHODS
from tiltyard.models.load import pick_device
from tiltyard.pipeline.recipe import COMMAND_LINE, Entry, Recipe, check
from tiltyard.pipeline.state import package_version
from tiltyard.profiler import REST, Clock, Step, peak_memory_mib
from tiltyard.stages.base import StageContext
from tiltyard.stages.train import composed, run_of
from tiltyard.training.fit import fit

PARTS = ("sample", "score", "forward", "backward", "optimiser", REST)
OWN = ("steps", "save_every", "eval_every", "sample_every")  # settings that a measurement has no use for


def measure(method: str, values: Mapping[str, Any], *, steps: int = 5, warmup: int = 2) -> dict[str, Any]:
    """Runs a method for `warmup` + `steps` + 1 steps and says what the middle ones took; arithmetic is counted in the
    last.

    Args:
        method: of `tiltyard methods`. values: its stage's settings.

    Returns:
        `seconds` a step; `parts`, which add up to it, each with seconds, share, gflop and share_of_peak; `within`,
        seconds of the named parts of parts; tokens_per_second (trained: packed tokens of the updates; sampled),
        `peak_gflops` of a matrix product measured on the spot, `share_of_peak`, `peak_memory_mib`, and what ran.

    Raises:
        ConfigError: no such method, a setting that it has not, or one that a measurement decides itself.
    """
    settings, context = _stage(method, values, steps + warmup + 1)
    with tempfile.TemporaryDirectory(prefix="tiltyard-bench-") as folder:
        run_folder = Path(folder) / "bench"  # caches are kept beside it
        context = replace(context, run_folder=run_folder, folder=run_folder / method)
        context.folder.mkdir(parents=True)
        algorithm, models, _, _ = composed(METHODS[method], context, settings)
        arithmetic = Arithmetic(steps + warmup)
        run = run_of(METHODS[method], context, settings, steps + warmup + 1, None, [arithmetic])
        device = pick_device(settings.device)
        watch = Clock({"seconds": time.perf_counter, "gflop": arithmetic}, _waits(device))
        try:
            with watch:
                fit(algorithm, models, replace(run, folder=None, keep_groups=False))
        finally:
            arithmetic.close()
    found = added_up(watch.steps[warmup:-1], watch.steps[-1], gemm_gflops(device, settings.dtype))
    policy = models.get(METHODS[method].trains[0])
    return found | {
        "method": method,
        "model": str(getattr(settings, "model", "")),
        "parameters": sum(p.numel() for p in policy.module.parameters()),
        "models_in_memory": models.in_memory,
        "device": str(device),
        "dtype": settings.dtype,
        "threads": torch.get_num_threads(),
        "peak_memory_mib": _peak_mib(device),
        "versions": {
            "tiltyard": package_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _stage(method: str, values: Mapping[str, Any], steps: int) -> tuple[Any, StageContext]:
    """The checked settings of a stage that takes so many steps, and a context without folders."""
    if method not in METHODS:
        raise ConfigError(f"'{method}' is no training method", where="--method", fix=nearest(method, METHODS))
    for key in OWN:
        if key in values:
            raise ConfigError(
                f"bench sets '{key}' itself", where=f"{COMMAND_LINE}: {key}", fix="use --steps, or leave it out"
            )
    given = {**values, "steps": steps, "save_every": 0}
    places = dict.fromkeys(given, COMMAND_LINE)
    settings: Any = check(Recipe("bench", (Entry(method, method, given, COMMAND_LINE, places),)))[0].settings
    rows_known = not getattr(settings, "batch_tokens", 0)
    if rows_known and "limit" in type(settings).model_fields and not settings.limit:
        settings = settings.model_copy(update={"limit": settings.batch * steps})  # no more rows than the steps take
    return settings, StageContext("bench", method, Path(), Path(), console=Console(quiet=True))


def added_up(timed: Sequence[Step], counted: Step, peak: float) -> dict[str, Any]:
    """The mean step of the timed ones, with the arithmetic of another one, scaled to their number of tokens."""
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
    seconds = sum(part["seconds"] for part in parts.values())
    for part in parts.values():
        part["share"] = part["seconds"] / seconds
        part["share_of_peak"] = part["gflop"] / part["seconds"] / peak if part["seconds"] else 0.0
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


class Arithmetic:
    """Counts the products of matrices of the steps after the first `after`, in GFLOP: a sink of the loop, and a gauge.

    Counting slows every operation down, so those steps are not timed.
    """

    def __init__(self, after: int):
        self.after, self.mode, self.on = after, FlopCounterMode(display=False, custom_mapping=_more()), False

    def __call__(self) -> float:
        return (self.mode.get_total_flops() + Work.flop) / 1e9

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - a sink's signature
        if step == self.after:
            self.mode.__enter__()
            self.on = Work.on = True

    def close(self) -> None:
        """Counts no longer."""
        if self.on:
            self.mode.__exit__(None, None, None)
            self.on = Work.on = False


Shapes = Sequence[int]


def _more() -> dict[Any, Any]:
    """Products that torch's counter does not know: in place, attention on the CPU, oneDNN's linear layers."""
    aten = torch.ops.aten
    known = {
        aten.addmm_: _added_product,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    if torch.backends.mkldnn.is_available():
        known[torch.ops.mkldnn._linear_pointwise] = _linear
    return known


def _added_product(_: Shapes, a: Shapes, b: Shapes, *others: Any, **named: Any) -> int:  # noqa: ARG001
    return 2 * a[0] * a[1] * b[1]


def _attention(query: Shapes, key: Shapes, value: Shapes, *others: Any, **named: Any) -> int:  # noqa: ARG001
    """All queries with all keys, as the kernel is called; what a causal mask leaves out is not taken off."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(_: Shapes, query: Shapes, key: Shapes, value: Shapes, *others: Any, **named: Any) -> int:  # noqa: ARG001
    """Five products for the forward pass's two: the weights are computed again."""
    return 5 * _attention(query, key, value) // 2


def _linear(x: Shapes, *others: Any, out_shape: Shapes = (), **named: Any) -> int:  # noqa: ARG001
    return 2 * math.prod(x) * out_shape[-1]


def gemm_gflops(device: torch.device, dtype: str = "float32", times: int = 7) -> float:
    """GFLOP/s of the best of several square products, by torch and by what models use: the machine's most."""
    size = 8192 if device.type == "cuda" else 2048
    kind = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(dtype, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    out, ready = torch.empty_like(a), _waits(device) or (lambda: None)
    best = math.inf
    for product in (lambda: torch.mm(a, b, out=out), lambda: multiply(a, b)):
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


def show(found: Mapping[str, Any], console: Console) -> None:
    """The report as a table and three lines."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("part")
    for title in ("s a step", "share", "GFLOP", "of the peak"):
        table.add_column(title, justify="right")
    rows = [(name, part) for name, part in found["parts"].items() if part["seconds"]]
    whole = {"share": 1.0, **{key: found[key] for key in ("seconds", "gflop", "share_of_peak")}}
    for name, part in [*rows, ("[bold]step[/]", whole)]:
        speed = f"{part['share_of_peak']:.0%}" if part["gflop"] else ""
        gflop = f"{part['gflop']:,.1f}" if part["gflop"] else ""
        table.add_row(name, f"{part['seconds']:.4f}", f"{part['share']:.0%}", gflop, speed)
        for inner, seconds in found["within"].items():
            if inner.startswith(f"{name}/"):
                table.add_row(f"  [dim]{inner.partition('/')[2]}[/]", f"[dim]{seconds:.4f}[/]")
    console.print(table)
    speed = found["tokens_per_second"]
    sampled = f", {speed['sampled']:,.0f} sampled" if speed["sampled"] else ""
    console.print(
        f"tokens a second: {speed['trained']:,.0f} trained{sampled}\n"
        f"peak: {found['peak_gflops']:,.0f} GFLOP/s ({found['dtype']}, {found['device']}, {found['threads']} threads), "
        f"{found['share_of_peak']:.0%} of it used\n"
        f"memory: {found['peak_memory_mib']:,.0f} MiB at most, {found['models_in_memory']} models of "
        f"{found['parameters'] / 1e6:.1f}M parameters",
        highlight=False,
    )
