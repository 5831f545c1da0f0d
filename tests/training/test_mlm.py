"""Masked language modelling: BERT's loss by transformers alone, BERT's shares of tokens, the same however it is cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.chance import chi_square, follows, near, share, shifted

from models import encoders
from tiltyard.batch.batch import Batch
from tiltyard.errors import CompositionError, ConfigError
from tiltyard.methods import mlm
from tiltyard.methods.mlm import Cloze, Mask
from tiltyard.models.encoder import MaskedModel
from tiltyard.training.algorithm import Algorithm, Forward, Mean, Models
from tiltyard.training.source import Offline
from tiltyard.types import Group

from . import tiny

EXACT = 1e-10
FAMILIES = ("bert", "roberta", "modernbert", "deberta_v2", "mobilebert")


def batch_of(groups: Sequence[Group], index: Sequence[int] | None = None, budget: int = 8192) -> Batch:
    return Batch.of(groups, index if index is not None else range(len(groups)), len(groups), "cpu", budget)


def masked_batch(model: MaskedModel, groups: Sequence[Group], mask: Mask, version: int = 0, **kwargs: Any) -> Batch:
    return mask(Models(encoder=model, version=version), batch_of(groups, **kwargs))


def padded(batch: Batch) -> dict[str, torch.Tensor]:
    """What a plain transformers training loop is given: corrupted ids, attention mask, labels of -100 elsewhere."""
    longest = max(g.tokens for g in batch.groups)
    ids = torch.zeros(len(batch.groups), longest, dtype=torch.long)
    attention, labels, done = torch.zeros_like(ids), torch.full_like(ids, -100), 0
    for row, group in enumerate(batch.groups):
        true = torch.tensor(group.responses[0].ids)
        span = slice(done, done + len(true))
        done += len(true)
        ids[row, 0], attention[row, : len(true) + 1] = group.prompt.ids[0], 1
        ids[row, 1 : len(true) + 1] = batch["corrupt_R"][span]
        labels[row, 1 : len(true) + 1] = torch.where(batch["masked_R"][span] > 0, true, -100)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def loss_of(model: MaskedModel, batch: Batch) -> torch.Tensor:
    per_item, _ = Cloze()(Forward(Models(encoder=model), batch, 1.0), batch)
    mean = Mean(weight="masked_R")
    return mean.sum(per_item, batch) / mean.count("R", batch)


@torch.no_grad()
def total(model: MaskedModel, batch: Batch) -> float:
    return float(Cloze()(Forward(Models(encoder=model), batch, 1.0), batch)[0].sum())


# ------------------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_transformers(family: str) -> None:
    model = encoders.masked(family)
    batch = masked_batch(model, encoders.documents(), Mask(0.4))
    found = loss_of(model, batch)
    found.backward()
    own = {n: p.grad for n, p in model.module.named_parameters()}
    model.module.zero_grad()
    given = padded(batch)
    labels = given.pop("labels")
    logits = model.module(**given).logits  # transformers' own loss of ModernBERT is rounded to float32
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    rounded = model.module(**given, labels=labels).loss
    assert float(rounded.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    expected.backward()
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=EXACT)
    for name, parameter in model.module.named_parameters():
        if parameter.grad is None:
            assert own[name] is None or not own[name].any(), name
        else:
            torch.testing.assert_close(own[name], parameter.grad, atol=EXACT, rtol=1e-9)


def test_what_is_not_masked_has_no_gradient() -> None:
    """At the input of the output layer: every chosen place has a gradient, no other place has any."""
    model = encoders.masked("bert")
    batch = masked_batch(model, encoders.documents(4), Mask(0.3))
    kept: list[torch.Tensor] = []

    def keep(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        inputs[0].retain_grad()
        kept.append(inputs[0])

    handle = model.module.get_output_embeddings().register_forward_pre_hook(keep)
    model._mixes_lengths = True
    loss_of(model, batch).backward()
    handle.remove()
    places = sum(int((h.grad.abs().sum(-1) > 0).sum()) for h in kept if h.grad is not None)
    assert places == int(batch["masked_R"].sum())


def test_cutting_and_ordering_change_nothing() -> None:
    """The same masks and the same loss whatever the micro-batch, the other groups here, and their order."""
    model, groups = encoders.masked("modernbert"), encoders.documents(9)
    whole = masked_batch(model, groups, Mask(seed=3), version=5)
    expected = total(model, whole)
    for budget in (1, 30):
        parts = replace(whole, budget=budget).micro()
        assert len(parts) > 1
        assert sum(total(model, part) for part in parts) == pytest.approx(expected, abs=EXACT)
    order = [4, 8, 1]  # one process's share, in another order
    share = masked_batch(model, [groups[i] for i in order], Mask(seed=3), version=5, index=order)
    for name in ("corrupt_R", "masked_R"):
        assert share[name].equal(whole.select(order)[name])


def test_masks_are_drawn_anew_each_version_and_by_seed() -> None:
    model, groups = encoders.masked("bert"), encoders.documents(9)
    drawn = [masked_batch(model, groups, Mask(seed=s), version=v) for s, v in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert drawn[0]["corrupt_R"].equal(drawn[1]["corrupt_R"])
    assert not drawn[0]["masked_R"].equal(drawn[2]["masked_R"])
    assert not drawn[0]["masked_R"].equal(drawn[3]["masked_R"])


# ----------------------------------------------------------------------------------------------------------- the masks


def long_texts(n: int, length: int) -> list[Group]:
    """Texts of words that are not special, an eos at the end of each."""
    stream = torch.Generator().manual_seed(shifted(7))
    model = encoders.masked("bert")
    words = model.words[torch.randint(len(model.words), (n, length), generator=stream)]
    group = encoders.documents(1)[0]
    eos = model.chat.eos_id
    return [replace(group, responses=(replace(group.responses[0], ids=(*row.tolist(), eos)),)) for row in words]


@pytest.mark.statistical
@pytest.mark.parametrize(("p", "to_mask", "to_random"), [(0.15, 0.8, 0.1), (0.3, 0.5, 0.5), (0.4, 0.0, 0.2)])
def test_shares_are_those_asked_for(p: float, to_mask: float, to_random: float) -> None:
    model, groups, length = encoders.masked("bert"), long_texts(60, 200), 200
    batch = masked_batch(model, groups, Mask(p, to_mask, to_random, seed=shifted(0)))
    true_R, seen_R, chosen_R = batch.forest.target_R, batch["corrupt_R"], batch["masked_R"] > 0
    n = len(groups) * length
    share(int(chosen_R.sum()), n, p)
    assert seen_R[~chosen_R].equal(true_R[~chosen_R])
    seen, true = seen_R[chosen_R], true_R[chosen_R]
    chosen, others = len(seen), len(model.words)
    share(int((seen == model.mask_id).sum()), chosen, to_mask)
    share(int((seen == true).sum()), chosen, (1 - to_mask - to_random) + to_random / others)
    replaced = seen[(seen != model.mask_id) & (seen != true)]
    assert torch.isin(replaced, model.words).all()
    follows(Counter(replaced.tolist()), dict.fromkeys(model.words.tolist(), 1 / others))
    assert batch.metrics["masked"] == (chosen, n)


@pytest.mark.statistical
def test_places_are_chosen_evenly_and_on_their_own() -> None:
    """Of 400 texts: each place as often as the others, and neighbours together as often as chance has it."""
    model, groups = encoders.masked("bert"), long_texts(400, 20)
    chosen = masked_batch(model, groups, Mask(0.5, seed=shifted(0)))["masked_R"].view(400, 21)
    assert not chosen[:, -1].any()  # eos is special
    free = chosen[:, :-1]
    chi_square(float(((free.sum(0) - 200) ** 2 / 100).sum()), 20)
    # overlapping pairs depend on each other: the variance of a text's sum is 19 * 3/16 + 2 * 18 * 1/16
    near(float((free[:, :-1] * free[:, 1:]).sum()), 400 * 19 / 4, math.sqrt(400 * (19 * 3 + 2 * 18) / 16))


@pytest.mark.statistical
def test_one_token_at_least_evenly_anywhere() -> None:
    """At a share so small that nothing is ever chosen otherwise."""
    model, groups = encoders.masked("bert"), long_texts(500, 4)
    chosen = masked_batch(model, groups, Mask(1e-9, seed=shifted(0)))["masked_R"].view(500, 5)
    assert chosen.sum(1).equal(torch.ones(500, dtype=torch.float64))
    follows(Counter(chosen.argmax(1).tolist()), dict.fromkeys(range(4), 0.25))


def test_special_tokens_are_never_chosen() -> None:
    """A text of special tokens alone says nothing: it has no loss, and the step goes on with the others."""
    model = encoders.masked("bert")
    text = encoders.documents(1)[0]
    special = replace(text, responses=(replace(text.responses[0], ids=(0, 1, 2, 3, 4, 3)),))
    batch = masked_batch(model, [special, text], Mask(0.999))
    chosen = batch["masked_R"]
    assert not chosen[:6].any()
    assert chosen[6:-1].any()
    assert batch["corrupt_R"][:6].equal(batch.forest.target_R[:6])
    alone = masked_batch(model, [special], Mask(0.999))
    assert not Cloze()(Forward(Models(encoder=model), alone, 1.0), alone)[0].any()
    assert not torch.isin(torch.tensor(encoders.wordpiece().all_special_ids), model.words).any()


def test_wrong_shares_and_a_missing_step() -> None:
    with pytest.raises(ConfigError, match="more tokens would be replaced"):
        mlm(Offline(encoders.documents(), 2), to_mask=0.8, to_random=0.3)
    with pytest.raises(CompositionError, match="corrupt_R"):
        Algorithm("bare", Offline(encoders.documents(), 2), Cloze(), trains=("encoder",))


# ------------------------------------------------------------------------------------------------------------- training


def run(folder: Path | None, steps: int = 6, until: int = 0, **settings: Any) -> tuple[list[dict[str, float]], Any]:
    model = encoders.masked("modernbert", hidden_act="gelu", embedding_dropout=0.1, initializer_range=0.05)

    class Keep(tiny.Record):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            super().log(step, metrics)
            if step == until:
                raise KeyboardInterrupt

    keep = Keep()
    usual = {"lr": 1e-2, "schedule": "cosine", "dropout": "model", "save_every": 2, "folder": folder}
    try:
        tiny.fit(
            mlm(Offline(encoders.documents(11), 4, seed=1), seed=1),
            Models(encoder=model),
            steps=steps,
            sinks=[keep],
            **(usual | settings),
        )
    except KeyboardInterrupt:
        return keep.rows, None
    return keep.rows, tiny.parameters(model)


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_resumed_run_is_the_uninterrupted_one(cut: int, tmp_path: Path) -> None:
    rows, whole = run(None)
    run(tmp_path, until=cut)
    again, resumed = run(tmp_path)
    tiny.assert_same(resumed, whole, 0)
    tiny.assert_same(again, rows[len(rows) - len(again) :], 0)


def test_the_micro_batch_budget_changes_nothing() -> None:
    calm = {"dropout": 0.0}
    tiny.assert_same(run(None, tokens_per_microbatch=1, **calm), run(None, **calm), EXACT)


def counting(n: int, seed: int) -> list[Group]:
    """Words in a fixed round, from anywhere on: a token follows from any of its neighbours."""
    stream = torch.Generator().manual_seed(seed)
    ids = encoders.masked("bert").words[20:28].tolist()
    group, eos = encoders.documents(1)[0], encoders.chat().eos_id
    texts = []
    for _ in range(n):
        start = int(torch.randint(len(ids), (), generator=stream))
        row = [ids[(start + i) % len(ids)] for i in range(12)]
        texts.append(replace(group, responses=(replace(group.responses[0], ids=(*row, eos)),)))
    return texts


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_certain_pattern_is_learnt(family: str) -> None:
    """The optimum is known: the law of a token given the others is certain, so its entropy and the loss are 0."""
    model = encoders.masked(family, "float32", initializer_range=0.05)
    algorithm = mlm(Offline(counting(200, 0), 16), to_random=0.0)
    tiny.fit(algorithm, Models(encoder=model), steps=400, lr=5e-3, warmup=0.1, schedule="cosine", final_lr=0.0)
    with torch.no_grad():
        loss = float(loss_of(model, masked_batch(model, counting(100, 1), Mask(to_random=0.0))))
    assert loss < 0.02, loss
