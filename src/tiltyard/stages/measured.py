"""Adds figures to the cards of models that stages below the same folder of runs trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiltyard.evaluation import benchmarks
from tiltyard.evaluation.policies import PolicySummary
from tiltyard.inputs.workspace import model_folder
from tiltyard.numerals import plural
from tiltyard.report.card import Figure, add_figures
from tiltyard.report.card_figures import cost_figures, of_benchmarks, of_policy
from tiltyard.runs.model_card import NAME
from tiltyard.stages.base import StageContext
from tiltyard.stages.card import called


def add_to_cards(
    context: StageContext, models: Mapping[str, Sequence[Figure]], about: str, data: str, heading: str = ""
) -> None:
    """Adds figures to the cards of models under the name of this stage; reports a card that cannot be written.

    Args:
        models: figures by model, as the settings name it. about: a sentence on how they were measured.
        data: the setting that names what they were measured on. heading: in place of RUN/STAGE.
    """
    for value, figures in models.items():
        folder = Path(model_folder(context, value))
        if not figures or not _own(context, folder):
            continue
        try:
            title = heading or f"{context.run_folder.name}/{context.name}"
            add_figures(folder, title, about, figures, called(data))
        except OSError as error:
            context.report("model card", [f"{folder / NAME} was not written: {error.strerror}"])


def add_policies(
    context: StageContext,
    names: Mapping[str, str],
    results: Sequence[PolicySummary],
    costs: Mapping[str, Mapping[str, Any]],
    disclosed: Mapping[str, Any],
    how: str,
    found: Sequence[benchmarks.Figure] = (),
) -> None:
    """Adds the figures of an evaluation to the cards of its models.

    Args:
        names: name in the table -> model. disclosed: `evaluation` of the summary. how: the responses were sampled.
        found: figures of benchmark files.
    """
    alarms = "".join(f" Alarm: {line.removeprefix('! alarm: ')}." for line in disclosed["alarms"])
    looked = f"{disclosed['selection']['models']:,} models were looked at on these prompts."
    if disclosed["part"] == "report":
        looked = "No other models were looked at on these prompts, in all evaluations of the folder of runs."
    prompts = (
        f"On {plural(disclosed['prompts'], 'prompt')}, {how}; 95% intervals over prompts. {looked}" if results else ""
    )
    files = [f"{one['name']}: {plural(one['items'], 'item')}." for one in disclosed["benchmarks"]]
    about = " ".join(part for part in (prompts, *files) if part)
    figures = {model: of_benchmarks(found, name) for name, model in names.items()}
    for r in results:
        figures[names[r.name]] = [*of_policy(r), *figures[names[r.name]], *cost_figures(costs[r.name])]
    data = str(disclosed["prompts_source"]) or ", ".join(one["name"] for one in disclosed["benchmarks"])
    add_to_cards(context, figures, f"{about}{alarms}", data)


def _own(context: StageContext, model: Path) -> bool:
    """True for the model of a training stage below the folder of runs: cards of other models are left alone."""
    runs = context.run_folder.parent.resolve()
    trained = (model / NAME).is_file() and (model.parent / "metrics.jsonl").exists()
    return trained and model.resolve().is_relative_to(runs)
