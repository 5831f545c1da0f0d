"""The references run on their own: finite, falling, and deaf to padding."""

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from . import dpo, ppo, reward, sft

VOCAB, EOS = 17, 1


def tiny(cls, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, num_labels=1, pad_token_id=None,
        initializer_range=0.2,
    )  # fmt: skip
    return cls(config).double()


def ids(length, g):
    return torch.randint(2, VOCAB, (length,), generator=g).tolist()


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def assert_falls(metrics, key="loss"):
    losses = [m[key] for m in metrics]
    assert all(math.isfinite(x) for x in losses)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_sft(g):
    batch = [(ids(3, g), [*ids(n, g), EOS]) for n in (2, 5, 1)]
    model = tiny(LlamaForCausalLM)
    metrics, final = sft.run(model, [batch] * 3, lr=1e-2)
    assert_falls(metrics)
    assert metrics[0]["tokens"] == 11
    assert final.keys() == dict(model.named_parameters()).keys()


def test_sft_loss_is_the_token_mean_without_padding(g):
    batch = [(ids(2, g), ids(3, g)), (ids(6, g), ids(1, g))]
    model = tiny(LlamaForCausalLM)
    alone = [sft.response_log_probs(model, [pair])[0] for pair in batch]
    metrics, _ = sft.run(model, [batch], lr=0.0)
    assert metrics[0]["loss"] == pytest.approx(-torch.cat(alone).mean().item(), abs=1e-12)


def test_a_padded_row_is_exact_to_the_last_digits(g):
    """Padding reaches neither the log-probs nor the gradients."""
    pair, long = (ids(4, g), ids(6, g)), (ids(9, g), ids(20, g))
    model = tiny(LlamaForCausalLM)
    grads = []
    for batch in ([pair], [long, pair]):
        model.zero_grad()
        log_probs = sft.response_log_probs(model, batch)[-1]
        log_probs.sum().backward()
        grads.append([log_probs.detach(), *(p.grad.clone() for p in model.parameters())])
    for alone, padded in zip(*grads, strict=True):
        torch.testing.assert_close(alone, padded, rtol=1e-12, atol=1e-12)


def test_reward(g):
    batch = [
        (ids(3, g), [ids(n, g) for n in (2, 4, 3, 1)], [2, 1, 4, 2]),
        (ids(5, g), [ids(n, g) for n in (2, 2)], [1, 2]),
        (ids(2, g), [ids(n, g) for n in (2, 3)], [1, 1]),  # only a tie: says nothing
    ]
    model = tiny(LlamaForSequenceClassification)
    prompt, responses, _ = batch[0]
    alone = [reward.scores(model, [(prompt, r)])[0].item() for r in responses]
    together = reward.scores(model, [(prompt, r) for r in responses]).tolist()
    assert together == pytest.approx(alone, abs=1e-13)
    metrics, _ = reward.run(model, [batch] * 3, lr=1e-3)
    assert_falls(metrics)
    assert metrics[0]["groups"] == 2


def order(step, epoch, n):
    return torch.randperm(n, generator=torch.Generator().manual_seed(100 * step + epoch)).tolist()


def rollouts(g):
    sizes = ((3, "stop"), (1, "stop"), (6, "length"), (2, "stop"))
    return [
        ppo.Rollout(ids(2 + i, g), [*ids(n, g), *([EOS] if f == "stop" else [])], f, float(i) - 1)
        for i, (n, f) in enumerate(sizes)
    ]


def test_ppo(g):
    batch = rollouts(g)
    policy, value = tiny(LlamaForCausalLM), tiny(LlamaForSequenceClassification, 1)
    ref = copy.deepcopy(policy)
    before = {n: p.clone() for n, p in ref.named_parameters()}
    settings = {"beta": 0.05, "lr": 1e-3, "value_lr": 3e-3, "epochs": 2, "minibatches": 2, "vf_coef": 0.5}
    metrics, final = ppo.run(policy, ref, value, [batch] * 3, order, **settings)
    assert all(math.isfinite(x) for m in metrics for u in m["updates"] for x in u.values())
    assert [len(m["updates"]) for m in metrics] == [4, 4, 4]
    assert metrics[0]["kl"] == 0  # pi = ref before the first update
    assert metrics[0]["updates"][0]["ratio"] == pytest.approx(1, abs=1e-12)
    assert metrics[0]["score"] == pytest.approx((-1 + 0 - 1 + 2) / 4)  # the cut one was replaced by -penalty
    assert_falls(metrics, "vf_loss")
    assert all((p == before[n]).all() for n, p in ref.named_parameters())
    assert final.keys() == {"policy", "value"}


