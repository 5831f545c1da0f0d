"""Blocks of the Llama family as one step (fused_block.py) against transformers' modules and torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from models import tiny
from tiltyard.batch.forest import Forest, pack
from tiltyard.kernels import fused_block, fused_ops, library, tree_attention
from tiltyard.kernels.base import Backend
from tiltyard.kernels.matmul import weight_grad
from tiltyard.models import adapters, load
from tiltyard.models.language import LanguageModel
from tiltyard.models.lora import Lora

pytestmark = pytest.mark.skipif(
    library.load().handle is None, reason=f"fused_ops.c is not compiled: {library.load().why}"
)
ONEDNN = Backend("cpu_c", "onednn")
SIZES = st.tuples(st.integers(1, 150), st.sampled_from([4, 16, 24, 40, 128]))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def close(found: Tensor, expected: Tensor, near: float = 5e-5) -> None:
    scale = expected.abs().max().clamp_min(1e-6)
    assert ((found.double() - expected.double()).abs().max() / scale).item() < near


def gradients(out: Tensor, dout: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, of, dout.double())


def wide(*tensors: Tensor) -> list[Tensor]:
    return [x.double().requires_grad_() for x in tensors]


# ----------------------------------------------------------------------------------------------- the passes alone


@settings(max_examples=40, deadline=None)
@given(size=SIZES)
def test_norm(size: tuple[int, int]) -> None:
    x, weight, dout = random(*size), random(size[1], seed=1), random(*size, seed=2)
    x64, weight64 = wide(x, weight)
    expected = x64 * torch.rsqrt(x64.square().mean(-1, keepdim=True) + 1e-5) * weight64
    close(fused_ops.rms_norm(x, weight, 1e-5), expected)
    dx = torch.ones_like(x)  # it is added to
    dweight = fused_ops.rms_norm_backward_(dx, dout, x, weight, 1e-5)
    for found, other in zip((dx - 1, dweight), gradients(expected, dout, x64, weight64), strict=True):
        close(found, other, 1e-4)


@settings(max_examples=40, deadline=None)
@given(size=SIZES)
def test_gate(size: tuple[int, int]) -> None:
    gate, up, dout = random(*size) * 5, random(*size, seed=1), random(*size, seed=2)
    gate64, up64 = wide(gate, up)
    expected = functional.silu(gate64) * up64
    close(fused_ops.swiglu(gate, up), expected)
    dgate, dup = gradients(expected, dout, gate64, up64)
    for found, other in zip(fused_ops.swiglu_backward_(dout.clone(), gate, up), (expected, dgate, dup), strict=True):
        close(found, other)


@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 2), (70, 3, 32), (9, 4, 24)])
def test_the_inverse_rotation_is_the_gradient(tokens: int, heads: int, width: int) -> None:
    angle = random(tokens, width // 2)
    cos, sin = angle.cos().repeat(1, 2) * 1.3, angle.sin().repeat(1, 2) * 1.3  # yarn stretches them
    x, dout = random(tokens, heads, width), random(tokens, heads, width, seed=1)
    (x64,) = wide(x)
    swapped = torch.cat([-x64[..., width // 2 :], x64[..., : width // 2]], -1)
    expected = x64 * cos[:, None] + swapped * sin[:, None]
    close(fused_ops.apply_rope_(x.clone(), cos, sin), expected)
    close(fused_ops.apply_rope_(dout.clone(), cos, sin, inverse=True), gradients(expected, dout, x64)[0])


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), vocabulary=st.sampled_from([2, 17, 256, 300, 1024]), large=st.sampled_from([1.0, 40.0]))
def test_log_probabilities(rows: int, vocabulary: int, large: float) -> None:
    z = random(rows, vocabulary) * large
    target = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(rows))
    dlogp, dentropy = random(rows, seed=1), random(rows, seed=2)
    (z64,) = wide(z)
    law = z64.log_softmax(-1)
    logp, entropy = law.gather(-1, target[:, None])[:, 0], -(law.exp() * law).sum(-1)
    found, lse, entropies = fused_ops.log_softmax_nll(z, target, entropy=True)
    assert entropies is not None
    torch.testing.assert_close(found.double(), logp, atol=5e-5, rtol=5e-5)
    torch.testing.assert_close(entropies.double(), entropy, atol=5e-5, rtol=5e-5)
    for with_entropy in (False, True):
        total = (dlogp * logp).sum() + (dentropy * entropy).sum() * with_entropy
        (expected,) = torch.autograd.grad(total, z64, retain_graph=True)
        more = (entropies, dlogp, dentropy) if with_entropy else (None, dlogp, None)
        close(fused_ops.log_softmax_nll_backward_(z.clone(), target, lse, *more), expected, 1e-4)


@pytest.mark.parametrize(("vocabulary", "wide"), [(2, 2), (300, 300), (1024, 1100)])
def test_kl_and_entropy(vocabulary: int, wide: int) -> None:
    law, other = random(9, vocabulary).mul(4).log_softmax(-1), random(9, wide, seed=1).mul(4).log_softmax(-1)
    p, q = law.double(), other.double()[:, :vocabulary]
    entropy, kl = fused_ops.kl_and_entropy(law, other)
    torch.testing.assert_close(entropy.double(), -(p.exp() * p).sum(-1), atol=5e-5, rtol=5e-5)
    torch.testing.assert_close(kl.double(), (p.exp() * (p - q)).sum(-1), atol=5e-5, rtol=5e-5)
    assert not fused_ops.kl_and_entropy(law, law)[1].any()
    law[0, 0], other[0, 0], other[1, 1], law[2, 0] = -torch.inf, -torch.inf, -torch.inf, torch.nan
    entropy, kl = fused_ops.kl_and_entropy(law, other)
    assert kl[0].isfinite()  # neither has it: no share, no divergence
    assert kl[1] == torch.inf  # the other has none of it
    assert kl[2].isnan()
    assert entropy[2].isnan()


def test_what_is_not_a_number_stays_none() -> None:
    """Nothing is papered over: the training loop finds it in the loss."""
    for bad in (float("nan"), float("inf")):
        z = torch.zeros(1, 20)
        z[0, 7] = bad
        logp, lse, _ = fused_ops.log_softmax_nll(z, torch.tensor([3]), entropy=False)
        assert not logp.isfinite().any()
        assert (
            not fused_ops.log_softmax_nll_backward_(z, torch.tensor([3]), lse, None, torch.ones(1), None)
            .isfinite()
            .all()
        )
        assert not fused_ops.rms_norm(z, torch.ones(20), 1e-5).isfinite().all()
        assert not fused_ops.swiglu(z, torch.ones(1, 20)).isfinite().all()


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 600), out=st.sampled_from([1, 12, 33, 128]), width=st.sampled_from([1, 32, 50, 128]))
def test_gradient_of_a_weight(rows: int, out: int, width: int) -> None:
    dout, x, before = random(rows, out), random(rows, width, seed=1), random(out, width, seed=2)
    expected = dout.double().t() @ x.double()
    found = fused_ops.weight_grad_(before.clone(), dout, x)
    torch.testing.assert_close(found.double(), before.double() + expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(weight_grad(dout, x, backend=ONEDNN).double(), expected, atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------------------------- the model


def forest(spans: Any = None) -> Forest:
    return pack([tiny.group(5, 7, 3, seed=1, spans=spans), tiny.group(9, 4, seed=2), tiny.group(2, 6, 6, 1, seed=3)])


@contextmanager
def modules_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(fused_block, "is_supported", lambda *_: False)
        yield


def trained(model: LanguageModel) -> list[Tensor | None]:
    """Log-probs, entropies and the gradients of all parameters."""
    logp_R, entropy_R = model.logp_R(forest(), entropy=True)
    assert entropy_R is not None
    (logp_R.sum() + 0.3 * entropy_R.square().sum()).backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.module.parameters()]
    model.module.zero_grad()
    return [logp_R.detach(), entropy_R.detach(), *grads]


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "qwen3"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_it_is_the_model(family: str, frozen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to the model in float64 as transformers' modules are, with and without frozen blocks below."""
    model, exact = tiny.language(family), tiny.language(family, "float64")
    exact.module.load_state_dict(model.module.state_dict())
    for one in (model, exact):
        load.freeze_bottom(one, frozen)
    assert fused_block.is_supported(model.backbone, model.device, model.backend)
    assert not fused_block.is_supported(exact.backbone, exact.device, exact.backend)
    mine = trained(model)
    with modules_only(monkeypatch):
        theirs = trained(model)
    for found, other, expected in zip(mine, theirs, trained(exact), strict=True):
        assert (found is None) == (other is None) == (expected is None)
        if found is not None and other is not None and expected is not None:
            close(found, expected, 2e-5)
            close(other, expected, 2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_prompts_are_kept_for_decoding(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cache:
        def __init__(self) -> None:
            self.kept: list[tuple[int, Tensor, Tensor]] = []

        def prefill(self, layer: int, key_HTD: Tensor, value_HTD: Tensor) -> None:
            self.kept.append((layer, key_HTD[:, : forest().T].clone(), value_HTD[:, : forest().T].clone()))

    model, found = tiny.language(family), []
    for patched in (False, True):
        cache = Cache()
        with torch.no_grad():
            if patched:
                with modules_only(monkeypatch):
                    hidden_T = model.hidden_T(forest(), cache)
            else:
                hidden_T = model.hidden_T(forest(), cache)
        found.append((hidden_T, cache.kept))
    close(found[0][0], found[1][0])
    for (layer, key, value), (other_layer, other_key, other_value) in zip(found[0][1], found[1][1], strict=True):
        assert layer == other_layer
        close(key, other_key)
        close(value, other_value)


def test_threads_change_no_bit_but_in_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's products may differ; everything of ours does not."""
    monkeypatch.setattr(fused_block, "linear", lambda x, w, b=None, **_: _slow(x, w, b))
    monkeypatch.setattr(fused_block, "linear_add", lambda other, x, w, b=None, **_: other + _slow(x, w, b))
    model, before, found = tiny.language("qwen2"), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(trained(model))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0][2:], other[2:], strict=True):
            assert a is not None
            assert b is not None
            close(a, b, 1e-6)


