"""Policy and reference in one loop over the tokens: the bits of each alone, and the exact KL by enumeration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from tiltyard.batch import logp
from tiltyard.batch.compare import compare_with_ref
from tiltyard.batch.forest import pack
from tiltyard.models.language import LanguageModel

TEMPERATURES = [(1.0, None), (0.7, None), (0.7, 1.0)]


def plain_kl(one: Any, two: Any, temperature: float) -> torch.Tensor:
    """`by_sum` of transformers' logits of one sequence at a time."""
    found = []
    for ids, start, response in tiny.rows(tiny.mixed()):
        read = slice(start - 1, start - 1 + len(response.ids))
        both = [module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, read] for module in (one, two)]
        found.append(by_sum(*both, temperature))
    return torch.cat(found)


def by_sum(one: torch.Tensor, two: torch.Tensor, temperature: float) -> torch.Tensor:
    """sum_v p log(p / q) of two laws in float64, from logits [rows, V]."""
    p, q = ((z.double() / temperature).softmax(-1) for z in (one, two))
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("family", sorted(set(tiny.FAMILIES) - set(tiny.NO_FLOAT64)))
@pytest.mark.parametrize(("temperature", "ref_temperature"), TEMPERATURES)
@torch.no_grad()
def test_every_family(family: str, temperature: float, ref_temperature: float | None) -> None:
    """Caps, scales and padded models too: the log-probs are those of `logp_R` to the bit, the KL is the enumeration."""
    policy, ref = tiny.language(family, "float64"), tiny.language(family, "float64", seed=1)
    forest = pack(tiny.mixed())
    found = compare_with_ref(policy, ref, forest, temperature, ref_temperature)
    own_R, entropy_R = policy.logp_R(forest, temperature=temperature, entropy=True)
    assert found.logp_R.equal(own_R)
    assert entropy_R is not None
    assert found.entropy_R.equal(entropy_R)
    assert found.ref_logp_R.equal(ref.logp_R(forest, temperature=temperature)[0])
    assert found.ref_at_R.equal(ref.logp_R(forest, temperature=ref_temperature or temperature)[0])
    plain_R = plain_kl(tiny.causal(family, 0, torch.float64), tiny.causal(family, 1, torch.float64), temperature)
    assert float(plain_R.min()) > 1e-3
    torch.testing.assert_close(found.kl_R, plain_R, rtol=1e-5, atol=1e-5)  # some compute angles in float32
    if policy.packed:
        both = [model.logits(model.hidden_T(forest)[forest.predictor_R]) for model in (policy, ref)]
        torch.testing.assert_close(found.kl_R, by_sum(*both, temperature), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_less_precise_arithmetic(dtype: Any) -> None:
    """Summed in float32: the same bits as alone, exactly 0 for equal models, near the enumeration for others."""
    policy, same, ref = (tiny.language("gemma2", dtype, seed=seed) for seed in (0, 0, 1))
    forest = pack(tiny.mixed())
    assert float(compare_with_ref(policy, same, forest).kl_R.abs().max()) == 0
    found = compare_with_ref(policy, ref, forest, 0.7)
    assert found.kl_R.dtype == torch.float32
    with torch.no_grad():
        assert found.logp_R.equal(policy.logp_R(forest, temperature=0.7)[0])
        wide = [tiny.causal("gemma2", seed).double() for seed in (0, 1)]
        expected_R = plain_kl(*wide, 0.7).float()
    within = 1e-4 if dtype == "float32" else 0.2
    torch.testing.assert_close(found.kl_R, expected_R, rtol=within, atol=within)


def test_a_head_with_a_bias() -> None:
    policy, ref = tiny.language("llama", "float64"), tiny.language("llama", "float64", seed=1)
    policy.head.bias = torch.nn.Parameter(torch.linspace(-2, 2, tiny.VOCAB, dtype=torch.float64))
    forest = pack(tiny.mixed())
    found = compare_with_ref(policy, ref, forest)
    with torch.no_grad():
        assert found.logp_R.equal(policy.logp_R(forest)[0])
        both = [model.logits(model.hidden_T(forest)[forest.predictor_R]) for model in (policy, ref)]
    torch.testing.assert_close(found.kl_R, by_sum(*both, 1.0), rtol=1e-10, atol=1e-10)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor made, and how many products there were with a factor of this many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.made, self.products = rows, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (out if isinstance(out, tuple | list) else (out,)) if torch.is_tensor(x)]
        self.made = max([self.made, *(x.numel() for x in tensors)])
        self.products += func is torch.ops.aten.mm.default and out.shape[-1] == self.rows
        return out


def test_chunks_change_nothing_and_nothing_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, ref = tiny.language("llama", "float64"), tiny.language("llama", "float64", seed=1)
    forest = pack([tiny.group(3, *([9] * 30), seed=seed) for seed in range(4)])
    whole = compare_with_ref(policy, ref, forest, 0.7, 1.0)
    monkeypatch.setattr(logp, "CHUNK_ELEMENTS", 3 * tiny.VOCAB)
    monkeypatch.setattr(logp, "MIN_ROWS", 1)
    hidden = {id(model): model.hidden_T(forest).detach() for model in (policy, ref)}
    monkeypatch.setattr(LanguageModel, "hidden_T", lambda self, forest: hidden[id(self)])
    with Largest(tiny.VOCAB) as seen:
        parts = compare_with_ref(policy, ref, forest, 0.7, 1.0)
    torch.testing.assert_close(tuple(parts), tuple(whole), rtol=1e-12, atol=1e-12)
    assert seen.made == hidden[id(policy)].shape[1] * forest.R  # hidden states, and no logits of all tokens
    assert seen.made < forest.R * tiny.VOCAB
    assert seen.products == 2 * -(-forest.R // 3)  # one a chunk and model, two temperatures or one


def test_one_forward_pass_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, ref = tiny.language("llama"), tiny.language("llama", seed=1)
    passes: list[Any] = []
    for model in (policy, ref):
        model.backbone.register_forward_hook(lambda module, *_: passes.append(module))
    compare_with_ref(policy, ref, pack(tiny.mixed()), 0.7, 1.0)
    assert passes == [policy.backbone, ref.backbone]


def test_vocabularies_of_different_sizes() -> None:
    """A padded reference: the tokens both have, by its own whole law. A token that the reference lacks: infinity."""
    small, large = tiny.language("llama", "float64"), tiny.language("llama", "float64", seed=1, vocab_size=80)
    forest = pack(tiny.mixed())
    found = compare_with_ref(small, large, forest)
    with torch.no_grad():
        p, q = (torch.log_softmax(m.logits(m.hidden_T(forest)[forest.predictor_R]), -1) for m in (small, large))
    torch.testing.assert_close(found.kl_R, (p.exp() * (p - q[:, :64])).sum(-1), rtol=1e-10, atol=1e-10)
    assert compare_with_ref(large, small, forest).kl_R.isposinf().all()


def test_no_tokens() -> None:
    policy = tiny.language("llama")
    found = compare_with_ref(policy, policy, pack([tiny.group(3)]))
    assert [len(column) for column in found] == [0] * 5
