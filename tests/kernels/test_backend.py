"""The backend of a model: chosen once, tested forward and backward, measured, forced, recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models import tiny
from tiltyard.errors import ConfigError
from tiltyard.kernels import backend, fused_ops, library, measure, selftest, tree_attention
from tiltyard.kernels.base import Backend

needed = pytest.mark.skipif(library.load().handle is None, reason=f"the kernels are not compiled: {library.load().why}")
onednn_needed = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="torch is built without MKL or oneDNN",
)


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without earlier self-tests and measurements, and without settings of the environment."""
    monkeypatch.setattr(selftest, "_results", {})
    monkeypatch.setattr(measure, "_known", {})
    for name in (backend.LINEAR, backend.LINEAR_BEFORE):
        monkeypatch.delenv(name, raising=False)
    library.load()  # from the real folder
    monkeypatch.setattr(library, "cache_folder", lambda: (tmp_path, ""))


# ----------------------------------------------------------------------------------------------------------- self-test


@needed
@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "qwen3", "mistral", "gpt2", "gemma2"])
def test_the_kernels_agree_with_torch_on_all_families(family: str) -> None:
    module = tiny.causal(family).float()
    training = module.train().training
    assert selftest.disagreement(module) == ""
    assert all(part.training == training for part in module.modules())
    assert all(p.grad is None for p in module.parameters())
    model = tiny.language(family)
    assert model.backend.ops == "cpu_c"
    assert model.backend.decoder == ("modules" if family in ("gpt2", "gemma2") else "native")


WRONG: dict[str, tuple[Any, str, str]] = {
    "log_softmax_nll": (fused_ops, "log_softmax_nll_backward_", "the gradient of log-softmax"),
    "attention": (tree_attention, "backward", "attention"),
    "swiglu": (fused_ops, "swiglu_backward_", "the gradients of a block"),
    "rope": (fused_ops, "apply_rope_", "a block"),
    "norm": (fused_ops, "rms_norm_backward_", "the gradients of a block"),
    "weight": (fused_ops, "weight_grad_", "weight gradient"),
}


