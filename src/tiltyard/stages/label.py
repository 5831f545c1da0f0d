"""Simulated preference labelling: a model responds, and annotators of the embedded world rank the responses.

`judgements.jsonl` holds one preference record per ranking, with its annotator and the model that responded;
`rankings.groups.jsonl` the ranked groups with the sampled ids; `rankings.jsonl` the same as text; `chosen.jsonl` the
best response of each ranking as a demonstration.

Responses and ranks depend only on the seed and on the prompt's index in the file. The work is done in blocks of
prompts, each committed to a `Journal`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from tiltyard.data import group_to_line
from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.feedback.simulated import seed_from
from tiltyard.inputs.files import prompts_of
from tiltyard.inputs.settings import STOP, PromptReading, StopStrings
from tiltyard.inputs.workspace import model_folder
from tiltyard.models.load import load_language_model
from tiltyard.numerals import plural, verb
from tiltyard.records import LAST_BITS
from tiltyard.runs.groups import preference_to_dict, signed
from tiltyard.runs.journal import Journal
from tiltyard.sampling import SampleSettings, response_seeds, sample
from tiltyard.stages.backend import report_model
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.training.log import TimeLeft
from tiltyard.types import Group, Preference, Prompt, ranks_of
from tiltyard.world import ANNOTATORS, Annotator, gold
from tiltyard.world.reward import is_world_prompt

BLOCK = 64  # prompts at a time
RANKINGS, ROWS, JUDGEMENTS = "rankings.groups.jsonl", "rankings.jsonl", "judgements.jsonl"
CHOSEN = "chosen.jsonl"


class LabelSettings(PromptReading):
    model: Annotated[str, Field(description="the model that responds: an earlier stage, a folder or a hub name")]
    prompts: Annotated[str, Field(description="prompts of the embedded world")]
    k: Annotated[int, Field(ge=2, le=9, description="responses a prompt, ranked together")] = 4
    max_tokens: Annotated[int, Field(gt=0, description="longest response")] = 64
    stop: Annotated[StopStrings, Field(description=STOP)] = ()
    temperature: Annotated[float, Field(gt=0, description="of sampling")] = 1.0
    annotators: Annotated[list[str], Field(description="names of annotators; empty: all of the world's")] = []
    noise: Annotated[
        float, Field(ge=0, le=1, description="share of the rankings that are replaced by a random order: label noise")
    ] = 0.0
    seed: Annotated[int, Field(ge=0, description="of sampling and of the annotators' noise")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"


@dataclass
class Progress:
    """Rankings that are done, those with ties, and those whose first response is among the best by `gold`."""

    rankings: int = 0
    with_ties: int = 0
    gold_best: int = 0


def run(context: StageContext, settings: LabelSettings) -> dict[str, Any]:
    """Samples K responses per prompt and has a random annotator rank each group, block by block."""
    model = load_language_model(model_folder(context, settings.model), device=settings.device, dtype=settings.dtype)
    report_model(context, "model", model, samples=True)
    prompts = prompts_of(context, settings.prompts, model.chat, settings, settings.seed)
    _check_prompts(prompts, settings)
    annotators = _annotators(settings.annotators)
    sampling = SampleSettings(temperature=settings.temperature, max_tokens=settings.max_tokens, stop=settings.stop)
    journal = Journal(context.folder, (RANKINGS, ROWS, JUDGEMENTS, CHOSEN), Progress())
    progress = journal.progress
    if journal.resumed:
        are = verb(progress.rankings, "is", "are")
        context.report("goes on", [f"{progress.rankings:,} of {plural(len(prompts), 'ranking')} {are} done"])
    left = TimeLeft(len(prompts))
    for first in range(progress.rankings, len(prompts), BLOCK):
        some = prompts[first : first + BLOCK]
        seeds = response_seeds(range(first, first + len(some)), settings.k, settings.seed)
        groups = [
            _ranked(group, annotators, random.Random(seed_from(settings.seed, "annotator", number)), context, settings)
            for number, group in enumerate(sample(model, some, settings.k, sampling, seeds=seeds), first)
        ]
        _count(progress, groups)
        judgements = [preference_to_dict(signed(g.preference or Preference(), g)) for g in groups]
        rows = [row for row in map(_row, groups) if row is not None]
        chosen = map(_chosen, rows)
        journal.commit({RANKINGS: map(group_to_line, groups), ROWS: rows, JUDGEMENTS: judgements, CHOSEN: chosen})
        done = f"{progress.rankings:,} of {plural(len(prompts), 'ranking')}"
        context.report("labels", [", ".join(filter(None, (done, left.after(progress.rankings))))])
    journal.close()
    agreement = progress.gold_best / max(1, progress.rankings)
    ties = f"{plural(progress.rankings, 'ranking')} of {settings.k}, {progress.with_ties:,} with ties"
    context.report("labelled", [f"{ties}; best = gold best in {agreement:.0%}"])
    return {"rankings": progress.rankings, "with_ties": progress.with_ties, "gold_agreement": agreement}


def _check_prompts(prompts: Sequence[Prompt], settings: LabelSettings) -> None:
    if odd := [p for p in prompts if not is_world_prompt(p)]:
        raise DataError(
            "the annotators know the embedded world alone, and these prompts are not about it",
            where=settings.prompts,
            got=f"{len(odd):,} prompts without its facts, such as {odd[0].id or odd[0].messages or odd[0].text}",
            expected="prompts that the stage `world` wrote (world/prompts.jsonl)",
        )


def _ranked(
    group: Group, annotators: list[Annotator], rng: random.Random, context: StageContext, settings: LabelSettings
) -> Group:
    """Returns the group with the preference of one of the annotators."""
    annotator = rng.choice(annotators)
    ranks = annotator.rank(group.prompt.meta, [r.text for r in group.responses], rng)
    if settings.noise and rng.random() < settings.noise:  # without noise the random numbers are as they always were
        order = {rank: place for place, rank in enumerate(rng.sample(sorted(set(ranks)), len(set(ranks))), 1)}
        ranks = tuple(order[rank] for rank in ranks)  # equal texts stay equal
    preference = Preference(
        ranks=ranks,
        annotator=annotator.name,
        guideline="world-1",
        model=settings.model,
        run=context.run_name,
    )
    return replace(group, preference=preference, origin=f"annotator:{annotator.name} of {settings.model}")


def _annotators(names: list[str]) -> list[Annotator]:
    known = {a.name: a for a in ANNOTATORS}
    for name in names:
        if name not in known:
            raise ConfigError("unknown annotator", where="label.annotators", got=name, fix=nearest(name, known))
    return [known[name] for name in names] if names else list(ANNOTATORS)


def _count(progress: Progress, groups: Sequence[Group]) -> None:
    """Adds a block to the counts."""
    for group in groups:
        ranks = ranks_of(group.preference) or ()
        totals = [gold(group.prompt.meta, r.text).total for r in group.responses]
        progress.rankings += 1
        progress.with_ties += len(set(ranks)) < len(ranks)
        progress.gold_best += totals[ranks.index(1)] >= max(totals)


def _row(group: Group) -> dict[str, Any] | None:
    """Returns a ranking as a row of comparisons; None if fewer than two responses have text, which readers refuse."""
    ranks = ranks_of(group.preference) or ()
    filled = [(r.text, k) for r, k in zip(group.responses, ranks, strict=True) if r.text.strip()]
    if len(filled) < 2:
        return None
    texts, ranks = zip(*filled, strict=True)
    row = group.prompt.to_row() | {"responses": texts, "ranks": ranks}
    return row | {"annotator": group.origin, "meta": dict(group.prompt.meta)}


def _chosen(row: Mapping[str, Any]) -> dict[str, Any]:
    """The best response of a ranking as a demonstration."""
    best = row["responses"][row["ranks"].index(min(row["ranks"]))]
    return {key: value for key, value in row.items() if key not in ("responses", "ranks")} | {"completion": best}


register(
    Stage(
        "label",
        run,
        LabelSettings,
        "Simulated labelling: a model answers prompts of the embedded world, its annotators rank.",
        refers=("model", "prompts"),
    )
)
