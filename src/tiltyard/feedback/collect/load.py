"""Reads tasks from files: preference rows, groups of a run, what `tiltyard sample --json` printed, prompts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tiltyard.data.bad_rows import BadRows, parse_answers, parsed_rows
from tiltyard.data.formats import parse_row
from tiltyard.data.limit import Limit, limited
from tiltyard.data.row import Row
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.store.items import COUNTS, Item, Stage
from tiltyard.feedback.store.verdicts import SCALE
from tiltyard.runs import StageReader
from tiltyard.runs.groups import read_groups, read_step_groups
from tiltyard.types import Group, Response, prompt_digest, ranks_of

CANDIDATES = "candidates.groups.jsonl"  # of a stage that sampled for others to score
KNOWN = ("training", "gold", "attention")  # stages whose items need a right verdict


@dataclass(frozen=True)
class Wanted:
    """Settings that turn groups into tasks.

    Args:
        kind: of the tasks. stage: of the tasks; of training, gold and attention items the file's own preference is the
            right verdict. overlap: people who judge each.
        pairs: of kind `pair`, pairs drawn of each prompt with more than two responses; 0: all of them.
        source: name under which tasks are mixed; empty: the field `source` of each row, else the file's name.
        policy: who wrote responses that do not say it.
        seed: of the drawn pairs.
        across: of kind `pair`, the two responses of each are of two policies.
    """

    kind: str = "pair"
    stage: Stage = "real"
    overlap: int = 1
    pairs: int = 1
    source: str = ""
    policy: str = ""
    seed: int = 0
    across: bool = False


def read_items(path: str, wanted: Wanted, *, split: str = "", limit: Limit = None) -> tuple[list[Item], Counter[str]]:
    """Returns the tasks of a file or of a stage's folder, and counts of what was left out by its reason.

    Raises:
        DataError: a bad row, responses that the kind cannot have, no preference where a right verdict is needed, or
            no task at all.
        ConfigError: a kind that does not exist.
    """
    if wanted.kind not in COUNTS:
        raise ConfigError("unknown kind of task", where="--kind", got=wanted.kind, expected=", ".join(COUNTS))
    dropped: Counter[str] = Counter()
    items = items_of(written_groups(path, wanted, split=split, limit=limit), wanted, Path(path).name, dropped)
    if not items:
        raise DataError(
            "the file holds no task of this kind",
            where=path,
            got=", ".join(f"{n} x {reason}" for reason, n in dropped.items()) or "no rows",
            expected=f"rows with {'responses' if COUNTS[wanted.kind][0] else 'prompts'}",
        )
    return items, dropped


def items_of(groups: Iterable[Group], wanted: Wanted, name: str, dropped: Counter[str]) -> list[Item]:
    """Returns the tasks of groups; `name`: their source where nothing names one. `dropped` counts what is left out.

    Raises:
        DataError: no preference where a right verdict is needed.
    """
    return [item for group in groups for item in _items(group, wanted, name, dropped)]


def written_groups(path: str, wanted: Wanted, *, split: str = "", limit: Limit = None) -> Iterator[Group]:
    """Yields the groups of a file or of a stage's folder; `meta` of each response names its policy and version.

    Raises:
        DataError: a bad row.
    """
    folder = Path(path)
    if folder.is_dir() and (folder / CANDIDATES).is_file():
        name, version = _model_of(folder)
        for group in limited(lambda: read_groups(folder / CANDIDATES), limit):
            yield _written_by(group, wanted.policy or name, version)
        return
    if folder.is_dir() and (folder / "groups.jsonl").is_file():
        name = wanted.policy or "/".join(folder.resolve().parts[-2:])
        for step, group in limited(lambda: read_step_groups(folder / "groups.jsonl"), limit):
            yield _written_by(group, name, f"step {step}")
    elif path.endswith(".groups.jsonl"):
        yield from (_written_by(group, wanted.policy, "") for group in limited(lambda: read_groups(path), limit))
    else:
        bad = BadRows()
        blank = wanted.kind == "write"
        for _, group in parsed_rows(path, lambda row: _parsed(row, blank), bad, split=split or None, limit=limit):
            yield _written_by(group, wanted.policy, "")


def _model_of(folder: Path) -> tuple[str, str]:
    """The model whose responses a stage sampled: its name, and the execution of the stage that trained it."""
    config = StageReader(folder).config
    model = "" if config is None else str(config.settings.get("model", ""))
    trained = "" if config is None else config.inputs.get(model.partition("/")[0], "")
    return Path(model).name, trained[:10]


def _parsed(row: Row, blank: bool) -> Group:
    """A row with responses (texts, or objects with `text`, `policy` and `version`), or a prompt alone."""
    given = row.value.get("responses")
    named: list[dict[str, str]]
    if isinstance(given, list) and given and all(isinstance(one, Mapping) and "text" in one for one in given):
        group = parse_answers(Row({**row.value, "responses": [one["text"] for one in given]}, row.where))
        named = [_names(one) for one in given]
    else:
        answers = isinstance(given, list) or "chosen" in row.value
        group = parse_answers(row) if answers or not blank else parse_row(row, "prompts")
        policies = row.value.get("policies", row.value.get("models"))
        named = [{} for _ in group.responses]
        if isinstance(policies, list) and len(policies) == len(named):
            named = [{"policy": str(one)[:200]} for one in policies]
    responses = tuple(
        replace(response, meta={**response.meta, **names})
        for response, names in zip(group.responses, named, strict=True)
    )
    return replace(group, responses=responses)


def _names(response: Mapping[str, Any]) -> dict[str, str]:
    policy = response.get("policy", response.get("model"))
    named = {"policy": policy, "version": response.get("version")}
    return {key: str(value)[:200] for key, value in named.items() if value not in (None, "")}


def _written_by(group: Group, policy: str, version: str) -> Group:
    def named(response: Response) -> Response:
        meta = dict(response.meta)
        meta.setdefault("policy", policy or "unknown")
        stamp = version or (f"version {response.policy_version}" if response.policy_version is not None else "")
        if stamp:
            meta.setdefault("version", stamp)
        return replace(response, meta={key: meta[key] for key in ("policy", "version", "turns") if key in meta})

    return replace(group, responses=tuple(map(named, group.responses)))


def _items(group: Group, wanted: Wanted, name: str, dropped: Counter[str]) -> Iterator[Item]:
    source = wanted.source or str(group.prompt.meta.get("source", "")) or name
    common: dict[str, Any] = {"kind": wanted.kind, "stage": wanted.stage, "overlap": wanted.overlap, "source": source}
    common["explanation"] = str(group.prompt.meta.get("explanation", ""))
    count, (low, high) = len(group.responses), COUNTS[wanted.kind]
    if wanted.kind == "pair" and (count > 2 or wanted.across):
        yield from _pairs(group, wanted, common, dropped)
        return
    if not low <= count <= high:
        dropped[f"{count} responses, not {low}" if low == high else f"{count} responses, not {low} to {high}"] += 1
        return
    if wanted.kind == "pair" and len({response.text for response in group.responses}) < 2:
        dropped["two equal responses"] += 1
        return
    yield Item(group, expected=_expected(group, wanted), **common)


def _pairs(group: Group, wanted: Wanted, common: Mapping[str, Any], dropped: Counter[str]) -> Iterator[Item]:
    """Draws pairs of a prompt without replacement: each of the n pairs is chosen with probability drawn / n."""
    every = [
        (i, j)
        for i, j in combinations(range(len(group.responses)), 2)
        if group.responses[i].text != group.responses[j].text
        and not (wanted.across and _policy(group.responses[i]) == _policy(group.responses[j]))
    ]
    if not every:
        dropped["no two different responses of two policies" if wanted.across else "all responses equal"] += 1
        return
    count = min(wanted.pairs, len(every)) if wanted.pairs else len(every)
    chosen = random.Random(f"{wanted.seed}:{prompt_digest(group.prompt)}").sample(every, count)
    ranks = ranks_of(group.preference)
    for i, j in sorted(chosen):
        preference = None
        if ranks is not None and group.preference is not None:
            preference = replace(group.preference, ranks=(ranks[i], ranks[j]), shares=None, labels=None, ratings=None)
        pair = replace(group, responses=(group.responses[i], group.responses[j]), preference=preference, scores=None)
        probability = count / len(every)
        chooser = "all" if count == len(every) else "random"
        yield Item(pair, expected=_expected(pair, wanted), probability=probability, chooser=chooser, **common)


def _policy(response: Response) -> tuple[Any, Any]:
    return response.meta.get("policy"), response.meta.get("version")


def _expected(group: Group, wanted: Wanted) -> dict[str, Any] | None:
    """The right verdict of a training, gold or attention item: what the file prefers, or its field `expected`."""
    if wanted.stage not in KNOWN:
        return None
    given = group.prompt.meta.get("expected")
    if isinstance(given, Mapping):
        return dict(given)
    ranks = ranks_of(group.preference)
    if ranks is None:
        raise DataError(
            f"an item of the stage '{wanted.stage}' needs its right verdict",
            where=group.origin,
            expected="chosen and rejected, ranks, scores, or a field `expected`",
        )
    if wanted.kind == "pair":
        return {"choice": "tie" if ranks[0] == ranks[1] else "first" if ranks[0] < ranks[1] else "second"}
    if wanted.kind == "ranking":
        return {"ranks": list(ranks)}
    if wanted.kind == "best_worst":
        return {"best": _one(ranks, min(ranks), group), "worst": _one(ranks, max(ranks), group)}
    ratings = None if group.preference is None else group.preference.ratings
    low, high = SCALE
    if wanted.kind == "rating" and ratings and all(low <= r <= high and r == int(r) for r in ratings):
        return {"ratings": [int(r) for r in ratings]}
    raise DataError(
        f"the file does not say the right verdict of kind '{wanted.kind}'",
        where=group.origin,
        expected=f"scores from {low} to {high}" if wanted.kind == "rating" else "a field `expected`",
    )


def _one(ranks: Sequence[int], rank: int, group: Group) -> int:
    if ranks.count(rank) != 1 or min(ranks) == max(ranks):
        raise DataError("the file names no single best and worst response", where=group.origin, got=list(ranks))
    return list(ranks).index(rank)
