"""The judge's part of the stage `evaluate`: verdicts on every model, null rows, correction by people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tiltyard.evaluation import EvaluatedResponse
from tiltyard.evaluation.judged import Judged, compared
from tiltyard.evaluation.null_rows import FALSE_ALARMS, NullRow, null_rows
from tiltyard.evaluation.people import PairTable
from tiltyard.feedback import Debiased
from tiltyard.feedback.scorers import ParseFailures
from tiltyard.numerals import plural
from tiltyard.stages.base import StageContext
from tiltyard.stages.corrected import by_people, corrected_win_rates
from tiltyard.types import Group

NULL_MEANING = {
    "constant": "a constant answer",
    "longest": "the longest answer to another prompt",
    "prompt": "a copy of the prompt",
}


@dataclass
class JudgedModels:
    """The judge's counts by model, the rates that people corrected, and the null rows; empty without a judge."""

    counts: dict[str, Judged] = field(default_factory=dict)
    corrected: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    nulls: list[NullRow] = field(default_factory=list)

    def lines(self, baseline: str) -> Iterator[str]:
        """Yields the lines below the table."""
        for name, one in self.counts.items():
            yield f"judge: {name} against {baseline}: {one}"
        if known := [row for row in self.nulls if row.n]:
            rates = ", ".join(f"{NULL_MEANING[row.name]} {row.win_rate:.0%}" for row in known)
            yield (
                f"judge: answers that answer nothing win against {baseline} on {plural(known[0].n, 'prompt')}: {rates}"
            )
        yield from self.alarms(baseline)
        yield from corrected_win_rates(self.corrected, baseline)

    def alarms(self, baseline: str) -> Iterator[str]:
        """Yields a sentence for each null row that the judge prefers."""
        for row in self.nulls:
            if row.alarm:
                yield (
                    f"! alarm: the judge prefers {NULL_MEANING[row.name]} to {baseline}'s answers ({row.win_rate:.0%}, "
                    f"{row.low:.0%} to {row.high:.0%}, of {plural(row.n, 'pair')}): its win rates "
                    "measure something else than "
                    f"answers (false alarms of all null rows together: {FALSE_ALARMS:.0%})"
                )

    def facts(self, name: str) -> dict[str, Any]:
        """Returns what the summary has of one model."""
        if name not in self.counts:
            return {}
        corrected = {"corrected": self.corrected[name]} if self.corrected.get(name) else {}
        return {"judge": asdict(self.counts[name]), **corrected}


def judge_models(
    context: StageContext,
    judge: Debiased,
    sampled: dict[str, list[Group]],
    responses: dict[str, list[EvaluatedResponse]],
    baseline: str,
    *,
    max_missing: float,
    people: str,
    null_prompts: int,
) -> JudgedModels:
    """Has the judge compare every model, and the null rows, with the baseline; `responses` get its verdicts."""
    failures, found = ParseFailures(max_missing), JudgedModels()
    tables: dict[str, PairTable] = {}
    for name, groups in sampled.items():
        if name == baseline:
            continue
        what = f"{plural(sum(len(group.responses) for group in groups), 'response')} against those of {baseline}"
        context.console.print(f"  judging {name} ({what})", markup=False, highlight=False)
        table = tables.setdefault(name, PairTable()) if people else None
        responses[name], found.counts[name] = compared(
            judge, groups, sampled[baseline], responses[name], failures, table
        )
    if null_prompts:
        context.console.print("  judging answers that answer nothing", markup=False, highlight=False)
        found.nulls = null_rows(judge, sampled[baseline], null_prompts)
    used = judge.usage
    price = f", {used.cost:.4f}" if used.cost else ""
    context.report("judge", filter(None, [getattr(judge.judge, "constraint_line", "")]))
    context.report(
        "judge", [f"{plural(used.calls, 'call')}, {plural(used.tokens_in + used.tokens_out, 'token')}{price}"]
    )
    found.corrected = {name: by_people(context, people, table) for name, table in tables.items()}
    return found
