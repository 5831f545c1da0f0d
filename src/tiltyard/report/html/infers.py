"""Responses drawn without training, by `tiltyard sample --infer --out FILE` or a stage `infer`: a table of samplers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiltyard.report.html.reading import Source, estimate_of, json_lines, number, rounded, short, text_of

COLUMNS = (  # key, title, unit, what it is
    ("reward", "Reward", "", "mean reward of a response"),
    ("kl_to_prior", "KL to the model", "", "how far the responses are from the model's own, nats a response"),
    ("kl", "KL to the optimum", "", "how far the sampler still is from pi*, nats a response"),
    ("tv", "Total variation", "", "from pi*: 0 for the same distribution, 1 for nothing in common"),
    ("log_z", "log Z", "", "value of the optimum"),
    ("accept_rate", "Accepted", "share", "of all responses that were sampled"),
    ("ess", "Effective number", "", "of weighted candidates or particles, in nine prompts of ten at least"),
    ("unique", "Different", "share", "different candidates among the responses, or first ancestors that are left"),
    ("tokens", "Tokens", "", "that the model computed for a response"),
    ("calls", "Calls", "", "of the reward for a response"),
    ("seconds", "Seconds", "", "a response"),
)


def infers(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """[{title, columns, rows}]: of each run with such files in its folder or its stages' folders, a row a file."""
    found = []
    for source in sources:
        folders = [source.folder, *(reader.folder for reader in source.stages.values())]
        rows = []
        for path in (path for folder in folders for path in sorted(folder.glob("*.jsonl"))):
            row = source.attempt(path.name, None, _row, source, path)
            rows += [row] if row else []
        if rows:
            columns = [
                {"key": key, "title": title, "unit": unit, "about": about}
                for key, title, unit, about in COLUMNS
                if any(key in row["cells"] for row in rows)
            ]
            found.append({"title": text_of(source.name), "columns": columns, "rows": rows})
    return found


def _row(source: Source, path: Path) -> dict[str, Any] | None:
    """The report of one file; None of a file of something else."""
    lines = _lines(path)
    asked = next(lines, None)
    if asked is None or not {"infer", "reward", "n", "model"} <= asked.keys():
        return None
    from tiltyard.posterior.infer import SAMPLERS
    from tiltyard.posterior.infer.report import report_of

    name, beta = str(asked["infer"]), number(asked.get("beta"))
    facts = [row["infer"] for row in lines if isinstance(row.get("infer"), Mapping)]
    if not facts:
        source.notes.append(f"{source.label(path.name)} has no responses yet.")
        return None
    weighted = name in SAMPLERS and SAMPLERS[name].sampler.weighted
    report = report_of(name, facts, beta, weighted=weighted).to_dict()
    cells = {key: cell for key, *_ in COLUMNS if (cell := estimate_of(report.get(key))) is not None}
    return {
        "name": text_of(path.parent.name if path.parent != source.folder else path.name.partition(".")[0]),
        "sampler": text_of(name),
        "about": text_of(f"{short(str(asked['model']))}, reward {short(str(asked['reward']))}", 200),
        "beta": beta,
        "prompts": rounded(report["prompts"]),
        "given": rounded(report["given"]),
        "cells": cells,
        "refusals": [text_of(line, 300) for line in report["refusals"]],
    }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return (row for row, _ in json_lines(path) if row is not None)
