"""Judges measured against people on the same pairs, in the columns of AlpacaEval's table of evaluators.

`calibration.json` holds a row for every judge and for `people`, `longest`, `first` and `random`, with intervals that
resample prompts, and the corrected rates where people labelled a part of the pairs. A judge whose agreement is not
shown to be above that of `longest` is reported as useless. Items that were used to tune the judge's template
(`tuned_on`, and exemplars) are left out of its score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from tiltyard.data import BadRows, parsed_rows, read_groups
from tiltyard.data.bad_rows import parse_answers
from tiltyard.errors import DataError
from tiltyard.evaluation.people import (
    GivenVerdict,
    LabelledPair,
    PairTable,
    corrected_rates,
    judged_pairs,
    lengths,
    majorities,
    preference_of_judge,
)
from tiltyard.feedback import JudgeSettings, Usage, judge_identity
from tiltyard.feedback.simulated import seed_from
from tiltyard.files import write_json
from tiltyard.inputs.settings import BadRowsSetting, StoreSetting
from tiltyard.numerals import plural, verb
from tiltyard.records import LAST_BITS, Settings
from tiltyard.report.judge_tables import calibration_lines, json_ready, print_calibration
from tiltyard.runs.groups import read_judgements
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.judge_panel import Panel, open_panel
from tiltyard.stages.people_labels import Label, labels_of_file, labels_of_store
from tiltyard.stats.calibration import calibration_table, people_agreement
from tiltyard.types import Group, Message, Prompt, prompt_digest

BLOCK = 32
FILE = "calibration.json"


class CalibrateSettings(Settings):
    data: Annotated[
        str,
        Field(
            description="pairs that people labelled, all or a part: rows or a file of groups; `verdicts` of rows count"
        ),
    ] = ""
    store: Annotated[StoreSetting, Field(description="feedback store with the labels of people; a file or URL")] = ""
    judge: Annotated[JudgeSettings | None, Field(description="a judge that is asked about these pairs now")] = None
    panel: Annotated[tuple[JudgeSettings, ...], Field(description="further judges that are asked")] = ()
    judged: Annotated[
        list[str], Field(description="finished stages `ai_label` whose judgements are measured (`judge run`)")
    ] = []
    tuned_on: Annotated[
        list[str], Field(description="files of items that a judge's template was tuned on: their prompts are left out")
    ] = []
    own: Annotated[
        str, Field(description="policy that is the judge's own model, for self-preference; empty: the judge's name")
    ] = ""
    repeat: Annotated[bool, Field(description="ask a judge behind a server twice, to measure its repeatability")] = True
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="number of rows that are used; 0: all")] = 0
    bad_rows: BadRowsSetting = "error"
    rounds: Annotated[int, Field(ge=100, description="resamples of an interval")] = 1000
    seed: Annotated[int, Field(ge=0, description="of intervals, and of the order where debias is none")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"

    @model_validator(mode="after")
    def _one_source(self) -> CalibrateSettings:
        if bool(self.data) == bool(self.store):
            raise ValueError("give data, or store, where the labels of people are")
        if self.panel and self.judge is None:
            raise ValueError("panel has no effect without judge")
        if any(one.ask != "pair" for one in (self.judge, *self.panel) if one is not None):
            raise ValueError("judges are measured on pairs: judge.ask is pair")
        return self


def run(context: StageContext, settings: CalibrateSettings) -> dict[str, Any]:
    """Reads the labels, queries the judges, and writes the table."""
    table = PairTable()
    for group, verdicts in _sources(context, settings):
        table.add_people(group)
        for name, verdict in verdicts.items():
            table.add_verdict(group, name, verdict)
    _read_judged(context, settings, table)
    left_out = table.without(_tuned_prompts(context, settings))
    if left_out:
        context.report(
            "tuned_on",
            [f"{plural(left_out, 'pair')} {verb(left_out, 'is', 'are')} left out: a judge was tuned on such prompts"],
        )
    pairs = list(table.pairs.values())
    if not pairs:
        raise DataError("no pair is left to compare", where=settings.data or settings.store, got="0 pairs")
    prices = _ask(context, settings, [settings.judge, *settings.panel], pairs) if settings.judge is not None else {}
    drawn = _draw_order(pairs, settings.seed)
    result = _measured(settings, table, pairs, prices)
    result |= {"left_out": left_out, "order_drawn": drawn, "both_bad": table.undecided}
    write_json(context.folder / FILE, result)
    print_calibration(result, context.console)
    for line in calibration_lines(result):
        context.console.print(line, markup=False, highlight=False, soft_wrap=True)
    return result


def _sources(context: StageContext, settings: CalibrateSettings) -> Iterator[Label]:
    """Yields every label of people with its pair, and the verdicts that stand beside it."""
    if settings.store:
        return labels_of_store(settings.store)
    return labels_of_file(
        context, settings.data, split=settings.split, limit=settings.limit, bad_rows=settings.bad_rows
    )


def _read_judged(context: StageContext, settings: CalibrateSettings, table: PairTable) -> None:
    """Adds the judgements of finished stages: on the pairs of the data, and on the others that they judged."""
    for name in settings.judged:
        folder = context.resolve_folder(name)
        for group in read_groups(folder / "labels.groups.jsonl"):
            if len(group.responses) == 2:
                table.add(group)
        unknown = sum(not table.add_judgement(line) for line in read_judgements(folder / "judgements.jsonl"))
        if unknown:
            context.report(
                "judged", [f"{name}: {plural(unknown, 'judgement')} without a verdict and without a label of people"]
            )


def _tuned_prompts(context: StageContext, settings: CalibrateSettings) -> set[str]:
    """Digests of the prompts that a judge's template was tuned on, its exemplars among them."""
    found = set()
    for name in settings.tuned_on:
        path = context.resolve(name, want="")
        if str(path).endswith(".groups.jsonl"):
            found |= {prompt_digest(group.prompt) for group in read_groups(path)}
        else:
            found |= {prompt_digest(group.prompt) for _, group in parsed_rows(path, parse_answers, BadRows("error"))}
    for judge in filter(None, (settings.judge, *settings.panel)):
        for one in getattr(judge, "exemplars", ()):
            found |= {prompt_digest(Prompt(messages=(Message("user", one.prompt),)))}
            found |= {prompt_digest(Prompt(text=one.prompt))}
    return found


