"""Every family, packed or padded, gives the numbers that transformers gives one unpadded sequence at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.kernels import fused_block
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.types import Group, Prompt, Response

SCALAR = ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma", "gemma2", "gemma3", "gpt_neox", "phi3", "opt", "bloom"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_is_packed_where_it_can_be_and_only_there(family: str) -> None:
    model = tiny.language(family)
    assert model.packed is (family in tiny.PACKED), model.padded_reason


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logp_and_entropy_equal_plain_transformers(family: str) -> None:
    model, groups = tiny.language(family), tiny.mixed()
    expected, entropy = tiny.plain_logp(tiny.causal(family), groups, 0.7)
    with torch.no_grad():
        logp_R, entropy_R = model.logp_R(pack(groups), temperature=0.7, entropy=True)
    torch.testing.assert_close(logp_R.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy_R.double(), entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gradients_equal_plain_transformers(family: str) -> None:
    groups = tiny.mixed()
    dtype = "float32" if family in tiny.NO_FLOAT64 else "float64"
    oracle = tiny.causal(family, dtype=getattr(torch, dtype))
    expected, entropy = tiny.plain_logp(oracle, groups)
    weight = torch.randn(2, len(expected), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (weight[0] @ expected + weight[1] @ entropy).backward()
    model = tiny.language(family, dtype=dtype)
    logp_R, entropy_R = model.logp_R(pack(groups), entropy=True)
    (weight[0] @ logp_R.double() + weight[1] @ entropy_R.double()).backward()
    # some families compute rotary angles or norms in float32 whatever the weights are
    own = dict(model.module.named_parameters())
    for name, parameter in oracle.named_parameters():
        if parameter.grad is None:
            assert own[name].grad is None or not own[name].grad.any(), name
            continue
        scale = float(parameter.grad.abs().max().clamp_min(1e-3))
        torch.testing.assert_close(own[name].grad, parameter.grad, atol=2e-5 * scale, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_forced_fallback_equals_packed(family: str) -> None:
    groups = tiny.mixed()
    packed, padded = tiny.language(family), tiny.language(family)
    padded.force_padded("asked for by this test")
    assert packed.packed
    assert not padded.packed
    for one, other in zip(
        packed.logp_R(pack(groups), entropy=True), padded.logp_R(pack(groups), entropy=True), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.hidden_T(pack(groups)), padded.hidden_T(pack(groups)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", SCALAR)
def test_scores_equal_sequence_classification(family: str) -> None:
    """HF reads the rightmost token that is not pad in right-padded rows; our ids contain no pad here."""
    model, oracle, groups = tiny.scalar(family), tiny.classifier(family), tiny.mixed()
    model.bias = 0.25
    pad = oracle.config.pad_token_id
    rows = [ids for ids, _, _ in tiny.rows(groups)]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [pad] * (longest - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    with torch.no_grad():
        expected = oracle(input_ids=ids, attention_mask=mask).logits[:, 0]
        score_B = model.score_B(pack(groups))
    torch.testing.assert_close(score_B, expected - 0.25, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SCALAR)
def test_values_are_scores_of_prefixes(family: str) -> None:
    """The value before response token i is the raw score of the prompt and the i tokens before it."""
    model, oracle, groups = tiny.scalar(family), tiny.classifier(family), tiny.mixed()
    with torch.no_grad():
        value_R = model.value_R(pack(groups))
        expected = torch.cat(
            [
                oracle(input_ids=torch.tensor([ids[: start + i]])).logits[0]
                for ids, start, response in tiny.rows(groups)
                for i in range(len(response.ids))
            ]
        )
    torch.testing.assert_close(value_R, expected, atol=1e-5, rtol=1e-5)


MODELS = {family: tiny.language(family, dtype="float64") for family in ("llama", "mistral")}


@settings(max_examples=25, deadline=None)
@given(data=st.data(), family=st.sampled_from(sorted(MODELS)))
def test_packing_changes_nothing(data: st.DataObject, family: str) -> None:
    """However groups are ordered, shared among batches, and whether their responses share a tree: the same numbers."""
    sizes = st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(1, 14), min_size=1, max_size=4)), min_size=1, max_size=6
    )
    groups = [tiny.group(p, *r, seed=i) for i, (p, r) in enumerate(data.draw(sizes))]
    model = MODELS[family]
    with torch.no_grad():
        together = model.logp_R(pack(groups))[0]
        alone = [
            model.logp_R(pack([Group(g.prompt, (r,))]))[0] for g in groups for r in g.responses
        ]  # one response a batch
        order = data.draw(st.permutations(range(len(groups))))
        cut = data.draw(st.integers(0, len(groups)))
        parts = [[groups[i] for i in part] for part in (order[:cut], order[cut:]) if part]
        moved = torch.cat([model.logp_R(pack(part))[0] for part in parts])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    starts = torch.tensor([0, *(sum(len(r.ids) for r in g.responses) for g in groups)]).cumsum(0)
    back = torch.cat([together[starts[i] : starts[i + 1]] for i in order])
    torch.testing.assert_close(moved, back, atol=1e-5, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(1, 40), min_size=0, max_size=6)), min_size=1, max_size=9
    )
)
def test_tiles_hold_every_token_and_little_padding(sizes: list[tuple[int, list[int]]]) -> None:
    forest = pack([tiny.group(p, *r, seed=i) for i, (p, r) in enumerate(sizes)])
    rows = torch.cat([tile.index for tile in forest.tiles])
    assert torch.equal(rows[forest.untile_T], torch.arange(forest.T))
    branch = torch.cat([tile.branch_nL.flatten() for tile in forest.tiles])
    assert torch.equal(branch[forest.untile_T], forest.branch_T)
    for tile in forest.tiles:
        assert (tile.branch_nL >= 0).sum() * 1.25 >= tile.n * tile.length


def test_trees_are_laid_whole_or_cut_into_branches_whichever_is_cheaper() -> None:
    assert {tile.single_branch for tile in pack(tiny.mixed()).tiles} == {True, False}
    assert [t.single_branch for t in pack([tiny.group(2, 9, 9, 9)]).tiles] == [True]
    assert [(t.single_branch, t.n) for t in pack([tiny.group(40, 1, 2, 1)]).tiles] == [(False, 1)]


def test_loss_spans_choose_the_tokens() -> None:
    spans = ((0, 2), (5, 8))
    groups = [tiny.group(5, 8, spans=spans), tiny.group(3, 4), tiny.group(2, 9, 10, spans=((3, 4),))]
    model = tiny.language("llama")
    forest = pack(groups)
    assert forest.count_B.tolist() == [5, 4, 1, 1]
    assert forest.offset_B.tolist() == [0, 5, 9, 10]
    assert forest.response_R.tolist() == [0] * 5 + [1] * 4 + [2, 3]
    torch.testing.assert_close(
        model.logp_R(forest)[0].double(), tiny.plain_logp(tiny.causal("llama"), groups)[0], atol=1e-5, rtol=1e-5
    )
    empty = pack([tiny.group(3, 4, spans=())])
    assert empty.R == 0
    assert model.logp_R(empty)[0].shape == (0,)


def test_prompt_positions_other_than_the_last_get_no_gradient() -> None:
    model, groups = tiny.language("gpt2"), [tiny.group(6, 4, 5), tiny.group(3, 2)]
    forest = pack(groups)
    kept: list[torch.Tensor] = []
    whole = model.hidden_T

    def spy(forest, cache=None):
        hidden_T = whole(forest, cache)
        hidden_T.retain_grad()
        kept.append(hidden_T)
        return hidden_T

    model.hidden_T = spy
    model.logp_R(forest)[0].sum().backward()
    touched = kept[0].grad.abs().sum(-1) > 0
    expected = torch.zeros(forest.T, dtype=torch.bool)
    expected[forest.predictor_R] = True
    assert torch.equal(touched, expected)
    assert expected[forest.prompt_last_G].all()
    assert not expected[:5].any()
    assert not expected[forest.last_B].any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_gradient_checkpointing_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fused_block, "is_supported", lambda *_: False
    )  # they compute again by themselves (test_fused_block.py)
    grads = []
    for checkpointing in (False, True):
        model = tiny.language(family)
        model.module.train()
        for part in model.module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        if checkpointing:
            model.checkpoint_activations()
        logp_R = model.logp_R(pack(tiny.mixed()))[0]
        logp_R.sum().backward()
        grads.append([logp_R.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_bfloat16_is_close() -> None:
    groups = tiny.mixed()
    exact = tiny.language("llama").logp_R(pack(groups))[0]
    model = tiny.language("llama", dtype="bfloat16")
    assert model.packed
    close = model.logp_R(pack(groups))[0]
    assert close.dtype == torch.float32
    assert (close - exact).abs().mean() < 0.05
    close.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_pad_equal_to_eos_still_learns(family: str) -> None:
    """transformers gives the embedding of pad no gradient; where pad is eos, eos as input would never be learnt."""
    model = LanguageModel(tiny.causal(family, pad_token_id=2, tie_word_embeddings=False), tiny.chat())
    groups = [Group(Prompt(ids=(5, 2, 6)), (Response(ids=(7, 2, 9, 2)),))]
    model.logp_R(pack(groups))[0].sum().backward()
    assert model.module.get_input_embeddings().weight.grad[2].any()


def test_pad_id_inside_text_is_a_token() -> None:
    groups = [Group(Prompt(ids=(0, 5, 0)), (Response(ids=(0, 7, 0)), Response(ids=(0,))))]
    for family in ("llama", "bloom"):
        expected, _ = tiny.plain_logp(tiny.causal(family), groups)
        found = tiny.language(family).logp_R(pack(groups))[0]
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_plain_restores_transformers_attention() -> None:
    model, ids = tiny.language("llama"), torch.tensor([[5, 6, 7, 8]])
    expected = tiny.causal("llama")(input_ids=ids).logits
    assert model.module.config._attn_implementation == "tiltyard"
    with model.plain():
        assert model.module.config._attn_implementation == "sdpa"
        torch.testing.assert_close(model.module(input_ids=ids).logits, expected)
        generated = model.module.generate(ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, tiny.causal("llama").generate(ids, max_new_tokens=3, do_sample=False))
    assert model.module.config._attn_implementation == "tiltyard"
    with pytest.raises(RuntimeError, match="stop"), model.plain():
        raise RuntimeError("stop")
    assert model.module.config._attn_implementation == "tiltyard"


def test_probe_leaves_mode_and_grad_alone() -> None:
    module = tiny.causal("llama").train()
    LanguageModel(module, tiny.chat())
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_scalar_head_is_demanded() -> None:
    with pytest.raises(Exception, match="scalar head"):
        _ = ScalarModel(tiny.causal("llama"), tiny.chat()).head


@pytest.mark.parametrize("family", sorted(set(tiny.FAMILIES) - {"gpt_oss", "qwen2_moe_window"}))
def test_padding_far_longer_than_a_window_reaches_nobody(family: str) -> None:
    """Rows of 3 and 24 tokens, run padded: a pad that may see nothing is NaN (Gemma 2 in float64), and NaN spreads.

    Without the mixtures of experts, whose grouped product knows no float64.
    """
    model = tiny.language(family, "float64")
    model.force_padded("the test says so")
    groups = [tiny.group(1, 2), tiny.group(4, 20)]
    own, _ = tiny.plain_logp(tiny.causal(family, dtype=torch.float64), groups)
    with torch.no_grad():
        logp_R, _ = model.logp_R(pack(groups))
    torch.testing.assert_close(logp_R, own, atol=1e-6, rtol=1e-6)
