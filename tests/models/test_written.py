"""A folder that holds other numbers than the model that it was written of is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiltyard.errors import ModelError
from tiltyard.models.heads import scalar_from
from tiltyard.models.load import save_model
from tiltyard.models.written import check_written

from . import tiny


def test_what_was_written_is_what_was_trained(tmp_path: Path) -> None:
    policy = tiny.language("llama", vocab_size=300)
    for name, model in (("policy", policy), ("scalar", scalar_from(policy))):
        folder = tmp_path / name
        with torch.no_grad():
            model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
        save_model(model, folder)
        gap = check_written(model, folder, torch.float32)
        assert gap is not None
        assert gap < 1e-5
        with torch.no_grad():
            model.head.weight.mul_(1.5)
        with pytest.raises(ModelError, match="not the one that was trained"):
            check_written(model, folder, torch.float32)