def _slow(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = (x[:, None, :] * weight[None]).sum(-1)
    return out if bias is None else out + bias


def test_it_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers a token that the way back needs: some 11 d of the block's 21 d."""

    def kept(model: LanguageModel) -> int:
        seen: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            if not isinstance(x, torch.nn.Parameter):
                seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            model.hidden_T(forest())
        return sum(seen.values())

    model = tiny.language("llama")
    mine = kept(model)
    with modules_only(monkeypatch):
        assert mine < 0.65 * kept(model)


def test_other_models_and_settings_use_the_modules() -> None:
    def supported(model: Any) -> bool:
        return fused_block.is_supported(model.backbone, model.device, model.backend)

    assert supported(tiny.language("llama"))
    assert supported(tiny.scalar("llama"))
    assert not supported(tiny.language("llama", "float64"))
    assert not supported(tiny.language("gpt2"))
    assert not supported(tiny.language("mistral"))  # a window
    listening = tiny.language("llama")
    listening.backbone.layers[0].register_forward_hook(lambda *_: None)
    assert not supported(listening)
    saving = tiny.language("llama")
    saving.checkpoint_activations()
    saving.module.train()
    assert not supported(saving)
    dropping = tiny.language("llama", attention_dropout=0.5)
    assert supported(dropping)
    dropping.module.train()
    assert not supported(dropping)
    half = tiny.language("llama", "bfloat16")
    with half.autocast():
        assert not supported(half)
    adapted = tiny.language("llama")
    adapters.adapt(adapted, Lora(rank=2, dropout=0.5))
    adapted.module.eval()
    assert supported(adapted)
    adapted.module.train()
    assert not supported(adapted)
    off = tiny.language("llama")
    off.backend = replace(off.backend, ops="torch")
    assert not supported(off)


def test_attention_of_no_tokens() -> None:
    """The products are rounded up with tokens of no tree; nothing is read from them."""
    q = random(4, 1, 8)
    nothing = tree_attention.Segments(torch.zeros(1, dtype=torch.long), torch.zeros(0, 2, dtype=torch.long))
    out, _ = tree_attention.forward(q, q, q, nothing, 1)
    assert not out.any()
