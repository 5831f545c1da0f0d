"""Responses for the sample browser: those of evaluations by prompt, and of training by step; sampled where many.

A sample of prompts is drawn by the hash of the prompt, so that it is the same in every report of the same run, and all
models' responses to a prompt are kept together.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiltyard.numerals import plural, verb
from tiltyard.report.html.island import size
from tiltyard.report.html.reading import Source, json_lines, number, rounded, text_of
from tiltyard.report.html.tokens import Pieces, TokenRows, token_rows
from tiltyard.runs import StageReader

EVALUATED = 1_900_000  # bytes of the responses of evaluations in the page
TRAINED = 900_000  # of those of training, over all stages
LONGEST = 6_000  # characters of a text
MOST_ALIKE = 4  # responses of one model to one prompt
STEPS, GROUPS, RESPONSES = 8, 3, 8  # of a stage that samples: steps, groups of a step, responses of a group
_STEP = re.compile(rb'\{"step": ?(\d+)')

Item = dict[str, Any]


def samples(sources: Sequence[Source], *, share: float = 1.0) -> dict[str, Any]:
    """{items, notes, apart} for the browser; `share` of the usual number of bytes; `apart`: notes on other prompts."""
    evaluated, notes, apart = _evaluated(sources, int(EVALUATED * share))
    trained = _trained(sources, int(TRAINED * share))
    return {"items": [*evaluated, *trained], "notes": notes, "apart": apart}


def answer_files(sources: Sequence[Source]) -> Iterator[tuple[Source, str, Path]]:
    """(run, stage, path) of the responses of every evaluation."""
    for source in sources:
        for name, reader in source.stages.items():
            if (path := reader.folder / "answers.jsonl").exists():
                yield source, name, path


def prompt_of(row: Mapping[str, Any]) -> str:
    """The identity of an evaluated response's prompt."""
    return str(row.get("prompt_key") or row.get("prompt_id") or row.get("prompt_text") or "")


