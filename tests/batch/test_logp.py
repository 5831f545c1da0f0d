"""Chunked log-probs: exact gradients, the chunk size does not matter, no logits are kept."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from tiltyard.batch import logp
from tiltyard.batch.logp import token_logp as token_logp_by
from tiltyard.kernels import backend

R, D, V = 7, 5, 11
# float64 goes through torch, float32 through the C kernels where there are any
token_logp = partial(token_logp_by, backend=backend.expected())


def _inputs(bias: bool = True, grad: bool = True, dtype: torch.dtype = torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    hidden, weight, b = draw(R, D), draw(V, D), draw(V)
    target = torch.randint(0, V, (R,), generator=generator)
    for tensor in (hidden, weight, b):
        tensor.requires_grad_(grad)
    return hidden, weight, b if bias else None, target


def _plain(hidden, weight, bias, target, temperature=1.0, softcap=None, scale=1.0):
    z = hidden @ weight.t() + (bias if bias is not None else 0)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    law = torch.log_softmax(z * scale / temperature, -1)
    return law.gather(-1, target[:, None])[:, 0], -(law.exp() * law).sum(-1)


SETTINGS = list(itertools.product((1.0, 0.6), (None, 1.5), (1.0, 0.3), (True, False)))


@pytest.mark.parametrize(("temperature", "softcap", "scale", "bias"), SETTINGS)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_gradcheck(temperature, softcap, scale, bias, rows, monkeypatch) -> None:
    monkeypatch.setattr(logp, "CHUNK_ELEMENTS", rows * V)
    monkeypatch.setattr(logp, "MIN_ROWS", 1)
    hidden, weight, b, target = _inputs(bias)
    kwargs = {"temperature": temperature, "softcap": softcap, "scale": scale}

    def both(h, w, *rest):
        return token_logp(h, w, rest[0] if rest else None, target, entropy=True, **kwargs)

    inputs = (hidden, weight, b) if bias else (hidden, weight)
    torch.testing.assert_close(both(*inputs), _plain(hidden, weight, b, target, **kwargs))
    assert torch.autograd.gradcheck(both, inputs)
    alone = lambda h, w, *rest: token_logp(h, w, rest[0] if rest else None, target, **kwargs)[0]  # noqa: E731
    assert torch.autograd.gradcheck(alone, inputs)


@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=3))[:-1])
def test_gradient_only_where_it_is_needed(needs) -> None:
    inputs = _inputs()
    for tensor, need in zip(inputs, needs, strict=False):
        tensor.requires_grad_(need)
    token_logp(*inputs)[0].sum().backward()
    plain = _inputs()
    _plain(*plain)[0].sum().backward()
    for own, other, need in zip(inputs[:3], plain[:3], needs, strict=True):
        if need:
            torch.testing.assert_close(own.grad, other.grad)
        else:
            assert own.grad is None


def test_chunk_size_changes_nothing(monkeypatch) -> None:
    found = []
    for rows in (1, 2, 100):
        monkeypatch.setattr(logp, "CHUNK_ELEMENTS", rows * V)
        monkeypatch.setattr(logp, "MIN_ROWS", 1)
        inputs = _inputs()
        values = token_logp(*inputs, softcap=2.0, entropy=True)
        (values[0] * torch.arange(R)).sum().backward()
        found.append([*values, *(x.grad for x in inputs[:3])])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


def test_no_logits_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(logp, "CHUNK_ELEMENTS", 50)
    monkeypatch.setattr(logp, "MIN_ROWS", 1)
    saved: list[int] = []
    hidden = torch.randn(200, 4, requires_grad=True)
    weight = torch.randn(50, 4, requires_grad=True)

    def keep(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value, entropy = token_logp(hidden, weight, None, torch.zeros(200, dtype=torch.long), entropy=True)
        (value.sum() + entropy.sum()).backward()
    assert max(saved) <= hidden.numel()
    assert sum(saved) < 200 * 50 / 4


def test_transformed_logits_stay_within_one_chunk(monkeypatch) -> None:
    """The largest tensor that forward and backward make is a chunk of logits, or as large as an input."""
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.setattr(logp, "CHUNK_ELEMENTS", 10 * 64)
    monkeypatch.setattr(logp, "MIN_ROWS", 1)
    made: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(x.numel() for x in (out if isinstance(out, tuple | list) else (out,)) if torch.is_tensor(x))
            return out

    hidden, weight = torch.randn(500, 4, requires_grad=True), torch.randn(64, 4, requires_grad=True)
    with Watch():
        token_logp(hidden, weight, None, torch.zeros(500, dtype=torch.long), softcap=3.0)[0].sum().backward()
    assert max(made) <= 500 * 4


def test_no_rows_and_no_gradient() -> None:
    hidden, weight, bias, _ = _inputs()
    value, entropy = token_logp(hidden[:0], weight, bias, torch.zeros(0, dtype=torch.long), entropy=True)
    assert value.shape == entropy.shape == (0,)
    (value.sum() + entropy.sum()).backward()
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hidden_states_sum_in_float32(dtype) -> None:
    hidden, weight, _, target = _inputs(bias=False, dtype=torch.float32)
    half = hidden.detach().to(dtype).requires_grad_()
    value, entropy = token_logp(half, weight, None, target, entropy=True)
    assert value.dtype == entropy.dtype == torch.float32
    expected, _ = _plain(half.float(), weight, None, target)
    torch.testing.assert_close(value, expected, atol=0.05, rtol=0.02)
    value.sum().backward()
    assert half.grad.dtype == dtype
    assert weight.grad.dtype == torch.float32


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    value, entropy = token_logp(hidden, weight, None, torch.tensor([0, 0]), entropy=True)
    (value.sum() + entropy.sum()).backward()
    torch.testing.assert_close(value.detach(), torch.tensor([0.0, -2e4]))
    assert entropy.isfinite().all()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()