def _ask(
    context: StageContext, settings: CalibrateSettings, judges: Sequence[JudgeSettings], pairs: Sequence[LabelledPair]
) -> dict[str, tuple[float | None, float | None]]:
    """Queries the judges about every pair, servers twice; returns {name: (price, seconds) of 1,000 pairs}."""
    prices: dict[str, tuple[float | None, float | None]] = {}
    first = open_panel(context, judges, device=settings.device, seed=settings.seed)
    context.report("estimate", first.estimate([pair.group for pair in pairs]))
    drawn = bool(settings.store)
    names = _asked(context, first, pairs, again=False, same_draw=drawn)
    for member, name in zip(first.members, names, strict=True):
        client = getattr(getattr(member.judge, "judge", None), "client", None)
        thousand = 1000 / len(pairs)
        prices[name] = (None, None) if client is None else (client.value * thousand, client.seconds * thousand or None)
    used = first.take_usage()
    if settings.repeat and any(one.kind == "api" for one in judges):
        servers = [one for one in judges if one.kind == "api"]
        second = open_panel(context, servers, device=settings.device, seed=settings.seed, repeat=1)
        context.report("estimate", second.estimate([pair.group for pair in pairs]))
        _asked(context, second, pairs, again=True, same_draw=drawn)
        used = used + second.take_usage()
    context.report("judge", [_usage_line(used)])
    return prices