def rank_of(key: str) -> bytes:
    """A number by which prompts are drawn: independent of their order and content."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


# --------------------------------------------------------------------------------------------------------- evaluations


def _evaluated(sources: Sequence[Source], budget: int) -> tuple[list[Item], list[str], list[str]]:
    files = list(answer_files(sources))
    weights: dict[str, int] = {}  # prompt -> bytes of its lines
    shared: dict[str, int] = {}  # prompt -> files that have it
    responses = 0
    for source, name, path in files:
        seen: set[str] = set()
        bad = 0
        for row, length in json_lines(path):
            if row is None:
                bad += 1
                continue
            key = prompt_of(row)
            weights[key] = weights.get(key, 0) + length
            seen.add(key)
            responses += 1
        for key in seen:
            shared[key] = shared.get(key, 0) + 1
        if bad:
            source.notes.append(f"{source.label(name)}/answers.jsonl: {plural(bad, 'damaged line')} left out.")
    apart, notes = _other_prompts(sources, files, shared), list[str]()
    tokens = {path: token_rows(path.with_name("tokens.jsonl")) for _, _, path in files}
    coloured = {key for rows in tokens.values() for key in rows.prompts}
    chosen: set[str] = set()
    spent = 0
    for key in sorted(weights, key=lambda k: (-shared[k], k not in coloured, rank_of(k))):
        spent += weights[key]
        if chosen and spent > budget * 1.2:  # lines of the file and of the page are about as long
            break
        chosen.add(key)
    items = _items(files, chosen, tokens)
    kept = list(itertools.takewhile(_within(budget), items))
    if len(kept) < len(weights):
        shown = sum(len(item["rs"]) for item in kept)
        notes.append(
            f"{len(kept):,} of {plural(len(weights), 'prompt')} with {shown:,} of "
            f"{plural(responses, 'response')} {verb(shown, 'is', 'are')} shown, drawn at "
            "random; every number of the page is of all of them."
        )
    return kept, notes, apart


def _within(budget: int) -> Any:
    spent = 0

    def fits(item: Item) -> bool:
        nonlocal spent
        spent += size(item)
        return spent <= budget

    return fits


def _other_prompts(
    sources: Sequence[Source], files: Sequence[tuple[Source, str, Path]], shared: Mapping[str, int]
) -> list[str]:
    if len(sources) < 2 or len(files) < 2:
        return []
    common = sum(count == len(files) for count in shared.values())
    if common == len(shared):
        return []
    what = "no prompt in common" if not common else f"{common:,} of {plural(len(shared), 'prompt')} in common"
    return [f"The evaluations have {what}: figures of different prompts are no comparison of models."]


def _items(files: Sequence[tuple[Source, str, Path]], chosen: set[str], tokens: Mapping[Path, TokenRows]) -> list[Item]:
    items: dict[str, Item] = {}
    for source, name, path in files:
        counts: dict[tuple[str, str], int] = {}
        for row, _ in json_lines(path):
            if row is None or (key := prompt_of(row)) not in chosen:
                continue
            model = str(row.get("model") or "")
            place = counts[key, model] = counts.get((key, model), -1) + 1
            if place >= MOST_ALIKE:
                continue
            label = source.label(name)
            item = items.setdefault(
                key, {"p": text_of(row.get("prompt_text"), LONGEST), "src": text_of(label), "rs": []}
            )
            item["rs"].append(_response(source.label(model), row) | tokens[path].of(model, key, place))
    for item in items.values():
        item["dis"] = disagreement(item["rs"])
    return [items[key] for key in sorted(items, key=rank_of)]


def _response(model: str, row: Mapping[str, Any]) -> Item:
    more = one if isinstance(one := row.get("rewards"), dict) else {}
    found = {
        "m": text_of(model),
        "t": text_of(row.get("text"), LONGEST),
        "n": rounded(row.get("length")),
        "c": 1 if row.get("truncated") else None,
        "s": rounded(row.get("proxy")),
        "g": rounded(row.get("gold")),
        "k": rounded(row.get("kl")),
        "w": rounded(row.get("win")),
        "no": text_of(row.get("no_verdict")) or None,
        "x": {text_of(k): rounded(v) for k, v in more.items() if rounded(v) is not None} or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def disagreement(responses: Sequence[Item]) -> float | None:
    """Share of the pairs of responses that two measures order in opposite ways; None where there are not two.

    The reward against gold where there is gold, against each further reward else; a judge's verdict against the
    reward's order.
    """
    opposed = pairs = 0
    for a, b in itertools.combinations(responses, 2):
        signs = [_sign(a.get(key), b.get(key)) for key in ("s", "g", "w")]
        signs += [_sign((a.get("x") or {}).get(k), (b.get("x") or {}).get(k)) for k in (a.get("x") or {})]
        known = [sign for sign in signs if sign]
        pairs += len([sign for sign in signs if sign is not None]) > 1
        opposed += len(set(known)) > 1
    return rounded(opposed / pairs) if pairs else None


def _sign(a: Any, b: Any) -> int | None:
    return None if a is None or b is None else (a > b) - (a < b)


# ------------------------------------------------------------------------------------------------------------ training


def _trained(sources: Sequence[Source], budget: int) -> list[Item]:
    stages = [
        (source, name, reader)
        for source in sources
        for name, reader in source.stages.items()
        if (reader.folder / "groups.jsonl").exists()
    ]
    found: list[Item] = []
    none: list[Item] = []
    for source, name, reader in stages:
        items = source.attempt(f"{name}/groups.jsonl", none, _stage, source, name, reader)
        found += itertools.takewhile(_within(budget // len(stages)), items)
    return found


def _stage(source: Source, name: str, reader: StageReader) -> list[Item]:
    path = reader.folder / "groups.jsonl"
    steps = _steps(path)
    if not steps:
        return []
    places = {round(i * (len(steps) - 1) / max(1, STEPS - 1)) for i in range(STEPS)}
    wanted = {steps[i] for i in places if i < len(steps)}
    pieces, tokens = Pieces.of(reader.folder), token_rows(reader.folder / "tokens.jsonl")
    counts: dict[int, int] = {}
    items = []
    with path.open("rb") as file:
        for line in file:
            head = _STEP.match(line)
            step = int(head[1]) if head else -1
            if step not in wanted:
                continue
            place = counts[step] = counts.get(step, -1) + 1
            if place >= GROUPS or not line.endswith(b"\n"):
                continue
            items.append(_group(source.label(name), step, place, json.loads(line), pieces, tokens))
    # breadth first: the first group of every step before the second of any
    return [item for _, item in sorted(enumerate(items), key=lambda one: (one[1].pop("_"), one[0]))]


def _steps(path: Path) -> list[int]:
    with path.open("rb") as file:
        found = {int(head[1]) for line in file if (head := _STEP.match(line))}
    return sorted(found)


def _group(label: str, step: int, place: int, row: Mapping[str, Any], pieces: Pieces, tokens: TokenRows) -> Item:
    prompt = row.get("prompt") or {}
    messages = prompt.get("messages")
    text = "\n".join(str(m[1]) for m in messages) if messages else prompt.get("text") or ""
    scores = row.get("scores") or []
    known = [s for s in scores if number(s) is not None]
    mean = sum(known) / len(known) if known else None
    responses = []
    for k, response in enumerate(row.get("responses", [])[:RESPONSES]):
        score = number(scores[k]) if k < len(scores) else None
        found = {
            "m": f"response {k + 1}",
            "t": text_of(response.get("text"), LONGEST),
            "n": len(response.get("ids") or ()),
            "c": 1 if response.get("finish") == "length" else None,
            "s": rounded(score),
            "a": rounded(score - mean) if score is not None and mean is not None and len(known) > 1 else None,
        }
        found |= pieces.of_response(response) | tokens.of_step(step, place, k)
        responses.append({key: value for key, value in found.items() if value is not None})
    return {"p": text_of(text, LONGEST), "src": text_of(label), "step": step, "rs": responses, "dis": None, "_": place}
