"""AI labels: judges compare, rate or rank responses, and their verdicts become preferences (RLAIF).

`labels.groups.jsonl` holds every item that has a verdict with its preference (of pairs the probabilities p, 1 - p), its
token ids unchanged; `rows.jsonl` the same as text; `judgements.jsonl` one preference record per item and judge, missing
verdicts included.

The work is done in blocks of items, each committed to a `Journal`. What an API answered is stored before it is used, so
an interrupted block sends only the requests that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tiltyard.data import group_to_line, read_groups
from tiltyard.errors import ConfigError
from tiltyard.feedback import ApiJudgeSettings, JudgeSettings
from tiltyard.files import atomic_write
from tiltyard.inputs.settings import RowReading, StoreSetting
from tiltyard.numerals import plural, verb
from tiltyard.records import LAST_BITS
from tiltyard.runs.groups import preference_to_dict, signed
from tiltyard.runs.journal import Journal
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.judge_items import items_of_file
from tiltyard.stages.judge_panel import Panel, has_verdict, open_panel
from tiltyard.stages.judge_report import JudgeProgress, count, lines_of, result_of
from tiltyard.training.log import TimeLeft
from tiltyard.types import Group, Preference, pairs_of, prompt_digest, ranks_of

BLOCK = 32  # items at a time
LABELS, JUDGEMENTS = "labels.groups.jsonl", "judgements.jsonl"


class AiLabelSettings(RowReading):
    data: Annotated[
        str, Field(description="rows of `prompt` and `responses`, comparisons, or a file of groups; empty: of `store`")
    ] = ""
    judge: Annotated[JudgeSettings, Field(description="the judge: compares, rates or ranks, as its `ask` says")]
    panel: Annotated[
        tuple[JudgeSettings, ...], Field(description="further judges; labels are the mean of all that have a verdict")
    ] = ()
    store: Annotated[
        StoreSetting,
        Field(description="feedback store whose tasks are judged, under the judge's own name; a file or URL"),
    ] = ""
    pairs: Annotated[
        Literal["given", "random", "all"],
        Field(description="rows with more than two answers: an error, one random pair of each, or all their pairs"),
    ] = "given"
    disagreement: Annotated[
        Literal["average", "drop"],
        Field(description="pairs whose two orders prefer different responses: the average, or no label"),
    ] = "average"
    seed: Annotated[int, Field(ge=0, description="of random pairs, and of the order where debias is none")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"

    @model_validator(mode="after")
    def _one_source(self) -> AiLabelSettings:
        if bool(self.data) == bool(self.store):
            raise ValueError("give data, or store, whose tasks are judged")
        if self.store and self.judge.ask not in ("pair", "rank"):
            raise ValueError(f"a store has pairs and rankings; judge.ask: {self.judge.ask} has no task there")
        if self.judge.ask != "pair" and self.pairs != "given":
            raise ValueError(f"pairs has no effect with judge.ask: {self.judge.ask}; leave it out")
        if self.judge.ask != "pair" and self.disagreement != "average":
            raise ValueError(f"disagreement has no effect with judge.ask: {self.judge.ask}; leave it out")
        return self


def run(context: StageContext, settings: AiLabelSettings) -> dict[str, Any]:
    """Queries the judges about every item, block by block, from where an earlier attempt stopped."""
    store = _Store(settings) if settings.store else None
    items = store.items if store else _items(context, settings)
    panel = open_panel(
        context,
        [settings.judge, *settings.panel],
        device=settings.device,
        seed=settings.seed,
        disagreement=settings.disagreement,
    )
    journal = Journal(context.folder, (LABELS, JUDGEMENTS), JudgeProgress())
    progress = journal.progress
    if journal.resumed:
        are = verb(progress.pairs, "is", "are")
        context.report("goes on", [f"{progress.pairs:,} of {len(items):,} {_noun(settings)} {are} done"])
    context.report("estimate", panel.estimate(items[progress.pairs :]))
    left = TimeLeft(len(items))
    for at in range(progress.pairs, len(items), BLOCK):
        block = items[at : at + BLOCK]
        final, each = panel.ask(block, at)
        if at + BLOCK >= len(items):
            panel.close()
        labels = [_label(g, p) for g, p in zip(block, final, strict=True) if has_verdict(p)]
        count(progress, block, final, panel)
        if store:
            store.put(at, each, panel)
        judgements = _judgements(context, block, each)
        journal.commit({LABELS: map(group_to_line, labels), JUDGEMENTS: judgements})
        facts = (
            f"{progress.pairs:,} of {len(items):,} {_noun(settings)}",
            f"{plural(progress.labels, 'label')}",
            left.after(progress.pairs),
        )
        context.report("labels", [", ".join(filter(None, facts))])
    journal.close()
    write_rows(context.folder)
    result = result_of(progress, panel)
    ways = [member.constraint_line for member in panel.members]
    context.report("judge", [*filter(None, ways), *lines_of(result, _noun(settings))])
    return result


def _noun(settings: AiLabelSettings) -> str:
    return "pairs" if settings.judge.ask == "pair" else "groups"


def _items(context: StageContext, settings: AiLabelSettings) -> list[Group]:
    return items_of_file(
        context,
        settings.data,
        ask=settings.judge.ask,
        pairs=settings.pairs,
        split=settings.split,
        limit=settings.limit,
        limit_by=settings.limit_by,
        bad_rows=settings.bad_rows,
        seed=settings.seed,
    )


def _judgements(
    context: StageContext, block: Sequence[Group], each: Sequence[Sequence[Preference]]
) -> Iterator[dict[str, Any]]:
    """Yields a line for each item and judge: the item's judges one after the other."""
    for group, opinions in zip(block, zip(*each, strict=True), strict=True):
        digest = {"prompt_digest": prompt_digest(group.prompt)}  # ids differ between files of the same prompts
        for one in opinions:
            yield preference_to_dict(signed(replace(one, run=context.run_name, meta={**one.meta, **digest}), group))


