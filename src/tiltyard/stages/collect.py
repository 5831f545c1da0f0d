"""The stage `collect`: people, or the embedded world's annotators, judge responses; it ends when enough came.

The tasks lie in a feedback store under the name of this execution of the stage; the stage serves the labelling page
while it waits. Stopping it at any moment loses nothing: what was judged lies in the store, and the same command waits
for the rest. `labels.groups.jsonl` holds the judgements, one a group, as `tiltyard export --to groups` writes
them; those that come after the stage has ended stay in the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tiltyard.data.exchange import write_judged
from tiltyard.errors import DataError, nearest
from tiltyard.evaluation.versions import compared
from tiltyard.files import read_text
from tiltyard.inputs.settings import StoreSetting
from tiltyard.numerals import plural
from tiltyard.records import EXECUTION, Settings
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.collect_wait import collect, simulated_names
from tiltyard.stopping import resumable
from tiltyard.types import Group, prompt_digest
from tiltyard.world import ANNOTATORS
from tiltyard.world.reward import is_world_prompt

if TYPE_CHECKING:
    from tiltyard.feedback.store.campaigns import Count
    from tiltyard.feedback.store.database import Database
    from tiltyard.feedback.store.items import Item

LABELS = "labels.groups.jsonl"
GUIDELINES = {
    "pair": "Which answer is better? Prefer the one that helps more, is true and does no harm. Length is no merit.",
    "ranking": "Order the answers from best to worst: helpful, true, harmless. Equally good ones may tie.",
    "best_worst": "Choose the best and the worst answer: helpful, true, harmless.",
    "rating": "Rate each answer from 1 (useless) to 7 (as good as can be), and say what it is not.",
}


class CollectSettings(Settings):
    data: Annotated[
        str | list[str] | dict[str, str],
        Field(
            description="responses: a stage that sampled, rows or groups; or several, {NAME OF THE POLICY: file}, the "
            "oldest first: then the responses to a prompt are pooled, and each pair is of two policies"
        ),
    ]
    kind: Annotated[Literal["pair", "ranking", "best_worst", "rating"], Field(description="what is asked")] = "pair"
    pairs: Annotated[int, Field(ge=0, description="of kind pair: pairs drawn of each prompt; 0: all")] = 1
    limit: Annotated[int, Field(ge=0, description="prompts that are used, the first ones; 0: all")] = 0
    overlap: Annotated[int, Field(ge=1, le=1000, description="annotators who judge each task")] = 1
    enough: Annotated[
        float, Field(gt=0, le=1, description="share of the wanted judgements after which the run goes on"), EXECUTION
    ] = 1.0
    store: Annotated[
        StoreSetting,
        Field(description="feedback store: a file or postgresql://user@host/name; empty: labels.db of the run"),
    ] = ""
    labellers: Annotated[
        list[str], Field(description="people who label; those who are new get a personal link, printed once"), EXECUTION
    ] = []
    simulated: Annotated[
        list[str], Field(description="the embedded world's annotators who label in place of people; [all]: all of them")
    ] = []
    guidelines: Annotated[str, Field(description="Markdown file that annotators accept first; empty: a sentence")] = ""
    serve: Annotated[
        bool,
        Field(description="serve the labelling page while waiting; false: `tiltyard collect serve` does"),
        EXECUTION,
    ] = True
    host: Annotated[str, Field(description="address of the page; not loopback: others reach it"), EXECUTION] = (
        "127.0.0.1"
    )
    port: Annotated[int, Field(ge=0, le=65535, description="port of the page; 0: a free one"), EXECUTION] = 8077
    url: Annotated[str, Field(description="address that people open, if it is another (a proxy)"), EXECUTION] = ""
    gold_every: Annotated[int, Field(ge=0, description="real tasks between two gold items of the store; 0: none")] = 10
    lease: Annotated[float, Field(ge=0.5, description="minutes after which an open task goes to others")] = 20.0
    strength: Annotated[bool, Field(description="ask how much better the better answer of a pair is")] = True
    adjudicate: Annotated[bool, Field(description="a third annotator decides where two differ")] = True
    pairing: Annotated[
        Literal["random", "active"],
        Field(
            description="which pair comes next: random, or active: drawn by what a verdict is expected to tell about "
            "the policies' ratings, weighed back by the probability (saves no labels as measured, docs/ratings.md)"
        ),
    ] = "random"
    stop_flagged: Annotated[
        int, Field(ge=0, description="people whose flags stop a prompt: it is given to no one any more; 0: never")
    ] = 2
    seed: Annotated[
        int, Field(ge=0, description="of drawn pairs, of orders on the page and of simulated annotators' noise")
    ] = 0

    @model_validator(mode="after")
    def _possible(self) -> CollectSettings:
        known = [*(one.name for one in ANNOTATORS), "all"]
        for name in self.simulated:
            if name not in known:
                raise ValueError(f"unknown simulated annotator '{name}': {nearest(name, known)}")
        if self.simulated and self.kind == "rating":
            raise ValueError("the embedded world's annotators rank and give no ratings; have people rate")
        if self.pairing == "active" and self.kind != "pair":
            raise ValueError("pairing: active needs kind: pair, since what is drawn are pairs")
        if not self.serve and not self.url:
            raise ValueError("serve: false needs url, the address at which `tiltyard collect serve` serves")
        if self.simulated and not self.labellers and self.overlap > len(simulated_names(self.simulated)):
            raise ValueError(f"overlap {self.overlap} needs as many annotators; simulated names fewer")
        return self


def run(context: StageContext, settings: CollectSettings) -> dict[str, Any]:
    """Adds the tasks, waits for the judgements, writes them, and compares the policies that wrote the responses."""
    from tiltyard.feedback.store.campaigns import close, counted
    from tiltyard.feedback.store.database import Database
    from tiltyard.feedback.store.items import add_tasks

    items, dropped = _items(context, settings)
    place = settings.store or str(context.run_folder / "labels.db")
    stage = f"{context.run_name}/{context.name}@"
    campaign = f"{stage}{context.execution[:12]}"
    database = Database(place)
    try:
        _guidelines(context, settings, database)
        close(database, stage, but=campaign)  # tasks of executions with other settings are asked of no one any more
        add_tasks(database, items, seed=settings.seed, campaign=campaign)
        context.report("store", [database.shown])
        context.report(
            "asks", [_asked(settings, len(items)), *(f"left out {n:,}: {why}" for why, n in dropped.items())]
        )
        with resumable():
            collect(context, settings, database, campaign, [item.group.prompt for item in items])
        count = counted(database, campaign)
        close(database, campaign)
        groups = list(_groups(database, campaign))
    finally:
        database.close()
    return _result(context, settings, groups, items, count)


def _items(context: StageContext, settings: CollectSettings) -> tuple[list[Item], Counter[str]]:
    """Returns the tasks, and counts of what gives none by the reason."""
    from tiltyard.feedback.collect.load import Wanted, items_of, written_groups

    given = settings.data
    names = given if isinstance(given, dict) else {"": given} if isinstance(given, str) else dict.fromkeys(given, "")
    sources = [(name, value) if isinstance(given, dict) else ("", name or value) for name, value in names.items()]
    wanted = Wanted(
        settings.kind, "real", settings.overlap, settings.pairs, seed=settings.seed, across=len(sources) > 1
    )
    pooled: dict[str, Group] = {}
    for number, (name, value) in enumerate(sources):
        path = str(context.resolve(value, want=""))
        for at, group in enumerate(written_groups(path, replace(wanted, policy=name))):
            key = prompt_digest(group.prompt) if wanted.across else f"{number} {at}"
            old = pooled.get(key)
            answers = group.responses if old is None else (*old.responses, *group.responses)
            pooled[key] = replace(old or group, responses=answers, scores=None, preference=None)
    groups = list(pooled.values())[: settings.limit or None]
    dropped: Counter[str] = Counter()
    items = items_of(groups, wanted, f"{context.run_name}/{context.name}", dropped)
    if not items:
        raise DataError(
            "the responses give no task of this kind",
            where=f"{context.name}.data",
            got=", ".join(f"{n:,} x {reason}" for reason, n in dropped.items()) or "no responses",
            fix="sample more than one response to a prompt, or other prompts",
        )
    if settings.simulated and (odd := [i.group.prompt for i in items if not is_world_prompt(i.group.prompt)]):
        raise DataError(
            "simulated annotators know the embedded world alone, and these prompts are not about it",
            where=f"{context.name}.data",
            got=f"{len(odd):,} prompts without its facts, such as {odd[0].id or odd[0].messages or odd[0].text}",
            expected="prompts that the stage `world` wrote (world/prompts.jsonl)",
            fix="leave `simulated` out, and let people label",
        )
    return items, dropped


def _asked(settings: CollectSettings, tasks: int) -> str:
    people = "one annotator" if settings.overlap == 1 else f"{settings.overlap} annotators"
    return f"{plural(tasks, 'task')} ({settings.kind.replace('_', ' and ')}), each of {people}"


def _guidelines(context: StageContext, settings: CollectSettings, database: Database) -> None:
    """Adds the guidelines where the store has never had them; where it has newer ones, those are in force."""
    from tiltyard.feedback.store.people import add_guideline, guideline, guideline_of

    newest = guideline(database)
    if not settings.guidelines:
        if newest is None:
            add_guideline(database, GUIDELINES[settings.kind])
        return
    text = read_text(Path(context.resolve(settings.guidelines, want="")))
    if guideline_of(database, text) is None:
        context.report("guidelines", [f"version {add_guideline(database, text)}"])


def _groups(database: Database, campaign: str) -> Iterator[Group]:
    """Yields the standing judgements of the campaign, those of AI judges on the same tasks left out."""
    from tiltyard.feedback.store.export import groups

    for group in groups(database, campaign=campaign):
        assert group.preference is not None
        if group.preference.meta.get("role") != "judge":
            yield group


def _result(
    context: StageContext, settings: CollectSettings, groups: list[Group], items: list[Item], count: Count
) -> dict[str, Any]:
    written = write_judged(context.folder / LABELS, groups, "groups")
    order = list(settings.data) if isinstance(settings.data, dict) else []
    order = order or list(dict.fromkeys(str(r.meta.get("policy")) for item in items for r in item.group.responses))
    found = compared(groups, order, seed=settings.seed)
    who = Counter(group.preference.annotator for group in groups if group.preference is not None)
    context.report(
        "labels", [f"{written.rows:,} of {plural(count.annotators, 'annotator')}: {context.folder / LABELS}"]
    )
    for one in found:
        context.report("versions", one.lines())
    return {
        "tasks": count.tasks,
        "rankings": len(groups),  # as of the stage `label`: what people were asked for
        "wanted": count.wanted,
        "annotators": dict(sorted(who.items())),
        "versions": [one.to_dict() for one in found],
    }


def plan(context: StageContext, settings: CollectSettings) -> list[str]:
    """Returns what the run will wait for."""
    place = settings.store or str(context.run_folder / "labels.db")
    who = [*settings.labellers, *(f"{name} (simulated)" for name in simulated_names(settings.simulated))]
    share = "all" if settings.enough == 1 else f"{settings.enough:.0%} of the"
    return [f"waits for {share} labels in {place}, of {', '.join(who) or 'everyone with a personal link'}"]


register(
    Stage(
        "collect",
        run,
        CollectSettings,
        "People judge responses on the labelling page; the run waits until enough judgements are there.",
        refers=("data", "guidelines"),
        plan=plan,
    )
)