def _asked(
    context: StageContext, panel: Panel, pairs: Sequence[LabelledPair], *, again: bool, same_draw: bool
) -> list[str]:
    """Queries in blocks; the verdicts go to the pairs under the names of the judges, which are returned.

    Args:
        again: the same was asked before. same_draw: the judges see the pairs that a store drew for people.
    """
    given: list[list[GivenVerdict]] = [[] for _ in panel.members]
    for at in range(0, len(pairs), BLOCK):
        _, each = panel.ask([pair.group for pair in pairs[at : at + BLOCK]], at)
        for column, opinions in zip(given, each, strict=True):
            column += [preference_of_judge(one) for one in opinions]
        context.report(
            "judged", [f"{min(at + BLOCK, len(pairs)):,} of {len(pairs):,} pairs{' again' if again else ''}"]
        )
    panel.close()
    names = [member.identity.name for member in panel.members]
    for name, column in zip(names, given, strict=True):
        for pair, verdict in zip(pairs, column, strict=True):
            known = pair.verdicts.get(name)
            if again and known is not None:
                verdict = replace(known, again=verdict.p)
            elif same_draw and pair.choice is not None:
                verdict = replace(verdict, chosen_with=pair.choice.probability)
            pair.verdicts[name] = verdict
    return names


def _usage_line(used: Usage) -> str:
    repeated = f", {used.retries:,} repeated" if used.retries else ""
    return f"{used.calls:,} queries{repeated}, cost {used.cost:.4f}, {used.cached:,} from the cache"


def _draw_order(pairs: Sequence[LabelledPair], seed: int) -> bool:
    """Draws the order of each pair where the data has the better response first in all of them, and returns True."""
    votes = [vote for pair in pairs for vote in pair.votes if vote != 0.5]
    if not votes or min(votes) != 1 or len(votes) < 2:
        return False
    for pair in pairs:
        if seed_from(seed, pair.prompt, *(r.text for r in pair.group.responses)) % 2:
            pair.group = Group(pair.group.prompt, pair.group.responses[::-1], origin=pair.group.origin)
            pair.votes = [1 - vote for vote in pair.votes]
            pair.verdicts = {name: verdict.swapped() for name, verdict in pair.verdicts.items()}
    return True


def _measured(
    settings: CalibrateSettings,
    table: PairTable,
    pairs: Sequence[LabelledPair],
    prices: dict[str, tuple[float | None, float | None]],
) -> dict[str, Any]:
    """The rows of the table and the corrected rates, as JSON-ready values."""
    labelled = [pair for pair in pairs if pair.votes]
    if not labelled:
        raise DataError(
            "people labelled none of these pairs",
            where=settings.data or settings.store,
            got=f"{len(pairs):,} pairs without a label",
            fix="label a part of them first, or name the file that has the labels as data",
        )
    how: dict[str, Any] = {"rounds": settings.rounds, "seed": settings.seed}
    judges = {}
    for name in table.names():
        price, seconds = prices.get(name, (None, None))
        judges[name] = judged_pairs(labelled, name, own=_own(settings, name), price=price, seconds=seconds)
    prompts = [pair.prompt for pair in labelled]
    rows = calibration_table(judges, majorities(labelled), prompts, lengths(labelled), **how)
    people = people_agreement([pair.votes for pair in labelled], prompts, **how)
    spent = [second for pair in labelled for second in pair.seconds]
    result: dict[str, Any] = {
        "pairs": len(pairs),
        "labelled": len(labelled),
        "votes": sum(len(pair.votes) for pair in labelled),
        "people": {"agreement": people, "seconds": 1000 * sum(spent) / len(spent) if spent else None},
        "rows": {row.name: {**vars(row), "useless": not row.useful} for row in rows},
        "corrected": {},
    }
    if len(labelled) < len(pairs):
        result["corrected"] = {name: corrected_rates(pairs, name, **how) for name in table.names()}
    return json_ready(result)


def _own(settings: CalibrateSettings, name: str) -> str:
    if settings.own:
        return settings.own
    judges = [] if settings.judge is None else [settings.judge, *settings.panel]
    for judge in judges:
        if name.startswith(judge_identity(judge).name.partition("#")[0]):
            return Path(str(getattr(judge, "model", ""))).name
    return name.removeprefix("judge:").partition("@")[0].partition("#")[0]


register(
    Stage(
        "calibrate",
        run,
        CalibrateSettings,
        "Judges against people on the same pairs: agreement, biases, price, corrected rates; beside `longest`.",
        refers=("data", "store", "judge", "panel", "judged", "tuned_on"),
    )
)
