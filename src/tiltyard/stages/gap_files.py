"""The responses of the stage `gap` on disk, block by block, from which an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiltyard.posterior.measure import Columns
from tiltyard.runs.journal import Journal
from tiltyard.types import Group, Prompt, Response

RESPONSES = "responses.jsonl"
PRIOR_UNDER_MODELS = "prior_under_models.jsonl"
COLUMNS = ("log_factor", "log_model", "log_prior", "kl", "entropy")  # of a line of responses.jsonl
CROSSED = "log_of_prior"


@dataclass
class Progress:
    """Prompts that are measured, of all models together."""

    prompts: int = 0


class ResponseFile:
    """One line a response of `responses.jsonl`: text, ids, reward, and its log-probs under its model and the prior.

    `prior_under_models.jsonl` has a line for each model and prompt: the model's log-probs of the prior's responses.

    Args:
        folder: of the stage. prompts: in order. beta: rewards are log factors times it.
    """

    def __init__(self, folder: Path, prompts: Sequence[Prompt], beta: float):
        self.journal = Journal(folder, (RESPONSES, PRIOR_UNDER_MODELS), Progress())
        self.prompts, self.beta = prompts, beta
        self._rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._crossed: dict[tuple[str, int], list[float]] = {}
        for row in _lines(folder / RESPONSES):
            self._rows.setdefault((row["model"], row["index"]), []).append(row)
        for row in _lines(folder / PRIOR_UNDER_MODELS):
            self._crossed[row["model"], row["index"]] = row[CROSSED]

    def done(self, model: str) -> int:
        """Number of a model's prompts that an interrupted run left."""
        return sum(name == model for name, _ in self._rows)

    def of(self, model: str) -> ModelFile:
        """One model's responses, for `posterior.measure`."""
        return ModelFile(self, model)

    def read(self, model: str) -> tuple[list[Group], Columns]:
        """A model's groups that are kept, and their columns."""
        rows = [self._rows[model, i] for i in range(self.done(model))]
        groups = [_group(self.prompts[i], part) for i, part in enumerate(rows)]
        columns = {key: np.array([[row[key] for row in part] for part in rows]) for key in COLUMNS if key in rows[0][0]}
        if (model, 0) in self._crossed:
            columns[CROSSED] = np.array([self._crossed[model, i] for i in range(len(rows))])
        else:
            columns.pop("log_model")  # the prior's own: written for readers of the file, no column of its measurement
        return groups, columns

    def add(self, model: str, first: int, groups: Sequence[Group], columns: Columns) -> None:
        """Commits the groups of the prompts from the index `first` on."""
        rows, crossed = [], []
        for i, group in enumerate(groups):
            at = {"model": model, "prompt": group.prompt.id, "index": first + i}
            numbers = {key: column[i].tolist() for key, column in columns.items() if key in COLUMNS}
            if CROSSED in columns:
                crossed.append({**at, CROSSED: columns[CROSSED][i].tolist()})
            for k, response in enumerate(group.responses):
                own = {key: values[k] for key, values in numbers.items()}
                text = {"text": response.text, "finish": response.finish, "ids": list(response.ids)}
                own.setdefault("log_model", own["log_prior"])  # of the prior's own
                rows.append({**at, **text, "reward": own["log_factor"] * self.beta, **own})
        self.journal.progress.prompts += len(groups)
        lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
        self.journal.commit({RESPONSES: lines, PRIOR_UNDER_MODELS: crossed})


@dataclass(frozen=True)
class ModelFile:
    """The part of one model."""

    file: ResponseFile
    model: str

    def done(self) -> tuple[list[Group], Columns]:
        return self.file.read(self.model) if self.file.done(self.model) else ([], {})

    def add(self, groups: Sequence[Group], columns: Columns, first: int) -> None:
        self.file.add(self.model, first, groups, columns)


def _group(prompt: Prompt, rows: Sequence[dict[str, Any]]) -> Group:
    return Group(prompt, tuple(Response(ids=tuple(r["ids"]), text=r["text"], finish=r["finish"]) for r in rows))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
