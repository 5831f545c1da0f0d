"""A scalar model made in memory is the one that a save and a load would make."""

from __future__ import annotations

import torch

from tiltyard import from_scratch, load_scalar_model, save_model, scalar_from, train_tokenizer, value_head
from tiltyard.batch.forest import pack
from tiltyard.types import Group, Prompt, Response


def test_scalar_from_equals_save_and_load(tmp_path) -> None:
    model = from_scratch("1m", train_tokenizer((f"a word {i}" for i in range(500)), 320), context=64)
    save_model(model, tmp_path)
    made, loaded = scalar_from(model), load_scalar_model(tmp_path, device="cpu")
    forest = pack([Group(Prompt(ids=(5, 6)), (Response(ids=(7, 8, 9)), Response(ids=(10,))))])
    assert torch.equal(made.score_B(forest), torch.zeros(2))  # a new head says 0
    assert torch.equal(made.hidden_T(forest), loaded.hidden_T(forest))
    before = model.hidden_T(forest).detach().clone()
    made.module.base_model.embed_tokens.weight.data += 1.0
    assert torch.equal(model.hidden_T(forest), before)  # a copy, not a share


def test_a_value_head_is_saved_as_a_model_with_a_trunk_of_its_own(tmp_path) -> None:
    model = from_scratch("1m", train_tokenizer((f"a word {i}" for i in range(500)), 320), context=64)
    value, forest = value_head(model), model.probe_forest()
    torch.nn.init.normal_(value.head.weight, generator=torch.Generator().manual_seed(3))
    value.bias = 0.25  # of this model alone, though the backbone is the policy's
    save_model(value, tmp_path)
    loaded = load_scalar_model(tmp_path, device="cpu")
    assert torch.equal(loaded.value_R(forest), value.value_R(forest))
    assert float(value.value_R(forest).abs().max()) > 0.1
    assert not hasattr(model.module.config, "reward_bias")
    model.module.base_model.embed_tokens.weight.data += 1.0
    assert not torch.equal(loaded.value_R(forest), value.value_R(forest))  # a share, not a copy