@needed
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_gives_the_torch_backend_and_the_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is wrong in one number alone, some of them in the backward pass alone."""
    module, function, where = WRONG[name]
    real = getattr(module, function)

    def wrong(*args: Any, **named: Any) -> Any:
        out = real(*args, **named)
        first = out[0] if isinstance(out, tuple) else out
        first.view(-1)[3] += first.abs().max() * 0.1 + 0.1
        return out

    monkeypatch.setattr(module, function, wrong)
    model = tiny.language("llama")
    assert (model.backend.ops, model.backend.decoder) == ("torch", "fused")
    assert f"the C kernels disagree with torch: {where} by" in model.backend.describe()
    monkeypatch.undo()


@needed
def test_it_runs_once_a_class_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = selftest._pairs
    monkeypatch.setattr(selftest, "_pairs", lambda module: (calls.append(1), real(module))[1])
    for _ in range(3):
        tiny.language("llama")
    assert len(calls) == 1
    tiny.language("qwen3")
    assert len(calls) == 2


@needed
def test_a_self_test_that_fails_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: Any) -> Any:
        raise TypeError("forward() got an unexpected keyword")

    monkeypatch.setattr(selftest, "_pairs", broken)
    assert "the self-test failed (TypeError: forward() got" in tiny.language("llama").backend.why


def test_float64_goes_through_torch() -> None:
    chosen = tiny.language("llama", "float64").backend
    assert (chosen.ops, chosen.linear in ("mkl", "blas"), chosen.decoder) == ("torch", True, "modules")


# --------------------------------------------------------------------------------------------------------- measurement


@onednn_needed
def test_the_faster_library_is_chosen_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ratios = [1.5, 1.02, None]
    monkeypatch.setattr(measure, "_measured", lambda shapes: ratios.pop(0))
    assert backend.expected(((256, 256),)).why_linear == "or oneDNN, measured when the model is loaded"
    model = tiny.language("llama")
    assert model.backend.linear == "onednn"
    assert "oneDNN measured 1.50 times as fast" in model.backend.describe()
    assert tiny.language("llama").backend == model.backend
    assert len(ratios) == 2, "it is measured once a process"
    (kept,) = tmp_path.glob("linear-*.json")
    assert json.loads(kept.read_text())["speedup"] == 1.5
    monkeypatch.setattr(measure, "_known", {})
    assert tiny.language("llama").backend == model.backend
    assert len(ratios) == 2, "and once a machine"
    shapes = measure.shapes_of(model.backbone)
    assert backend.expected(shapes).why_linear == model.backend.why_linear
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert tiny.language("llama").backend.linear == "mkl", "another number of threads"
        torch.set_num_threads(before + 2)
        busy = tiny.language("llama").backend
    finally:
        torch.set_num_threads(before)
    assert (busy.linear, busy.why_linear) == ("mkl", "the machine was too busy to measure oneDNN")
    assert len(list(tmp_path.glob("linear-*.json"))) == 2, "what was not measured is not kept"


@onednn_needed
def test_the_first_process_that_measures_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((64, 64),)

    def meanwhile(_: Any) -> float:
        measure._keep(shapes, 1.8)  # another process is faster
        return 0.7

    monkeypatch.setattr(measure, "_measured", meanwhile)
    assert measure.onednn_speedup(shapes) == 1.8


@onednn_needed
def test_a_real_measurement() -> None:
    ratio = measure._measured(((64, 96), (96, 64)))
    assert ratio is None or 0.01 < ratio < 100


def test_shapes_of_a_decoder_are_those_of_its_module() -> None:
    for family in ("llama", "qwen3"):
        module = tiny.causal(family)
        c = module.config
        sizes = (c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.intermediate_size)
        head_dim = getattr(c, "head_dim", None)
        assert measure.shapes_of_decoder(*sizes, head_dim=head_dim) == measure.shapes_of(module.base_model)


# ---------------------------------------------------------------------------------------------- forced, kept, compared


@onednn_needed
def test_the_environment_forces_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mkl", "onednn"):
        monkeypatch.setenv(backend.LINEAR, name)
        assert tiny.language("llama").backend.linear == name
        assert backend.expected().linear == name
    monkeypatch.setenv(backend.LINEAR, "onedn")
    with pytest.raises(ConfigError, match="did you mean 'onednn'"):
        tiny.language("llama")
    monkeypatch.setenv(backend.LINEAR_BEFORE, "torch")
    with pytest.raises(ConfigError, match=f"{backend.LINEAR_BEFORE} was renamed"):
        backend.expected()


def test_a_preferred_backend_is_taken_where_the_machine_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_measured", lambda shapes: 2.0)
    with backend.preferred(Backend("torch", "mkl")):
        model = tiny.language("llama")
    if torch.backends.mkl.is_available():
        assert (model.backend.ops, model.backend.linear) == ("torch", "mkl")
    assert tiny.language("llama").backend.ops == ("cpu_c" if library.load().handle else "torch")
    with backend.preferred(None):
        backend.prefer(Backend("torch", "mkl"))
        assert tiny.language("llama").backend.ops == "torch"


def test_records() -> None:
    chosen = Backend("cpu_c", "onednn", "native", "cc", "measured")
    kept = json.loads(json.dumps(backend.record(chosen)))
    again = backend.from_record(kept)
    assert again is not None
    assert (again.ops, again.linear, again.decoder) == ("cpu_c", "onednn", "native")
    assert backend.changes(kept, backend.record(chosen)) == []
    other = backend.record(Backend("torch", "onednn", "fused", "no C compiler"))
    assert backend.changes(kept, other) == ["ops cpu_c -> torch", "decoder native -> fused"]
    for broken in (None, {}, {"ops": "gpu", "linear": "mkl"}, {"ops": "torch", "linear": 3}):
        assert backend.from_record(broken) is None
    assert backend.changes({}, kept) == []
