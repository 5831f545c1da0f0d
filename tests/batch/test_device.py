"""A forest on another device: what a GPU would get, on a stand-in (torch's meta device) that cannot be read."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from models import tiny
from tiltyard.batch.forest import pack, padded_rows
from tiltyard.batch.logp import chunk_rows
from tiltyard.kernels.backend import choose
from tiltyard.kernels.base import Backend
from tiltyard.kernels.fused_decoder import FusedDecoder
from tiltyard.kernels.matmul import PackedLinear
from tiltyard.losses.kl import sum_per_response
from tiltyard.models.language import LanguageModel


def there(family: str, dtype: str) -> LanguageModel:
    """A packed model whose weights are on the stand-in."""
    model = tiny.language(family)
    model.module.to("meta")
    model.dtype = dtype  # type: ignore[assignment]
    model.use_backend(choose(model.module, dtype))
    return model


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_pass_reads_nothing_back(family: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the packing nor the pass, its log-probs and gradients make the CPU wait for the device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the stand-in has none
    model = there(family, dtype)
    groups = tiny.mixed()
    forest = pack(groups, "meta")
    assert forest.device.type == model.device.type == "meta"
    with pytest.raises(NotImplementedError):
        forest.ids_T.tolist()
    logp_R, entropy_R = model.logp_R(forest, entropy=True)
    assert entropy_R is not None
    assert logp_R.device.type == "meta"
    logp_B = sum_per_response(logp_R, forest.response_R, forest.B)
    (logp_B.sum() + entropy_R.sum()).backward()
    assert all(p.grad is None or p.grad.device.type == "meta" for p in model.module.parameters())
    assert any(p.grad is not None for p in model.module.parameters())


def test_a_forest_elsewhere_has_the_same_indices() -> None:
    groups = tiny.mixed()
    here, moved = pack(groups), pack(groups).to(torch.device("cpu"))
    assert moved.host is not None
    for name in ("ids_T", "position_T", "branch_T", "predictor_R", "target_R", "count_B", "untile_T", "prompt_last_G"):
        assert torch.equal(getattr(here, name), getattr(moved, name)), name
    assert moved.branches == here.branches
    for one, other in zip(here.tiles, moved.tiles, strict=True):
        assert torch.equal(one.index, other.index)
        assert one.within(3) == other.within(3)
    (ids, mask), place = padded_rows(moved)
    (own_ids, own_mask), own_place = padded_rows(here)
    assert torch.equal(ids, own_ids)
    assert torch.equal(mask, own_mask)
    assert torch.equal(place, own_place)


def test_products_in_bfloat16_on_a_gpu_are_torchs() -> None:
    backend = Backend(linear="bfloat16", decoder="fused")
    weight, bias = torch.randn(6, 8, device="meta"), torch.randn(6, device="meta")
    x, other = torch.randn(3, 8, device="meta"), torch.randn(3, 6, device="meta")
    for packed in (PackedLinear(weight, bias, backend), PackedLinear(weight, None, backend)):
        assert packed.weight_IO.dtype == torch.bfloat16
        assert packed(x).dtype == packed.add(x, other).dtype == torch.float32
        assert packed(x, "swish").dtype == packed.mul(x, other).dtype == torch.bfloat16


def test_a_decoding_step_on_a_gpu_stays_there() -> None:
    model = there("llama", "bfloat16")
    assert (model.backend.linear, model.backend.decoder) == ("bfloat16", "fused")
    decoder = FusedDecoder(model.backbone, model.head, 16, model.backend)

    class Cache:
        length_S = torch.tensor([3, 4], device="meta")

        def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None) -> Tensor:
            return q

    out = decoder.step(torch.tensor([5, 6], device="meta"), Cache())
    assert (out.device.type, out.dtype) == ("meta", torch.float32)
    assert decoder.head(out).dtype == torch.float32


def test_chunks_of_logits_are_larger_on_a_gpu() -> None:
    assert chunk_rows(151_936, "cuda") > chunk_rows(151_936) == chunk_rows(151_936, "cpu")
