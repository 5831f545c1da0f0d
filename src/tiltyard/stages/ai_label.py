"""AI labels: a judge compares responses, and its probabilities become soft labels (RLAIF).

`labels.groups.jsonl` holds every pair with the preference (p, 1 - p), its token ids unchanged; `rows.jsonl` the same
as text, the preferred response as `chosen` with `p_chosen`; `judgements.jsonl` one preference record per pair, missing
verdicts included.

The work is done in blocks of pairs, each committed to a `Journal`. What an API answered is stored before it is used, so
an interrupted block sends only the requests that are missing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tiltyard.data import BadRows, group_to_line, limit_of, limited, parsed_rows, read_groups
from tiltyard.data.bad_rows import parse_answers
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback import ApiJudgeSettings, Debiased, JudgeSettings, Usage, Verdict, build_judge
from tiltyard.feedback.answers import content_key
from tiltyard.feedback.scorers import ParseFailures, counted, set_turn
from tiltyard.feedback.simulated import seed_from
from tiltyard.feedback.verdicts import PositionCounts, response_text
from tiltyard.files import atomic_write, jsonable
from tiltyard.inputs.settings import BadRowsSetting, LimitBySetting
from tiltyard.inputs.workspace import answers_file, model_folder
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.records import LAST_BITS, Settings
from tiltyard.runs.groups import preference_to_dict, signed
from tiltyard.runs.journal import Journal
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.training.log import TimeLeft
from tiltyard.types import Group, Preference, dense_ranks, pairs_of, ranks_of

BLOCK = 32  # pairs at a time
LABELS, JUDGEMENTS = "labels.groups.jsonl", "judgements.jsonl"


class AiLabelSettings(Settings):
    data: Annotated[str, Field(description="rows of `prompt` and `responses`, comparisons, or a file of groups")]
    judge: Annotated[JudgeSettings, Field(description="the judge that compares")]
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="number of rows that are used; 0: all")] = 0
    limit_by: LimitBySetting = "first"
    bad_rows: BadRowsSetting = "error"
    pairs: Annotated[
        Literal["given", "random", "all"],
        Field(description="rows with more than two answers: an error, one random pair of each, or all their pairs"),
    ] = "given"
    seed: Annotated[int, Field(ge=0, description="of random pairs, and of the order where debias is none")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"


@dataclass
class Progress:
    """Pairs that are done, and sums over them for the result."""

    pairs: int = 0
    labels: int = 0
    ties: int = 0
    cut: int = 0
    confidence: float = 0.0
    known: int = 0
    agreed: float = 0.0
    both: int = 0
    same: int = 0
    first: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=lambda: asdict(Usage()))


def run(context: StageContext, settings: AiLabelSettings) -> dict[str, Any]:
    """Queries the judge about every pair, block by block, from where an earlier attempt stopped."""
    pairs = _pairs_of(context, settings)
    judge = _judge(context, settings)
    journal = Journal(context.folder, (LABELS, JUDGEMENTS), Progress())
    progress = journal.progress
    if journal.resumed:
        context.report("goes on", [f"{progress.pairs:,} of {len(pairs):,} pairs are done"])
    failures = ParseFailures(settings.judge.max_missing)
    left = TimeLeft(len(pairs))
    for at in range(progress.pairs, len(pairs), BLOCK):
        block = pairs[at : at + BLOCK]
        set_turn(judge, at)
        verdicts = _verdicts(judge, block, settings)
        failures.add(verdicts)
        if at + BLOCK >= len(pairs):
            failures.check()
        preferences = _preferences(context, verdicts, settings)
        labels = [_label(g, p) for g, p in zip(block, preferences, strict=True) if p.shares is not None]
        _count(progress, block, verdicts, judge)
        judgements = [preference_to_dict(signed(p, g)) for p, g in zip(preferences, block, strict=True)]
        journal.commit({LABELS: map(group_to_line, labels), JUDGEMENTS: judgements})
        facts = (
            f"{progress.pairs:,} of {len(pairs):,} pairs",
            f"{progress.labels:,} labels",
            left.after(progress.pairs),
        )
        context.report("labels", [", ".join(filter(None, facts))])
    journal.close()
    _write_rows(context.folder)
    result = _result(progress)
    context.report("judge", [*filter(None, [getattr(judge.judge, "constraint_line", "")]), *_lines(result)])
    return result


def _lines(result: Mapping[str, Any]) -> list[str]:
    """Formats the result for the console."""
    missing = f"{result['missing']:,} pairs without a verdict"
    missing += f": {counted(result['missing_causes'])}" if result["missing"] else ""
    lines = [f"{result['labels']:,} labels, mean confidence {result['confidence']:.3f}, {missing}"]
    if result["soft"] and result["hard"]:
        lines.append(
            f"{result['soft']:,} verdicts are from log-probabilities and {result['hard']:,} from words, whose p is 0 or"
            " 1: their confidences are not comparable"
        )
    elif result["hard"]:
        lines.append(
            f"the server returned no log-probabilities: {result['hard']:,} verdicts are from words, p is 0 or 1"
        )
    if "same_position" in result:
        lines.append(f"the same position preferred in both orders: {result['same_position']:.1%}")
    if "agreement" in result:
        lines.append(f"agreement with the labels given: {result['agreement']:.1%} of {result['agreement_pairs']:,}")
    lines.append(
        f"{result['judge_calls']:,} queries, cost {result['judge_cost']:.4f}, {result['cached']:,} from the cache"
    )
    if result["unmetered"]:
        lines.append(f"{result['unmetered']:,} replies came without token counts (usage): what they cost is unknown")
    return lines


# --------------------------------------------------------------------------------------------------- the pairs


def _pairs_of(context: StageContext, settings: AiLabelSettings) -> list[Group]:
    """Returns the pairs in the order of the file, with the preferences that the data has."""
    path = context.resolve(settings.data, want="")
    groups: Iterator[Group]
    bad = BadRows(settings.bad_rows)
    limit = limit_of(settings.limit, settings.limit_by, settings.seed)
    if str(path).endswith(".groups.jsonl"):
        groups = limited(lambda: read_groups(path), limit, bad.told)
    else:
        rows = parsed_rows(path, parse_answers, bad, split=settings.split or None, limit=limit)
        groups = (group for _, group in rows)
    pairs = [pair for number, group in enumerate(groups) for pair in _pairs(group, number, settings)]
    if bad.count or bad.drawn:
        context.report("data", bad.lines())
    if not pairs:
        raise DataError("there is nothing to compare", where=str(path), got="no pair", fix="check data and limit")
    return pairs


def _pairs(group: Group, number: int, settings: AiLabelSettings) -> list[Group]:
    count = len(group.responses)
    if count == 2:
        return [group]
    if count < 2 or settings.pairs == "given":
        raise DataError(
            "a judge compares two responses",
            where=group.origin or group.prompt.id,
            got=f"{count} responses",
            expected="two",
            fix="set pairs=random or pairs=all to cut larger groups into pairs" if count > 2 else "drop the row",
        )
    indices = list(combinations(range(count), 2))
    if settings.pairs == "random":
        indices = [random.Random(seed_from(settings.seed, number)).choice(indices)]
    return [_sub_pair(group, ij) for ij in indices]


def _sub_pair(group: Group, indices: tuple[int, int]) -> Group:
    """Two responses of a group, with their scores and the order in which they were preferred."""

    def pick(values: tuple | None) -> tuple | None:
        return None if values is None else tuple(values[i] for i in indices)

    origin = f"{group.origin} {indices[0]},{indices[1]}".strip()
    ranks = pick(ranks_of(group.preference))
    preference = None if ranks is None else Preference(ranks=ranks)
    return Group(group.prompt, pick(group.responses) or (), pick(group.scores), preference, origin)


# ----------------------------------------------------------------------------------------------------- the judge


def _judge(context: StageContext, settings: AiLabelSettings) -> Debiased:
    def load(name: str) -> LanguageModel:
        return load_language_model(model_folder(context, name), device=settings.device)

    if settings.judge.ask != "pair":
        raise ConfigError(
            "this stage needs a judge that compares, and this one grades single responses",
            where=f"{context.name}.judge.ask",
            got=settings.judge.ask,
            expected="pair",
        )
    judge = build_judge(settings.judge, load, answers_file(context), context.execution)
    return judge if isinstance(judge, Debiased) else Debiased(judge)


def _name(settings: AiLabelSettings) -> str:
    return f"judge:{getattr(settings.judge, 'model', settings.judge.kind)}"


def _verdicts(judge: Debiased, block: Sequence[Group], settings: AiLabelSettings) -> list[Verdict]:
    """Returns one verdict per pair. A single order is randomised: files often have the better response first."""
    swapped = [
        judge.how == "none" and bool(seed_from(settings.seed, *map(response_text, g.responses)) % 2) for g in block
    ]
    queries = [
        Group(g.prompt, g.responses[::-1] if swap else g.responses, origin=g.origin)
        for g, swap in zip(block, swapped, strict=True)
    ]
    return [v.swapped() if swap else v for v, swap in zip(judge(queries), swapped, strict=True)]


def _preferences(context: StageContext, verdicts: Sequence[Verdict], settings: AiLabelSettings) -> list[Preference]:
    """Returns the verdicts as preferences; a missing verdict gives one with the reason alone."""
    judge = settings.judge.model_dump(include={"ask", "instruction", "exemplars", "debias", "style", "reasoning"})
    source = Preference(annotator=_name(settings), guideline=content_key(judge)[:12], run=context.run_name)
    preferences = []
    for verdict in verdicts:
        meta = {k: x for k, x in jsonable(asdict(verdict)).items() if k != "p" and x not in (None, "")}
        shares = None if verdict.p is None else (verdict.p, 1 - verdict.p)
        preferences.append(replace(source, shares=shares, meta=meta))
    return preferences


def _label(group: Group, preference: Preference) -> Group:
    origin = f"{group.origin} {preference.annotator}".strip()
    return replace(group, scores=None, preference=replace(preference, meta={}), origin=origin)


# --------------------------------------------------------------------------------------------------- the results


def _count(progress: Progress, block: Sequence[Group], verdicts: Sequence[Verdict], judge: Debiased) -> None:
    """Adds a block to the sums."""
    progress.pairs += len(block)
    progress.cut += sum(r.finish == "length" for g in block for r in g.responses)
    for group, verdict in zip(block, verdicts, strict=True):
        p, better = verdict.p, _given(group)
        if p is None:
            cause = verdict.cause or "unreadable"
            progress.causes[cause] = progress.causes.get(cause, 0) + 1
            continue
        progress.labels += 1
        progress.ties += p == 0.5
        progress.confidence += max(p, 1 - p)
        if better is not None:
            progress.known += 1
            progress.agreed += 0.5 if p == 0.5 else float((p > 0.5) == (better == 0))
    counts, judge.position_counts = judge.position_counts, PositionCounts()
    progress.both += counts.pairs
    progress.same += counts.same
    progress.first += counts.first
    progress.usage = asdict(Usage(**progress.usage) + judge.usage.taken())  # type: ignore[arg-type]


def _given(group: Group) -> int | None:
    """Index of the response that the data prefers, by its preference or else its scores; None for a tie or nothing."""
    ranks = ranks_of(group.preference) or dense_ranks(group.scores or (0, 0))
    return None if ranks[0] == ranks[1] else int(ranks[0] > ranks[1])


def _result(progress: Progress) -> dict[str, Any]:
    labels = max(1, progress.labels)
    result: dict[str, Any] = {
        "pairs": progress.pairs,
        "labels": progress.labels,
        "missing": progress.pairs - progress.labels,
        "missing_causes": dict(sorted(progress.causes.items())),
        "ties": progress.ties,
        "confidence": progress.confidence / labels,
        "cut_answers": progress.cut,
    }
    if progress.both:
        result["same_position"] = progress.same / progress.both
        result["same_position_first"] = progress.first / progress.both
    if progress.known:
        result["agreement"] = progress.agreed / progress.known
        result["agreement_pairs"] = progress.known
    called = {"calls": "judge_calls", "cost": "judge_cost"}  # as in the results of training
    return result | {called.get(key, key): value for key, value in progress.usage.items()}


def _write_rows(folder: Path) -> None:
    """Writes the labels as rows of comparisons; responses without text are left out, because readers refuse them."""
    with atomic_write(folder / "rows.jsonl") as file:
        for group in read_groups(folder / LABELS):
            (best,) = pairs_of(group.preference)
            pair = [group.responses[i] for i in (best.better, best.worse)]
            if not all(r.text.strip() for r in pair):
                continue
            prompt = group.prompt
            texts = [r.meta.get("turns") or r.text for r in pair]
            row = prompt.to_row() | {"chosen": texts[0], "rejected": texts[1]}
            row |= {"p_chosen": best.p, "origin": group.origin, "meta": dict(prompt.meta)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _plan(context: StageContext, settings: AiLabelSettings) -> list[str]:  # noqa: ARG001 - protocol
    judge = settings.judge
    times = 1 if judge.debias == "none" else 2
    name = f"{judge.kind} {getattr(judge, 'model', '')}".strip()
    name += f" at {judge.url}" if isinstance(judge, ApiJudgeSettings) else ""
    upto = f", at most {times * settings.limit:,}" if settings.limit and settings.pairs != "all" else ""
    lines = [f"judge: {name}; {times} quer{'ies' if times > 1 else 'y'} a pair{upto}"]
    if isinstance(judge, ApiJudgeSettings):
        priced = f"{judge.price_in:g} and {judge.price_out:g} a million tokens in and out"
        no_price = "no prices are set (price_in, price_out), so its cost is not counted"
        lines.append(f"the judge is paid: {priced if judge.price_in or judge.price_out else no_price}")
    return lines


register(
    Stage(
        "ai_label",
        run,
        AiLabelSettings,
        "AI labels: a judge (the world, a model, an API) compares answers; its probabilities become soft labels.",
        refers=("data", "judge"),
        plan=_plan,
    )
)
