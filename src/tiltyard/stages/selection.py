"""Disclosure of selection: how many models were looked at on the prompts of an evaluation, in all runs of a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def prompts_digest(keys: Iterable[str]) -> str:
    """Returns a digest of a set of prompts, from the keys of its responses (`EvaluatedResponse.key`)."""
    return hashlib.sha256("\n".join(sorted(set(keys))).encode()).hexdigest()[:16]


def within(runs: Path, model: str) -> str:
    """Returns RUN/STAGE for a model below the folder of runs (a run that is moved stays the same), else the name."""
    path = Path(model).absolute()
    return path.relative_to(runs.absolute()).as_posix() if path.is_relative_to(runs.absolute()) else model


def looked_at(runs: Path, digest: str, own: Path, models: Iterable[str]) -> dict[str, Any]:
    """Returns how many evaluations of these prompts lie below `runs`, and of how many models, this one included.

    Args:
        digest: of the prompts, or of a benchmark's items. own: the folder of this evaluation, whose earlier result does
            not count. models: of this evaluation: the stage, folder or hub name of each.
    """
    seen, evaluations = set(models), [f"{own.parent.name}/{own.name}"]
    for path in sorted(runs.glob("*/*/summary.json")):
        if path.parent == own:
            continue
        try:
            facts = json.loads(path.read_bytes()).get("evaluation") or {}
        except (OSError, ValueError, AttributeError):
            continue  # of another tool, or damaged: its own readers report it
        if isinstance(facts, dict) and digest in _digests(facts):
            evaluations.append(f"{path.parent.parent.name}/{path.parent.name}")
            seen |= set(facts.get("models", {}).values())
    return {"evaluations": evaluations, "models": len(seen)}


def _digests(facts: dict[str, Any]) -> Iterator[Any]:
    """Yields the digest of the prompts of an evaluation, and of each of its benchmarks."""
    yield facts.get("prompts_digest")
    yield from (one.get("digest") for one in facts.get("benchmarks") or [] if isinstance(one, dict))


def selection_line(found: dict[str, Any], prompts: int, benchmark: str = "") -> str:
    """A sentence about the models that were looked at on these prompts; "" for one evaluation of two at most.

    Args:
        prompts: their number. benchmark: its name, where they are a benchmark's items.
    """
    count, models = len(found["evaluations"]), found["models"]
    if count == 1 and models <= 2:
        return ""
    what = f"items of {benchmark}" if benchmark else "prompts"
    times = "one evaluation" if count == 1 else f"{count} evaluations of this folder"
    return (
        f"selection: {models} models were looked at on these {prompts:,} {what}, in {times}; the figures of the best "
        f"of them are optimistic: report them on {what.partition(' ')[0]} that nothing was chosen on"
    )
