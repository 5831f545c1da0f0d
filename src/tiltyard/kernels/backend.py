"""The backend of a model: which implementation computes its ops, its linear layers and its decoding steps.

It is chosen once a model, when it is loaded (`choose`), and everything else asks `model.backend`:

    ops       cpu_c    the C kernels of this package, for float32 tensors on the CPU
              torch    torch's own operations
    linear    mkl      torch's product on x86
              onednn   oneDNN's, where it was measured to be faster on the model's own shapes
              blas     torch's product with another library (ARM, a GPU)
              bfloat16 torch's product of factors in bfloat16, sums in float32 (models with that arithmetic)
    decoder   native   one call of C a step
              fused    the same weights in some twenty calls of torch a layer
              modules  transformers' modules

`TILTYARD_KERNELS=off` forces torch ops, `TILTYARD_LINEAR=mkl|onednn` a library. A stage that is resumed prefers what it
was started with (`preferred`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, get_args

import torch

from tiltyard.errors import ConfigError, nearest
from tiltyard.kernels import family, library, measure, selftest
from tiltyard.kernels.base import Backend, Decoder, Linear, Ops

LINEAR, LINEAR_BEFORE = "TILTYARD_LINEAR", "TILTYARD_PRODUCTS"

_preferred: ContextVar[list[Backend]] = ContextVar("preferred backend")  # the last one counts


@contextmanager
def preferred(backend: Backend | None) -> Iterator[None]:
    """Inside it models are loaded with this backend's `ops` and `linear` where the machine has them."""
    token = _preferred.set([] if backend is None else [backend])
    try:
        yield
    finally:
        _preferred.reset(token)


def prefer(backend: Backend) -> None:
    """Changes the preference inside `preferred`; outside of it nothing."""
    _preferred.get([]).append(backend)


def _preference() -> Backend | None:
    return next(reversed(_preferred.get([])), None)


def choose(module: Any, dtype: str = "float32") -> Backend:
    """Chooses the backend of a model by its device, arithmetic, family and shapes.

    The C kernels are compared with torch, forward and backward, once a process and class of models (`selftest`); where
    they disagree the model gets torch ops. The library of the linear layers is measured once a machine (`measure`).

    Args:
        module: a transformers model with its head. dtype: arithmetic of the forward pass.

    Raises:
        ConfigError: an environment variable with an unknown value, or one that was renamed.
    """
    forced = _forced_linear()
    supported = dtype in ("float32", "bfloat16") and family.is_supported(module.base_model)
    device = next(module.parameters()).device.type
    if device != "cpu":
        return _elsewhere(device, dtype, supported)
    ops, why_ops = _ops(module, dtype)
    if dtype == "bfloat16":
        return _bfloat16(ops, why_ops, supported)
    linear, why_linear = _linear(module, dtype, forced)
    decoder: Decoder = "modules" if not supported else "native" if ops == "cpu_c" else "fused"
    return Backend(ops, linear, decoder, why_ops, why_linear)


def _elsewhere(device: str, dtype: str, supported: bool) -> Backend:
    """The backend of a model on a GPU: torch's autocast, and the kernels' own products in bfloat16 where asked for."""
    decoder: Decoder = "fused" if supported else "modules"
    return Backend("torch", "bfloat16" if dtype == "bfloat16" else "blas", decoder, f"on {device}")


def _bfloat16(ops: Ops, why: str, supported: bool) -> Backend:
    """The backend of a model that computes in bfloat16: products alone for the fused blocks, else torch's autocast."""
    if supported and ops == "cpu_c":
        return Backend(
            ops, "bfloat16", "fused", why, "" if has_bfloat16() else "this processor has no bfloat16 products"
        )
    return Backend(ops, "mkl" if torch.backends.mkl.is_available() else "blas", "modules", why, "autocast")


def has_bfloat16() -> bool:
    """True if this processor multiplies bfloat16 numbers; elsewhere such products are slower than float32's."""
    return any(flag in library.processor() for flag in (b"avx512_bf16", b"amx_bf16", b"bf16"))


def _ops(module: Any, dtype: str) -> tuple[Ops, str]:
    before = _preference()
    if dtype == "float64":
        return "torch", "float64"
    loaded = library.load()
    if loaded.handle is None:
        return "torch", loaded.why
    if before is not None and before.ops == "torch":
        return "torch", "as this stage was started"
    if problem := selftest.disagreement(module):
        return "torch", f"the C kernels disagree with torch: {problem}"
    return "cpu_c", loaded.why


