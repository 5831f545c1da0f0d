"""The stage `reward_stability`: scores of a reward model under other wordings, spellings and forms of the prompt."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tiltyard.data.perturb import NAMES
from tiltyard.evaluation.stability import Stability, perturbed, stability, wordings
from tiltyard.files import write_json
from tiltyard.inputs.files import groups_of
from tiltyard.report.reward_tables import print_stability
from tiltyard.scoring import RewardScorer, checked_scores
from tiltyard.scoring.reward_model import in_tokens_of, require_template
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.reward_eval import RewardDataSettings, check_pairs, trained_reward_model

Change = Literal[
    "prompt_polite",
    "prompt_greeting",
    "prompt_typo",
    "prompt_lower_case",
    "prompt_double_spaces",
    "response_lower_case",
    "response_no_full_stop",
    "response_double_spaces",
    "response_typo",
]


class StabilitySettings(RewardDataSettings):
    changes: Annotated[
        list[Change],
        Field(description="changes of the texts; besides, responses of equal rank are wordings of one answer"),
    ] = list(NAMES)  # type: ignore[arg-type]


def run(context: StageContext, settings: StabilitySettings) -> dict[str, Any]:
    """Scores the responses before and after each change; writes reward_stability.json."""
    model = trained_reward_model(context, settings)
    groups = groups_of(context, "data", settings.data, "comparisons", model.chat, settings, settings.seed)
    if any(group.prompt.messages for group in groups):
        require_template(model)
    check_pairs(groups, settings)
    scorer = RewardScorer(model, budget=settings.tokens_per_microbatch)

    def scores(changed: list[Any]) -> list[tuple[float, ...]]:
        again = [in_tokens_of(model.chat, group) for group in changed]
        return [group.scores or () for group in checked_scores(scorer, again)]

    before = scores(list(groups))
    found: list[Stability] = []
    if (worded := wordings(groups, before, seed=settings.seed)) is not None:
        found.append(worded)
    found += [
        stability(name, groups, before, scores(perturbed(groups, name)), seed=settings.seed)
        for name in settings.changes
    ]
    print_stability(found, context.console)
    rows = {row.name: row.to_dict() for row in found}
    path = context.folder / "reward_stability.json"
    write_json(path, {"model": settings.model, "data": settings.data, "groups": len(groups), "rows": rows})
    context.console.print(f"stability: {path}", markup=False, highlight=False, soft_wrap=True)
    return {"groups": len(groups), "rows": rows, "report": str(path)}


register(
    Stage(
        "reward_stability",
        run,
        StabilitySettings,
        "A reward model under other wordings, spellings and forms of the prompt: ICC and flip rate.",
        refers=("model", "data"),
    )
)
