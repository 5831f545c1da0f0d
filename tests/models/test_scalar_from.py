"""A scalar model made in memory is the one that a save and a load would make."""

from __future__ import annotations

import torch

from tiltyard import from_scratch, load_scalar_model, save_model, scalar_from, train_tokenizer
from tiltyard.models.forest import plant
from tiltyard.types import Group, Prompt, Response


def test_scalar_from_equals_save_and_load(tmp_path) -> None:
    model = from_scratch("1m", train_tokenizer((f"a word {i}" for i in range(500)), 320), context=64)
    save_model(model, tmp_path)
    made, loaded = scalar_from(model), load_scalar_model(tmp_path, device="cpu")
    forest = plant([Group(Prompt(ids=(5, 6)), (Response(ids=(7, 8, 9)), Response(ids=(10,))))])
    assert torch.equal(made.score_B(forest), torch.zeros(2))  # a new head says 0
    assert torch.equal(made.hidden_T(forest), loaded.hidden_T(forest))
    before = model.hidden_T(forest).detach().clone()
    made.module.base_model.embed_tokens.weight.data += 1.0
    assert torch.equal(model.hidden_T(forest), before)  # a copy, not a share
