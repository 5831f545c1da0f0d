"""LoRA adapters inside the fused blocks against PEFT's own modules, and products in bfloat16 against float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.test_fused_block import close, forest, modules_only
from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.kernels import backend, fused_block, library
from tiltyard.kernels.base import Backend
from tiltyard.kernels.matmul import PackedLinear, add_weight_grad_, linear, linear_add, weight_grad
from tiltyard.models import adapters
from tiltyard.models.language import LanguageModel
from tiltyard.models.lora import Lora, using_adapters
from tiltyard.sampling import SampleSettings, sample
from tiltyard.sampling.engine import can_use_decoder
from tiltyard.types import Prompt

pytestmark = pytest.mark.skipif(
    library.load().handle is None, reason=f"fused_ops.c is not compiled: {library.load().why}"
)
HALF = Backend("cpu_c", "bfloat16", "fused")


def adapted(family: str, targets: list[str], dtype: Any = "float32") -> LanguageModel:
    """A model with two adapters whose second matrices are not zero."""
    model = adapters.adapt(tiny.language(family, dtype), Lora(rank=3, alpha=5, targets=targets))
    adapters.clone_adapter(model, "second")
    generator = torch.Generator().manual_seed(0)
    for name, p in model.module.named_parameters():
        if "lora_B" in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


def outcome(model: LanguageModel, names: tuple[str, ...]) -> list[Tensor]:
    """Log-probs with these adapters active, and the gradients of all matrices of the first one."""
    with using_adapters(model.backbone, names):
        model.binding = adapters.AdapterBinding(names, "policy")
        logp_R, _ = model.logp_R(forest())
    logp_R.sum().backward()
    grads = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad()
    assert grads
    assert all(".policy." in name for name in grads)
    return [logp_R.detach(), *grads.values()]


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "qwen3"])
@pytest.mark.parametrize("targets", [[], ["q_proj", "down_proj"]])
@pytest.mark.parametrize("names", [("policy",), ("second", "policy")])
def test_adapters_are_those_of_peft(
    family: str, targets: list[str], names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, exact = adapted(family, targets), adapted(family, targets, "float64")
    exact.module.load_state_dict(model.module.state_dict())
    assert fused_block.is_supported(model.backbone, model.device, model.backend)
    mine, expected = outcome(model, names), outcome(exact, names)
    with modules_only(monkeypatch):
        theirs = outcome(model, names)
    assert len(mine) == len(theirs) == len(expected)
    for x, other, reference in zip(mine, theirs, expected, strict=True):
        close(x, reference, 2e-5)
        close(other, reference, 2e-5)


def test_inactive_adapters_change_nothing() -> None:
    model, plain = adapted("llama", []), tiny.language("llama")
    torch.testing.assert_close(
        adapters.without_adapters(model).logp_R(forest())[0], plain.logp_R(forest())[0], atol=1e-6, rtol=1e-6
    )


# --------------------------------------------------------------------------------------------- products in bfloat16


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_rounded_factors(bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x, w, b, other, dout = (
        torch.randn(*s, generator=generator) for s in ((70, 48), (33, 48), (33,), (70, 33), (70, 33))
    )
    b = b if bias else None  # type: ignore[assignment]
    x64, w64, dout64 = (t.bfloat16().double() for t in (x, w, dout))
    expected = x64 @ w64.t() + (b.double() if bias else 0)
    close(linear(x, w, b, backend=HALF), expected, 1e-2)  # the result is rounded once
    close(linear_add(other, x, w, b, backend=HALF), expected + other.double(), 1e-2)
    close(weight_grad(dout, x, backend=HALF), dout64.t() @ x64, 1e-2)
    before = torch.randn(33, 48, generator=generator)
    close(add_weight_grad_(before.clone(), dout, x, backend=HALF), before.double() + dout64.t() @ x64, 1e-2)
    packed = PackedLinear(w, b, HALF)
    close(packed(x), expected, 1e-2)
    close(packed.add(x, other), expected + other.double(), 1e-2)
    close(packed.mul(x, other), expected * other.double(), 1e-2)
    assert {linear(x, w, b, backend=HALF).dtype, packed(x).dtype} == {torch.float32}


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "qwen3"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_model_in_bfloat16_is_as_near_as_autocast(family: str, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    half = adapted(family, [], "bfloat16") if lora else tiny.language(family, "bfloat16")
    exact = adapted(family, [], "float64") if lora else tiny.language(family, "float64")
    exact.module.load_state_dict(half.module.state_dict())
    assert half.packed
    assert half.backend.linear == "bfloat16"
    assert fused_block.is_supported(half.backbone, half.device, half.backend)

    def gap(model: LanguageModel, expected: list[Tensor]) -> Tensor:
        found = outcome(model, ("policy",)) if lora else _all(model)
        assert all(x.dtype == torch.float32 for x in found)
        return torch.stack([((x - y).norm() / y.norm()).double() for x, y in zip(found, expected, strict=True)])

    expected = outcome(exact, ("policy",)) if lora else _all(exact)
    mine = gap(half, expected)
    with modules_only(monkeypatch):
        autocast = gap(half, expected)
    assert 1e-5 < mine.mean() < 1.2 * autocast.mean()


def _all(model: LanguageModel) -> list[Tensor]:
    logp_R, _ = model.logp_R(forest())
    logp_R.sum().backward()
    grads = [p.grad.clone() for p in model.module.parameters() if p.grad is not None]
    model.module.zero_grad()
    return [logp_R.detach(), *grads]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_decoding_in_bfloat16(family: str) -> None:
    """Sampled log-probs are those of a second pass up to bfloat16's rounding, and near those of float32."""
    half, full = tiny.language(family, "bfloat16"), tiny.language(family)
    full.module.load_state_dict(half.module.state_dict())
    assert can_use_decoder(half)
    assert half.backend.decoder == "fused"
    groups = sample(half, [Prompt(ids=(3, 4, 5)), Prompt(ids=(6, 2))], 3, SampleSettings(max_tokens=6), seed=1)
    again, exact = (model.logp_R(pack(groups))[0].detach() for model in (half, full))
    sampled = torch.tensor([p for g in groups for r in g.responses for p in r.logps or ()])
    torch.testing.assert_close(sampled, again, atol=0.03, rtol=0.02)
    torch.testing.assert_close(sampled, exact, atol=0.03, rtol=0.02)


def test_other_models_in_bfloat16_run_under_autocast() -> None:
    other = tiny.language("gpt2", "bfloat16")
    assert other.backend.linear != "bfloat16"
    assert other.backend.decoder == "modules"
    assert "autocast" in other.backend.describe()
    off = backend.expected(None, "bfloat16", "cpu", supported=False)
    assert off.linear != "bfloat16"
    assert backend.expected(None, "bfloat16").linear == ("bfloat16" if library.state().ready else off.linear)
