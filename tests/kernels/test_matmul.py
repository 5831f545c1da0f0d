"""Linear layers by oneDNN are those of torch: values, gradients, any strides, and whole models."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.kernels import matmul
from tiltyard.kernels.backend import expected
from tiltyard.kernels.base import Backend
from tiltyard.kernels.matmul import Linear, PackedLinear, linear, use_onednn_linear

ONEDNN, MKL = Backend(expected().ops, "onednn"), Backend(expected().ops, "mkl")
needed = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
pytestmark = needed


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """oneDNN for products of any size, whatever was measured here."""
    monkeypatch.setattr(matmul, "ENOUGH", 0)
    monkeypatch.setenv("TILTYARD_LINEAR", "onednn")


def _counted(monkeypatch) -> list[int]:
    calls: list[int] = []
    real = matmul.is_supported
    monkeypatch.setattr(matmul, "is_supported", lambda x, w: (found := real(x, w), calls.append(found))[0])
    return calls


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70),
    i=st.integers(1, 40),
    o=st.integers(1, 40),
    flips=st.tuples(st.booleans(), st.booleans()),
    bias=st.booleans(),
)
def test_linear_is_the_product(n: int, i: int, o: int, flips: tuple[bool, bool], bias: bool) -> None:
    generator = torch.Generator().manual_seed(n + 100 * i + o)
    x = torch.randn((i, n) if flips[0] else (n, i), generator=generator)
    w = torch.randn((i, o) if flips[1] else (o, i), generator=generator)
    x, w = (x.t() if flips[0] else x), (w.t() if flips[1] else w)
    b = torch.randn(o, generator=generator) if bias else None
    with any_size():
        found = linear(x, w, b, backend=ONEDNN)
    torch.testing.assert_close(found, nn.functional.linear(x, w, b), atol=1e-4, rtol=1e-4)


class any_size:
    def __enter__(self):
        self.before = matmul.ENOUGH
        matmul.ENOUGH = 0

    def __exit__(self, *_):
        matmul.ENOUGH = self.before


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (1, 7, 24), (2, 3, 24)])
def test_layer_and_gradients(monkeypatch, bias: bool, shape: tuple[int, ...]) -> None:
    calls = _counted(monkeypatch)
    torch.manual_seed(0)
    plain = nn.Linear(24, 10, bias=bias)
    fast = copy.deepcopy(plain)
    use_onednn_linear(fast, ONEDNN)
    assert type(fast) is Linear
    x = torch.randn(*shape, requires_grad=True)
    twin = x.detach().clone().requires_grad_(True)
    up = torch.randn(*shape[:-1], 10)
    (plain(x) * up).sum().backward()
    (fast(twin) * up).sum().backward()
    assert True in calls
    torch.testing.assert_close(twin.grad, x.grad, atol=1e-5, rtol=1e-5)
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(fast(twin), plain(x), atol=1e-5, rtol=1e-5)


def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    layer = nn.Linear(6, 4)
    use_onednn_linear(layer, ONEDNN)
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 6)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_other_types_stay_with_torch(monkeypatch) -> None:
    calls = _counted(monkeypatch)
    layer = nn.Linear(6, 4).double()
    use_onednn_linear(layer, ONEDNN)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert not any(calls)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quick = nn.Linear(6, 4)
        use_onednn_linear(quick, ONEDNN)
        assert quick(torch.randn(3, 6)).dtype == torch.bfloat16


def test_a_whole_model_gives_the_same_losses_and_gradients(monkeypatch) -> None:
    groups = [tiny.group(5, 4, 6), tiny.group(3, 7, seed=1)]

    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = tiny.language("llama_tied", "float32")
        logp_R = model.logp_R(pack(groups))[0]
        logp_R.sum().backward()
        return logp_R.detach(), {n: p.grad.clone() for n, p in model.module.named_parameters()}

    calls = _counted(monkeypatch)
    fast, fast_grads = gradients()
    assert len(calls) > 30
    assert all(calls)
    monkeypatch.setenv("TILTYARD_LINEAR", "mkl")
    plain, plain_grads = gradients()
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    for name, grad in plain_grads.items():
        torch.testing.assert_close(fast_grads[name], grad, atol=2e-4, rtol=2e-4, msg=name)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_packed_weights(bias: bool, packed: bool) -> None:
    torch.manual_seed(0)
    w, b = torch.randn(12, 20), torch.randn(12) if bias else None
    layer = PackedLinear(w, b, ONEDNN if packed else MKL)
    for rows in (1, 5, 32, 40):
        x, other = torch.randn(rows, 20), torch.randn(rows, 12)
        plain = nn.functional.linear(x, w, b)
        close = {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(layer(x), plain, **close)
        torch.testing.assert_close(layer(x, "swish"), nn.functional.silu(plain), **close)
        torch.testing.assert_close(layer.add(x, other), plain + other, **close)
        torch.testing.assert_close(layer.mul(x, other), plain * other, **close)


@pytest.mark.parametrize("lengths", [(5, 4, 6), (30, 20, 20), (60, 1, 3)])
def test_batches_are_padded_to_sizes_that_recur(monkeypatch, lengths: tuple[int, ...]) -> None:
    """The tokens of no tree change nothing but rounding: log-probs, states and gradients."""
    groups = [tiny.group(*lengths), tiny.group(3, 7, seed=1)]
    forest = pack(groups)

    def found() -> list[torch.Tensor]:
        model = tiny.language("llama", "float32")
        logp_R = model.logp_R(pack(groups))[0]
        (logp_R * torch.arange(forest.R)).sum().backward()
        return [logp_R.detach(), model.hidden_T(pack(groups)).detach(), *(p.grad for p in model.parameters())]

    seen: list[int] = []
    real = type(forest).padded_to
    monkeypatch.setattr(type(forest), "padded_to", lambda f, to: (seen.append(to), real(f, to))[1])
    monkeypatch.setattr(matmul, "ROUND", 16)
    filled = found()
    assert set(seen) == {16}
    assert len(forest.padded_to(16)[0]) % 16 == 0
    monkeypatch.setenv("TILTYARD_LINEAR", "mkl")
    plain = found()
    assert seen[-1] == 1
    for one, two in zip(filled, plain, strict=True):
        torch.testing.assert_close(one, two, atol=2e-4, rtol=2e-4)


def test_copies_and_files_know_nothing_of_it(tmp_path) -> None:
    model = tiny.language("llama", "float32")
    kinds = {type(part) for part in model.module.modules() if isinstance(part, nn.Linear)}
    twin = copy.deepcopy(model.module)
    assert {type(part) for part in twin.modules() if isinstance(part, nn.Linear)} == kinds
    names = {"weight"}
    assert {n.rsplit(".", 1)[-1] for n in twin.state_dict() if "proj" in n} == names
