"""Simulated preference labelling: a model answers, the embedded world's annotators rank.

Every judgement is kept with who made it and about whose answers (`judgements.jsonl`); `rankings.groups.jsonl` holds the
ranked groups with the very ids that were sampled; `rankings.jsonl` is the same for people to read.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from tiltyard.config import Settings
from tiltyard.data import TooLong, write_groups
from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.files import atomic_write
from tiltyard.inputs.files import prompts_of
from tiltyard.inputs.workspace import model_folder
from tiltyard.models.load import load_language_model
from tiltyard.runs.groups import preference_to_dict, signed
from tiltyard.sampling import SampleSettings, sample
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.types import Group, Preference, ranks_of
from tiltyard.world import ANNOTATORS, Annotator, gold
from tiltyard.world.reward import is_world_prompt


class LabelSettings(Settings):
    model: Annotated[str, Field(description="who answers: an earlier stage, a folder or a hub name")]
    prompts: Annotated[str, Field(description="prompts of the embedded world")]
    k: Annotated[int, Field(ge=2, le=9, description="answers a prompt, ranked together")] = 4
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="use the first prompts only; 0: all")] = 0
    max_prompt: Annotated[int, Field(ge=1, description="tokens of a prompt")] = 256
    too_long: Annotated[TooLong, Field(pattern="^(drop|truncate)$", description="longer prompts")] = "drop"
    max_tokens: Annotated[int, Field(gt=0, description="longest answer")] = 64
    temperature: Annotated[float, Field(gt=0, description="of sampling")] = 1.0
    annotators: Annotated[list[str], Field(description="names of annotators; empty: all of the world's")] = []
    seed: Annotated[int, Field(ge=0, description="of sampling and of the annotators' noise")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda")] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"


def run(context: StageContext, settings: LabelSettings) -> dict[str, Any]:
    """Samples K answers a prompt and has a random annotator rank each group."""
    model = load_language_model(model_folder(context, settings.model), device=settings.device, dtype=settings.dtype)
    prompts = prompts_of(context, settings.prompts, model.chat, settings)
    if odd := [p for p in prompts if not is_world_prompt(p)]:
        raise DataError(
            "the annotators know the embedded world alone, and these prompts are not about it",
            where=settings.prompts,
            got=f"{len(odd):,} prompts without its facts, such as {odd[0].id or odd[0].messages or odd[0].text}",
            expected="prompts that the stage `world` wrote (world/prompts.jsonl)",
        )
    people = _annotators(settings.annotators)
    law = SampleSettings(temperature=settings.temperature, max_tokens=settings.max_tokens)
    groups = sample(model, prompts, settings.k, law, seed=settings.seed)
    rng = random.Random(settings.seed)
    ranked, judgements = [], []
    for group in groups:
        who = rng.choice(people)
        ranks = who.rank(group.prompt.meta, [r.text for r in group.responses], rng)
        preference = Preference(
            ranks=ranks, annotator=who.name, guideline="world-1", model=settings.model, run=context.run_name
        )
        ranked.append(replace(group, preference=preference, origin=f"annotator:{who.name} of {settings.model}"))
        judgements.append(signed(preference, group))
    write_groups(context.folder / "rankings.groups.jsonl", ranked)
    _write_rows(context, ranked, judgements)
    ties = sum(len(set(ranks_of(g.preference) or ())) < settings.k for g in ranked)
    agreement = _agreement(ranked)
    context.report(
        "labelled",
        [f"{len(ranked):,} rankings of {settings.k}, {ties:,} with ties; best = gold best in {agreement:.0%}"],
    )
    return {"rankings": len(ranked), "with_ties": ties, "gold_agreement": agreement}


def _annotators(names: list[str]) -> list[Annotator]:
    known = {a.name: a for a in ANNOTATORS}
    for name in names:
        if name not in known:
            raise ConfigError("unknown annotator", where="label.annotators", got=name, fix=nearest(name, known))
    return [known[name] for name in names] if names else list(ANNOTATORS)


def _agreement(groups: list[Group]) -> float:
    """Share of rankings whose first answer is also among the best by the world's own rules."""
    right = 0
    for group in groups:
        totals = [gold(group.prompt.meta, r.text).total for r in group.responses]
        right += totals[(ranks_of(group.preference) or ()).index(1)] >= max(totals)
    return right / max(1, len(groups))


def _write_rows(context: StageContext, groups: list[Group], judgements: list[Preference]) -> None:
    with atomic_write(context.folder / "rankings.jsonl") as file:
        for group in groups:
            messages = [m._asdict() for m in group.prompt.messages or ()]
            # an answer that ended at once has no text, and our own reader rightly refuses empty answers
            said = [
                (r.text, k)
                for r, k in zip(group.responses, ranks_of(group.preference) or (), strict=True)
                if r.text.strip()
            ]
            if len(said) < 2:
                continue
            texts, ranks = zip(*said, strict=True)
            row = {"id": group.prompt.id, "prompt": messages, "responses": texts, "ranks": ranks}
            file.write(json.dumps(row | {"annotator": group.origin, "meta": dict(group.prompt.meta)}) + "\n")
    with atomic_write(context.folder / "judgements.jsonl") as file:
        file.writelines(json.dumps(preference_to_dict(j)) + "\n" for j in judgements)


register(
    Stage(
        "label",
        run,
        LabelSettings,
        "Simulated labelling: a model answers prompts of the embedded world, its annotators rank.",
        refers=("model", "prompts"),
        neutral=("device",),
    )
)
