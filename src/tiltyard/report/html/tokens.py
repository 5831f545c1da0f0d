"""Numbers of single tokens, for colouring: pieces of a response's text with log-probs, reference and advantage.

A stage that samples writes them to `tokens.jsonl` for some responses (`training.records`, `stages.token_file`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiltyard.report.html.reading import json_lines, number, text_of

UNFINISHED = "\ufffd"  # decoding gives it for a character of which bytes are still to come
MOST = 400  # tokens of a response
NUMBERS = {"logp": "lp", "ref_logp": "rp", "advantage": "ad"}  # in the file, in the page


@dataclass
class TokenRows:
    """Rows of a `tokens.jsonl`: of evaluations by (model, prompt, response), of training by (step, group, response)."""

    evaluated: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    trained: dict[tuple[int, int, int], dict[str, Any]] = field(default_factory=dict)

    @property
    def prompts(self) -> set[str]:
        """Prompts of evaluations with numbers of their tokens."""
        return {key for _, key, _ in self.evaluated}

    def of(self, model: str, prompt: str, k: int) -> dict[str, Any]:
        """The numbers of the k-th response of a model to a prompt; {} without any."""
        return self.evaluated.get((model, prompt, k), {})

    def of_step(self, step: int, group: int, k: int) -> dict[str, Any]:
        """The numbers of the k-th response of a group of a step; {} without any."""
        return self.trained.get((step, group, k), {})


def token_rows(path: Path) -> TokenRows:
    """Reads a `tokens.jsonl`; damaged lines, and a file that is missing, give nothing."""
    rows = TokenRows()
    if not path.exists():
        return rows
    for row, _ in json_lines(path):
        if row is None:
            continue
        numbers: dict[str, Any] = {
            short: found for name, short in NUMBERS.items() if (found := _numbers(row.get(name)))
        }
        pieces = row.get("pieces")
        if isinstance(pieces, list):
            numbers["tok"] = [text_of(piece) for piece in pieces[:MOST]]
        k = int(number(row.get("response")) or 0)
        if "model" in row:
            rows.evaluated[str(row["model"]), str(row.get("prompt_key")), k] = numbers
        elif number(row.get("step")) is not None:
            rows.trained[int(row["step"]), int(number(row.get("group")) or 0), k] = numbers
    return rows


class Pieces:
    """Turns token ids into pieces of text with the tokenizer of a stage's model; gives nothing without one."""

    def __init__(self, tokenizer: Any = None):
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, folder: Path) -> Pieces:
        """The pieces by the tokenizer that a stage saved with its model."""
        path = folder / "model" / "tokenizer.json"
        if not path.exists():
            return cls()
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception:  # damaged, or of a newer library: texts are shown without tokens
            return cls()

    def of_response(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """{tok, lp} of a stored response: pieces and the sampler's log-probs; {} where the ids cannot be decoded."""
        ids, logps = response.get("ids"), response.get("logps")
        if self.tokenizer is None or not isinstance(ids, list) or not isinstance(logps, list) or len(ids) != len(logps):
            return {}
        try:
            return {"tok": pieces_of(self.tokenizer, ids[:MOST]), "lp": _numbers(logps)}
        except Exception:
            return {}


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined they are the decoded text. A token within a character adds nothing."""
    pieces, start, read = [], 0, 0
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(list(ids[start:read]), skip_special_tokens=False)
        after = tokenizer.decode(list(ids[start:end]), skip_special_tokens=False)
        if end < len(ids) and after.endswith(UNFINISHED):
            pieces.append("")
            continue
        pieces.append(text_of(after[len(before) :]))
        start, read = read, end
    return pieces


def _numbers(values: Any) -> list[float | None]:
    if not isinstance(values, list):
        return []
    return [None if (x := number(value)) is None else round(x, 3) for value in values[:MOST]]
