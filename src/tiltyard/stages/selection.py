"""Selection and report: halves of the prompts, and how many models were looked at on them in all runs of a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tiltyard.errors import ConfigError, DataError
from tiltyard.files import read_json
from tiltyard.numerals import plural, verb
from tiltyard.stages.base import StageContext
from tiltyard.types import Prompt, prompt_digest

Part = Literal["all", "choose", "report"]
KEYS = "prompt_keys.json"  # digests of an evaluation's prompts, by which others find those that both used


def prompts_digest(keys: Iterable[str]) -> str:
    """Returns a digest of a set of prompts, from the keys of its responses (`EvaluatedResponse.key`)."""
    return hashlib.sha256("\n".join(sorted(set(keys))).encode()).hexdigest()[:16]


def within(runs: Path, model: str) -> str:
    """Returns RUN/STAGE for a model below the folder of runs (a run that is moved stays the same), else the name."""
    path = Path(model).absolute()
    return path.relative_to(runs.absolute()).as_posix() if path.is_relative_to(runs.absolute()) else model


def part_of(key: str) -> Part:
    """The half that a prompt belongs to, by the first bits of its digest: the same in every file and evaluation."""
    return "report" if int(key[:8], 16) % 2 else "choose"


def prompts_of_part(
    context: StageContext, prompts: Sequence[Prompt], part: Part, models: Iterable[str]
) -> list[Prompt]:
    """Returns the prompts of a part; those of `report` only if no other evaluation could have chosen on them.

    Raises:
        DataError: no prompt is in this part. ConfigError: an evaluation of other models used a prompt of `report`.
    """
    if part == "all":
        return list(prompts)
    keys = {prompt_digest(prompt): prompt for prompt in prompts}
    kept = [prompt for key, prompt in keys.items() if part_of(key) == part]
    runs, where = context.run_folder.parent, f"{context.name}.part"
    if not kept:
        raise DataError("no prompt is in this half", where=where, got=f"{len(prompts):,} prompts", expected="more")
    context.report(
        "prompts",
        [f"{len(kept):,} of {plural(len(keys), 'prompt')} {verb(len(kept), 'is', 'are')} in the half `{part}`"],
    )
    own = {within(runs, str(context.outputs.get(value) or value)) for value in models}
    found = seen(runs, "", context.folder, own, [key for key in keys if part_of(key) == part])
    if part == "report" and found["models"] > len(own):
        raise ConfigError(
            "these prompts are not apart: models were looked at on them that are not reported here",
            where=where,
            got=f"{found['models']:,} models on {found['shared']:,} of these {len(kept):,} prompts, in "
            + ", ".join(found["evaluations"][1:4]),
            expected="prompts of `report` that no evaluation used to look at other models",
            fix="report on prompts that nothing was chosen on (prompts=OTHER), and choose with part=choose; or set "
            "part=all, which states that the figures of the best are optimistic",
        )
    return kept


def seen(runs: Path, digest: str, own: Path, models: Iterable[str], keys: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what was looked at on these prompts, or on any of them, in all evaluations below `runs`.

    Args:
        digest: of the prompts, or of a benchmark's items. own: the folder of this evaluation, whose earlier result does
            not count. models: of this evaluation: the stage, folder or hub name of each. keys: of its prompts.

    Returns:
        `evaluations`: their names, this one first; `models`: number of different models; `shared`: prompts of this
        evaluation that others used.
    """
    found, names, wanted, shared = set(models), [f"{own.parent.name}/{own.name}"], set(keys), set[str]()
    for path in sorted(runs.glob("*/*/summary.json")):
        if path.parent == own:
            continue
        facts = (read_json(path) or {}).get("evaluation")  # of another tool, or damaged: its own readers report it
        if not isinstance(facts, dict):
            continue
        equal = bool(digest) and digest in _digests(facts)
        common = wanted if equal else wanted & _keys(path.parent) if wanted else set()
        if equal or common:
            names.append(f"{path.parent.parent.name}/{path.parent.name}")
            found |= set(facts.get("models", {}).values())
            shared |= common
    return {"evaluations": names, "models": len(found), "shared": len(shared)}


def _keys(folder: Path) -> set[str]:
    """The prompts of an evaluation; empty of one that did not keep them."""
    try:
        return set(json.loads((folder / KEYS).read_bytes()))
    except (OSError, ValueError, TypeError):
        return set()


def _digests(facts: dict[str, Any]) -> Iterator[Any]:
    """Yields the digest of the prompts of an evaluation, and of each of its benchmarks."""
    yield facts.get("prompts_digest")
    yield from (one.get("digest") for one in facts.get("benchmarks") or [] if isinstance(one, dict))


def selection_line(found: dict[str, Any], prompts: int, benchmark: str = "", part: Part = "all") -> str:
    """A sentence about the models that were looked at on these prompts; "" for one evaluation of two at most.

    Args:
        prompts: their number. benchmark: its name, where they are a benchmark's items. part: of the evaluation.
    """
    count, models = len(found["evaluations"]), found["models"]
    if part == "report" and count == 1:
        return f"selection: no other evaluation of this folder used any of these {plural(prompts, 'prompt')}"
    if count == 1 and models <= 2:
        return ""
    what = f"items of {benchmark}" if benchmark else "prompts"
    times = "one evaluation" if count == 1 else f"{count} evaluations of this folder"
    some = found["shared"] if not benchmark and 0 < found["shared"] < prompts else prompts
    these = f"these {prompts:,}" if some == prompts else f"{some:,} of these {prompts:,}"
    fix = "" if benchmark else " (part=choose, then part=report)"
    return (
        f"! selection: {models} models were looked at on {these} {what}, in {times}; the figures of the best "
        f"of them are optimistic: report them on {what.partition(' ')[0]} that nothing was chosen on{fix}"
    )
