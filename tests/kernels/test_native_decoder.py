"""decode.c against the same arithmetic in torch: all shapes, any number of rows and threads, a ring that wraps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.kernels import library, tree_attention
from tiltyard.kernels.base import TORCH, Backend
from tiltyard.kernels.fused_decoder import FusedDecoder, make_decoder
from tiltyard.kernels.fused_ops import sample_tokens
from tiltyard.kernels.native_decoder import NativeDecoder, panels

needed = pytest.mark.skipif(library.load().handle is None, reason=f"decode.c is not compiled: {library.load().why}")
NATIVE = Backend("cpu_c", "mkl", "native")
CAPACITY = 11
# nothing here is a multiple of a vector, a panel or a tile
ODD = {"vocab_size": 37, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "head_dim": 6}
ODD |= {"max_position_embeddings": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "all biases": (
        "Llama",
        {"num_attention_heads": 3, "num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True},
    ),
    "one key head": ("Llama", {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 16}),
    "window": ("Mistral", {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}),
    "norms": ("Qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}),
    "wide": ("Qwen2", {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 130, "head_dim": 64}),
}


def module(name: str) -> Any:
    torch.manual_seed(0)
    family, more = MODELS[name]
    model = getattr(hf, f"{family}ForCausalLM")(getattr(hf, f"{family}Config")(**(ODD | more))).float()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and norms too
    return model


def cache(model: Any, rows: int, now: int) -> Any:
    """Slots of random keys and values, held lengths from 0 on, the ring anywhere."""
    generator = torch.Generator().manual_seed(rows)
    config = model.config
    width = config.head_dim
    shape = (rows, config.num_key_value_heads, CAPACITY, width)
    stores = [{i: torch.randn(shape, generator=generator) for i in range(2)} for _ in range(2)]
    lengths = torch.randint(0, CAPACITY, (rows,), generator=generator)
    from tiltyard.sampling.slots import Slots

    slots = Slots(rows, CAPACITY, torch.device("cpu"))
    slots.keys, slots.values = stores
    slots.now = slots._since = now
    slots._holds(lengths.tolist())
    return slots


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needed
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("rows", "now"), [(1, 10), (2, 25), (3, 4), (13, 40), (27, 13)])
@torch.no_grad()
def test_a_step_is_the_same_in_torch(name: str, rows: int, now: int, threads: Callable[[int], None]) -> None:
    model = module(name)
    decoders = [make_decoder(model.model, model.lm_head, 40, backend) for backend in (TORCH, NATIVE)]
    assert [type(decoder) for decoder in decoders] == [FusedDecoder, NativeDecoder]
    ids = torch.arange(rows) % 37
    caches = [cache(model, rows, now) for _ in decoders]
    expected, found = (decoder.step(ids, one) for decoder, one in zip(decoders, caches, strict=True))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    for place in range(2):  # the new token's key and value, and nothing else, were written
        for mine, other in ((c.keys[place], d.keys[place]) for c, d in [caches]):
            torch.testing.assert_close(mine, other, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(caches[1].values[place], caches[0].values[place], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(decoders[1].head(found), model.lm_head(found), atol=1e-4, rtol=1e-4)
    for count in (1, 3):
        threads(count)
        again = decoders[1].step(ids, cache(model, rows, now))
        assert torch.equal(again, found)


@needed
def test_where_memory_begins_changes_no_bit() -> None:
    """Loops that a compiler begins where memory is aligned would add in another order."""
    generator = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(3, 501, generator=generator), torch.rand(3, generator=generator)
    forest = pack([tiny.group(21, 30, 40), tiny.group(50)])
    qkv = [torch.randn(forest.T, n, 24, generator=generator) for n in (4, 2, 2)]
    found = []
    for shift in (0, 1, 3, 7, 8, 15):
        moved = [_moved(x, shift).requires_grad_() for x in qkv]
        out = tree_attention.attention(*moved, forest.segments, 0.3)
        out.square().sum().backward()
        found.append([*sample_tokens(_moved(logits, shift), 1.0, uniform), out, *(x.grad for x in moved)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def _moved(x: torch.Tensor, by: int) -> torch.Tensor:
    """The same numbers at another address: `by` floats after the beginning of a block."""
    room = torch.empty(x.numel() + by)
    return room[by:].view(x.shape).copy_(x).detach()


@needed
@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model = module("llama")
    decoder = make_decoder(model.model, model.lm_head, 40, NATIVE)
    ids, whole = torch.arange(20), cache(model, 20, 17)
    found = decoder.step(ids, whole)
    few = cache(model, 20, 17)
    few.keys, few.values = ({i: x[5:12].clone() for i, x in s.items()} for s in (few.keys, few.values))
    few.length_S = few.length_S[5:12]
    assert torch.equal(decoder.step(ids[5:12], few), found[5:12])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([1, 2, 63, 64, 65, 500]),
    rows=st.integers(1, 5),
    spread=st.sampled_from([0.1, 3.0, 200.0]),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    never=st.booleans(),
)
@needed
def test_draws_are_the_same_in_torch(
    seed: int, vocabulary: int, rows: int, spread: float, temperature: float, never: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    if never and vocabulary > 1:
        logits[:, ::2] = -torch.inf
    probs = (logits.double() / temperature).softmax(-1)
    for uniform in (torch.rand(rows, generator=generator), torch.zeros(rows), torch.full((rows,), 1 - 2**-24)):
        tokens, logps = sample_tokens(logits, temperature, uniform)
        chosen = probs.gather(-1, tokens[:, None])[:, 0]
        assert bool((chosen > 0).all())
        torch.testing.assert_close(logps.double(), chosen.log(), atol=1e-4, rtol=1e-5)
        # the token whose stretch of the exact CDF holds the uniform, to float32's rounding
        high = probs.cumsum(-1).gather(-1, tokens[:, None])[:, 0]
        assert bool((uniform.double() <= high + 1e-6).all())
        assert bool((uniform.double() >= high - chosen - 1e-6).all())


@needed
def test_rubbish_draws_a_token_all_the_same() -> None:
    for bad in (float("nan"), float("-inf"), float("inf")):
        tokens, _ = sample_tokens(torch.full((3, 70), bad), 1.0, torch.tensor([0.0, 0.5, 0.99]))
        assert bool(((tokens >= 0) & (tokens < 70)).all())


def test_panels_hold_all_weights() -> None:
    weight = torch.arange(40 * 3.0).view(40, 3)
    laid = panels([weight])
    assert laid.shape == (2, 3, 32)
    assert torch.equal(laid[1, 2, :8], weight[32:, 2])
    assert not laid[1, :, 8:].any()
    both = panels([weight[:20], weight[20:]])
    assert torch.equal(both[1, 1, :4], weight[16:20, 1])
    assert torch.equal(both[1, 1, 16:20], weight[36:, 1])