def _label(group: Group, preference: Preference) -> Group:
    """The group with its label: of ratings without the responses that have none."""
    origin = f"{group.origin} {preference.annotator}".strip()
    kept = {key: value for key, value in preference.meta.items() if key == "panel"}
    return replace(group, scores=preference.ratings, preference=replace(preference, meta=kept), origin=origin)


class _Store:
    """The tasks of a feedback store, and where their verdicts go."""

    def __init__(self, settings: AiLabelSettings):
        from tiltyard.feedback.store.database import Database
        from tiltyard.feedback.store.machines import KIND_OF_ASK, tasks_to_judge

        self.database = Database(settings.store)
        found = tasks_to_judge(self.database, KIND_OF_ASK[settings.judge.ask])
        found = found[: settings.limit or None]
        if not found:
            raise ConfigError(
                "the store has no task to judge",
                where=settings.store,
                got=f"no real task of kind '{KIND_OF_ASK[settings.judge.ask]}'",
                fix="add tasks first, or judge a file: data=FILE",
            )
        self.tasks, self.items = [task for task, _ in found], [group for _, group in found]

    def put(self, at: int, each: Sequence[Sequence[Preference]], panel: Panel) -> None:
        """Stores a block of every judge's verdicts; what has none is not stored."""
        from tiltyard.feedback.store.machines import judge_annotator, store_verdicts, verdict_of_preference

        for member, given in zip(panel.members, each, strict=True):
            by_name: dict[str, dict[int, Any]] = {}
            for task, one in zip(self.tasks[at:], given, strict=False):
                verdict = verdict_of_preference(one)
                if verdict is not None:
                    by_name.setdefault(one.annotator, {})[task] = verdict
            for name, verdicts in by_name.items():
                who = judge_annotator(self.database, name, member.identity.facts())
                store_verdicts(self.database, who, verdicts)


def write_rows(folder: Path) -> None:
    """Writes the labels as rows of comparisons; readers refuse those with an empty response."""
    with atomic_write(folder / "rows.jsonl") as file:
        for group in read_groups(folder / LABELS):
            if len(group.responses) < 2 or not all(r.text.strip() for r in group.responses):
                continue
            texts = [r.meta.get("turns") or r.text for r in group.responses]
            row = group.prompt.to_row() | _row_of(group, texts) | {"origin": group.origin}
            file.write(json.dumps(row | {"meta": dict(group.prompt.meta)}, ensure_ascii=False) + "\n")


def _row_of(group: Group, texts: Sequence[Any]) -> dict[str, Any]:
    preference = group.preference
    if preference is not None and preference.shares is not None and len(texts) == 2:
        (best,) = pairs_of(preference)
        return {"chosen": texts[best.better], "rejected": texts[best.worse], "p_chosen": best.p}
    scores = {} if group.scores is None else {"scores": list(group.scores)}
    return {"responses": list(texts), "ranks": list(ranks_of(preference) or ())} | scores


def _plan(context: StageContext, settings: AiLabelSettings) -> list[str]:  # noqa: ARG001 - protocol
    lines = []
    for judge in (settings.judge, *settings.panel):
        times = 1 if judge.debias == "none" or judge.ask in ("score", "points") else 2
        what = {"pair": "a pair", "rank": "a group"}.get(judge.ask, "a response")
        name = f"{judge.kind} {getattr(judge, 'model', '')}".strip()
        name += f" at {judge.url}" if isinstance(judge, ApiJudgeSettings) else ""
        known = settings.limit and settings.pairs != "all" and judge.ask in ("pair", "rank")
        upto = f", at most {times * settings.limit:,}" if known else ""
        lines.append(f"judge: {name}; {times} quer{'ies' if times > 1 else 'y'} {what}{upto}")
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
        "AI labels: judges (the world, models, APIs) compare, rate or rank answers; their verdicts become preferences.",
        refers=("data", "store", "judge", "panel"),
        plan=_plan,
    )
)