def _linear(module: Any, dtype: str, forced: str) -> tuple[Linear, str]:
    before = _preference()
    if not torch.backends.mkl.is_available():
        return "blas", ""
    if dtype == "float64" or not torch.backends.mkldnn.is_available():
        return "mkl", ""
    if forced:
        return ("onednn" if forced == "onednn" else "mkl"), f"{LINEAR}={forced}"
    if before is not None and before.linear in ("mkl", "onednn"):
        return before.linear, "as this stage was started"
    ratio = measure.onednn_speedup(measure.shapes_of(module.base_model))
    if ratio is None:
        return "mkl", "the machine was too busy to measure oneDNN"
    return _by_speedup(ratio)


def _forced_linear() -> str:
    """The library that the environment forces, if any."""
    if os.environ.get(LINEAR_BEFORE):
        raise ConfigError(
            f"{LINEAR_BEFORE} was renamed",
            where="environment",
            got=f"{LINEAR_BEFORE}={os.environ[LINEAR_BEFORE]}",
            expected=f"{LINEAR}=mkl or {LINEAR}=onednn",
            fix=f"unset {LINEAR_BEFORE} and set {LINEAR}=mkl",
        )
    forced = os.environ.get(LINEAR, "")
    if forced not in ("", "mkl", "onednn"):
        expected = ("mkl", "onednn")
        raise ConfigError("unknown library of linear layers", where=LINEAR, got=forced, fix=nearest(forced, expected))
    return forced


def expected(
    shapes: measure.Shapes | None = None, dtype: str = "float32", device: str = "cpu", supported: bool = True
) -> Backend:
    """Returns the backend a model would get here, without compiling or measuring; `why` names the remaining steps.

    Args:
        shapes: of its linear layers (`measure.shapes_of`). supported: whether it is of the Llama family.
    """
    forced, supported = _forced_linear(), supported and dtype in ("float32", "bfloat16")
    if device != "cpu":
        return _elsewhere(device, dtype, supported)
    state = library.State(False, dtype) if dtype == "float64" else library.state()
    ops: Ops = "cpu_c" if state.ready else "torch"
    if dtype == "bfloat16":
        return _bfloat16(ops, state.why, supported)
    linear, why = _expected_linear(shapes, dtype, forced)
    decoder: Decoder = "modules" if not supported else "native" if ops == "cpu_c" else "fused"
    return Backend(ops, linear, decoder, state.why, why)


def _expected_linear(shapes: measure.Shapes | None, dtype: str, forced: str) -> tuple[Linear, str]:
    if not torch.backends.mkl.is_available():
        return "blas", ""
    if dtype == "float64" or not torch.backends.mkldnn.is_available():
        return "mkl", ""
    if forced:
        return ("onednn" if forced == "onednn" else "mkl"), f"{LINEAR}={forced}"
    ratio = measure.known_speedup(shapes) if shapes else None
    if ratio is None:
        return "mkl", "or oneDNN, measured when the model is loaded"
    return _by_speedup(ratio)


def _by_speedup(ratio: float) -> tuple[Linear, str]:
    measured = f"oneDNN measured {ratio:.2f} times as fast as MKL on its shapes"
    if ratio >= measure.GAIN:
        return "onednn", measured
    return "mkl", f"{measured}, {measure.GAIN:g} needed"


# ------------------------------------------------------------------------------------------ kept with a stage


def record(backend: Backend) -> dict[str, Any]:
    """Returns the record for config.json: the backend and all else that may change the last bits of the results."""
    return {
        "ops": backend.ops,
        "linear": backend.linear,
        "decoder": backend.decoder,
        "why": backend.why,  # for people
        "processor": hashlib.sha256(library.processor()).hexdigest()[:8],
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


def from_record(kept: Mapping[str, Any] | None) -> Backend | None:
    """Returns the backend of a record, or None where there is none that can be read."""
    kept = kept or {}
    if kept.get("ops") not in get_args(Ops) or kept.get("linear") not in get_args(Linear):
        return None
    decoder: Any = kept["decoder"] if kept.get("decoder") in get_args(Decoder) else "modules"
    return Backend(kept["ops"], kept["linear"], decoder, str(kept.get("why", "")))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the differences of two records that change the last bits of results: `ops cpu_c -> torch`."""
    keys = [key for key in now if key != "why" and key in before and before[key] != now[key]]
    return [f"{key} {before[key]} -> {now[key]}" for key in keys]
