"""The stage `reward_eval`: evaluates a reward model on labelled responses; also `tiltyard eval --reward MODEL DATA`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tiltyard.data import TooLong
from tiltyard.errors import DataError, ModelError
from tiltyard.evaluation.reward_models import RewardReport, evaluate_pairs
from tiltyard.evaluation.scored_pairs import ScoredPair, ranking_taus, scored_pairs
from tiltyard.files import atomic_write, write_json
from tiltyard.inputs.files import groups_of
from tiltyard.inputs.measure import scores_of
from tiltyard.inputs.settings import BadRowsSetting, LimitBySetting
from tiltyard.inputs.workspace import model_folder
from tiltyard.models.language import ScalarModel
from tiltyard.models.load import load_reward_model
from tiltyard.records import EXECUTION, LAST_BITS
from tiltyard.report.card_figures import of_reward_model
from tiltyard.report.reward_plots import reward_png
from tiltyard.report.reward_tables import findings, print_reward_report
from tiltyard.scoring.parts import LabelChoice
from tiltyard.scoring.reward_model import require_template
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.measured import add_to_cards
from tiltyard.types import MICRO_TOKENS, Group


class RewardDataSettings(LabelChoice):
    model: Annotated[str, Field(description="the reward model: an earlier stage, a folder or a hub name")]
    data: Annotated[str, Field(description="labelled comparisons: a file, stage/file or hub name")]
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="number of rows that are used; 0: all")] = 0
    limit_by: LimitBySetting = "first"
    max_length: Annotated[int, Field(ge=4, description="tokens of prompt and response together")] = 2048
    too_long: Annotated[TooLong, Field(description="drop longer rows, or cut them (prompt left, response right)")] = (
        "drop"
    )
    bad_rows: BadRowsSetting = "error"
    seed: Annotated[int, Field(ge=0, description="of the rows that `limit_by: sample` draws")] = 0
    tokens_per_microbatch: Annotated[
        int, Field(gt=0, description="tokens scored at once; bounds memory only"), LAST_BITS
    ] = MICRO_TOKENS
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"
    trust_remote_code: Annotated[bool, Field(description="run code that comes with a hub model"), EXECUTION] = False


class RewardEvalSettings(RewardDataSettings):
    pairs: Annotated[bool, Field(description="write pairs.jsonl: the scores of every pair")] = False


def run(context: StageContext, settings: RewardEvalSettings) -> dict[str, Any]:
    """Scores every response; writes reward_report.json, reward_report.png and, with `pairs`, pairs.jsonl."""
    model = trained_reward_model(context, settings)
    if not model.packed:
        context.console.print(f"  model: runs padded ({model.padded_reason})", markup=False, highlight=False)
    groups = groups_of(context, "data", settings.data, "comparisons", model.chat, settings, settings.seed)
    if any(group.prompt.messages for group in groups):
        require_template(model)
    cut = check_pairs(groups, settings)
    scores = scores_of(model, groups, settings.tokens_per_microbatch)
    pairs = scored_pairs(groups, scores)
    report = evaluate_pairs(pairs, ranking_taus(groups, scores))
    print_reward_report(report, context.console)
    body = {"model": settings.model, "data": settings.data, "groups": len(groups), "answers_cut": cut}
    path = context.folder / "reward_report.json"
    write_json(path, {**body, "findings": findings(report), **report.to_dict()})
    picture = reward_png(context.folder / "reward_report.png", report, title=_title(settings.model))
    figures = {settings.model: of_reward_model(report)}
    about = f"On {report.pairs:,} labelled pairs of {report.prompts:,} prompts; 95% intervals over prompts."
    add_to_cards(context, figures, about, settings.data)
    if settings.pairs:
        _write_pairs(context.folder / "pairs.jsonl", pairs)
    for name, file in (("report", path), ("picture", picture)):
        context.console.print(f"{name}: {file}", markup=False, highlight=False, soft_wrap=True)
    return {**_summary(report), "report": str(path)}


def trained_reward_model(context: StageContext, settings: RewardDataSettings) -> ScalarModel:
    """Loads the reward model.

    Raises:
        ModelError: a pairwise ranker, or a score head of zeros (a language model loaded as a reward model; the start of
            training).
    """
    folder = model_folder(context, settings.model)
    model = load_reward_model(
        folder,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        labels=settings.weights(),
    )
    if model.compares:
        raise ModelError(
            "a ranker compares two responses and has no score of one",
            where=settings.model,
            expected="a model of the stage `reward`, or another sequence classifier with one output",
            fix="name a reward model",
        )
    return model


def check_pairs(groups: Sequence[Group], settings: RewardDataSettings) -> int:
    """Returns the number of truncated responses; raises DataError if no row has two responses."""
    if not any(len(group.responses) > 1 for group in groups):
        raise DataError(
            "there is no pair of responses to compare",
            where=settings.data,
            got=f"{len(groups):,} rows of one response",
            expected="comparisons: prompt, chosen and rejected; or prompt, responses and ranks",
            fix="a reward model is evaluated on preferences; `tiltyard check DATA` reports what a file contains",
        )
    return sum(r.finish == "length" for g in groups for r in g.responses)


def _summary(report: RewardReport) -> dict[str, Any]:
    """Returns the figures of the stage's result."""
    return {
        "pairs": report.pairs,
        "prompts": report.prompts,
        "tied_in_labels": report.tied_in_labels,
        "tied_in_score": report.tied_in_score,
        "accuracy": report.accuracy.value,
        "accuracy_ci": report.accuracy.ci,
        "log_loss": report.log_loss.value,
        "calibration_error": report.ece,
        "longer_wins": report.longer_wins.value,
        "picks_longer": report.picks_longer.value,
        "length_spearman": report.length_spearman,
        **({} if report.tau is None else {"tau": report.tau.value}),
        **{f"mean_over_{name}": breakdown.mean for name, breakdown in report.by_field.items()},
    }


def _write_pairs(path: Path, pairs: list[ScoredPair]) -> None:
    """Writes one line for each pair, including ties; no text, so that the file can be shared."""
    with atomic_write(path) as file:
        for pair in pairs:
            row = pair._asdict() | {"labels": dict(pair.labels)}
            row["margin"] = None if math.isnan(pair.margin) else pair.margin
            del row["prompt"]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _title(model: str) -> str:
    """Returns the last two parts of a model's path, without `model`."""
    parts = [p for p in Path(model).parts if p not in ("model", "/")]
    return "/".join(parts[-2:]) or model


register(
    Stage(
        "reward_eval",
        run,
        RewardEvalSettings,
        "A reward model on labelled answers: accuracy, calibration, length bias, by source; tables and a picture.",
        refers=("model", "data"),
    )
)