def test_ppo_surrogate_falls_within_a_step(g):
    """One batch, many epochs, no clip reached: the surrogate falls from its start, -mean A = 0 after whitening."""
    policy, value = tiny(LlamaForCausalLM), tiny(LlamaForSequenceClassification, 1)
    metrics, _ = ppo.run(
        policy, copy.deepcopy(policy), value, [rollouts(g)], order, beta=0.0, lr=1e-4, value_lr=1e-4, epochs=3
    )
    updates = metrics[0]["updates"]
    assert updates[0]["pg_loss"] == pytest.approx(0, abs=1e-12)
    assert_falls(updates, "pg_loss")


def pairs(g):
    """Five pairs: chosen, rejected, voted on, an even vote, and a tie."""
    labels = (1.0, 0.0, 0.8, 0.5, None)
    return [(ids(2 + i, g), [*ids(1 + i, g), EOS], [*ids(5 - i, g), EOS], q) for i, q in enumerate(labels)]


@pytest.mark.parametrize(
    ("kind", "strength", "start"),
    [("dpo", 0.3, math.log(2)), ("ipo", 0.4, 1 / 0.64), ("ipo averaged", 0.4, 1 / 0.64), ("slic", 0.5, None)],
)
def test_dpo(g, kind, strength, start):
    """At pi = ref, h = 0 and the loss is l(0) whatever the labels; then it falls. The reference stays."""
    batch, policy = pairs(g), tiny(LlamaForCausalLM)
    ref = copy.deepcopy(policy)
    before = {n: p.clone() for n, p in ref.named_parameters()}
    metrics, final = dpo.run(policy, ref, [batch] * 3, kind, strength, lr=1e-3)
    assert_falls(metrics)
    assert {m["pairs"] for m in metrics} == {4}
    if start is not None:
        assert metrics[0]["loss"] == pytest.approx(start, abs=1e-12)
        assert metrics[0]["margin"] == 0
        assert metrics[0]["accuracy"] == 0.5
    assert metrics[-1]["margin"] > metrics[0]["margin"]
    assert all((p == before[n]).all() for n, p in ref.named_parameters())
    assert any((p != before[n]).any() for n, p in final.items())


def test_dpo_log_probs_are_sums_over_the_response_without_padding(g):
    rows = [(ids(2, g), ids(3, g)), (ids(6, g), ids(1, g))]
    model = tiny(LlamaForCausalLM)
    plain = [sft.response_log_probs(model, [row])[0].sum().item() for row in rows]
    assert dpo.log_prob(model, rows).tolist() == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("noise", [0.1, 0.4])
def test_dpo_labels(noise):
    """Conservative is what flipped labels are in expectation, and robust takes that back; both leave an even vote."""
    for q in (0.0, 0.3, 1.0):
        flipped = dpo.label(q, noise, "conservative")
        assert flipped == pytest.approx((1 - noise) * q + noise * (1 - q), abs=1e-15)
        assert dpo.label(flipped, noise, "robust") == pytest.approx(q, abs=1e-14)
    assert dpo.label(0.5, noise, "robust") == pytest.approx(0.5, abs=1e-15)


@pytest.mark.parametrize(("kind", "strength"), [("dpo", 0.3), ("ipo", 0.4), ("ipo averaged", 0.4), ("slic", 0.5)])
def test_dpo_soft_labels_are_hard_ones_in_expectation(g, kind, strength):
    """One pair voted 3 : 1 against four copies with hard labels: the same loss and the same gradient."""
    prompt, first, second = ids(3, g), ids(4, g), ids(2, g)
    found = []
    for labels in ((0.75,), (1.0, 1.0, 0.0, 1.0)):
        batch = [(prompt, first, second, q) for q in labels]
        (row,), _ = dpo.run(tiny(LlamaForCausalLM), tiny(LlamaForCausalLM, 1), [batch], kind, strength, lr=0.0)
        found.append([row["loss"], row["grad_norm"]])
    assert found[0] == pytest.approx(found[1], abs=1e-12)
