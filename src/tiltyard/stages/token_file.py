"""Log-probs of single tokens of some evaluated responses, under model and reference: `tokens.jsonl`, for the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tiltyard.batch.batch import Batch
from tiltyard.files import atomic_write
from tiltyard.models.language import LanguageModel
from tiltyard.report.html.tokens import pieces_of
from tiltyard.scoring.reward_model import same_vocabulary
from tiltyard.training.token_rows import rounded
from tiltyard.types import Group, prompt_digest

PROMPTS = 24  # whose first responses are kept


class TokenFile:
    """Collects the rows of several models, and writes them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self, name: str, groups: Sequence[Group], model: LanguageModel, ref: LanguageModel, temperature: float
    ) -> None:
        """Adds the rows of one model; without the reference where it has another tokenizer."""
        comparable = ref if same_vocabulary(model.chat, ref.chat) else None
        self.rows += token_rows(name, groups, model, comparable, temperature)

    def write(self, path: Path) -> None:
        """Writes the rows, one a line."""
        with atomic_write(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)


@torch.no_grad()
def token_rows(
    name: str, groups: Sequence[Group], model: LanguageModel, ref: LanguageModel | None, temperature: float
) -> list[dict[str, Any]]:
    """Rows {model, prompt_key, response, pieces, logp, ref_logp} of a model's first response to each of some prompts.

    Args:
        ref: None where its log-probs cannot be compared, with another tokenizer; the rows then lack `ref_logp`.
    """
    some = [replace(g, responses=g.responses[:1], scores=None, preference=None) for g in groups[:PROMPTS]]
    some = [group for group in some if group.responses and group.responses[0].ids]
    tokenizer = getattr(model.chat.tokenizer, "backend_tokenizer", None)
    if not some or tokenizer is None:
        return []
    rows = []
    for part in Batch.of(some, range(len(some)), len(some), model.device).micro():
        logp_R, _ = model.logp_R(part.forest, temperature=temperature)
        columns = {"logp": logp_R.tolist()}
        if ref is not None:
            columns["ref_logp"] = ref.logp_R(part.forest, temperature=temperature)[0].tolist()
        ends = part.packing.ends["R"]
        for place, group in enumerate(part.groups):
            numbers = {key: rounded(values[ends[place] : ends[place + 1]]) for key, values in columns.items()}
            pieces = pieces_of(tokenizer, group.responses[0].ids)
            key = prompt_digest(group.prompt)
            rows.append({"model": name, "prompt_key": key, "response": 0, "pieces": pieces, **numbers})
    return rows
