"""`tiltyard sample --infer`: samples the posterior of a target for prompts of the command line.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiltyard.cli.conversation import encoded, loaded_model
from tiltyard.cli.output import console_for
from tiltyard.config import parse_settings
from tiltyard.errors import ConfigError
from tiltyard.inputs.scores import ScoreSettings
from tiltyard.models.backbone import DType
from tiltyard.posterior import Prior, exp, score
from tiltyard.posterior.infer.report import Report
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import check_prompts, highest_score
from tiltyard.stages.base import StageContext
from tiltyard.stages.infer_rows import Asked, check_sampler, sample_rows
from tiltyard.stages.rewards import Rewards
from tiltyard.types import Group, Prompt, Response
from tiltyard.yaml_values import parse_value


def infer(
    model: str | Path,
    placed: Sequence[tuple[str, Prompt]],
    *,
    name: str,
    reward: str,
    beta: float | None,
    settings: Mapping[str, Any],
    n: int,
    sampling: SampleSettings,
    seed: int,
    device: str,
    dtype: DType,
    out: Path | None = None,
) -> tuple[list[dict[str, Any]], Report]:
    """Samples the posterior of every prompt.

    Args:
        placed: (where it comes from, conversation). name: of the sampler. reward: as in training.
        settings: of the sampler; None: its default; `score_bound` in units of the reward.
        out: a file of one row a prompt, which is appended to as they finish; what it holds already is not done again.

    Returns:
        One row a prompt, with its responses and the numbers of the sampler, and the report over all of them.

    Raises:
        ConfigError: a sampler, setting, reward or sampling distribution that cannot be used.
    """
    check_sampler(name, beta, "sample --infer")
    if not reward:
        raise ConfigError(
            "a posterior needs a reward",
            where="sample --infer",
            expected="--reward REWARD_MODEL, gold, file.py:function or '{from: rule, max_words: 40}'",
            fix="add --reward",
        )
    prior = Prior(loaded_model(model, device, dtype), sampling.temperature)
    prompts = encoded(prior.model, placed)
    context = StageContext("sample", "sample", Path(), Path(), console=console_for(True))
    scoring = parse_settings(ScoreSettings, {"reward": parse_value(reward, "--reward")}, "sample --infer")
    scorer = Rewards(context, scoring, device=device, dtype=dtype).scorer(prior.model.chat)
    check_prompts(scorer, prompts)
    key = {"model": str(model), "reward": reward}
    asked = Asked(name, beta, n, seed, sampling, settings, key, device, dtype)
    target = prior * exp(score(scorer) / asked.strength)
    shown = [prompt for _, prompt in placed]
    return sample_rows(target, prompts, shown, asked, highest_score(scorer), out, context.report)


def groups_of(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The responses of rows, for printing: texts and the reason that each ended."""
    return [
        Group(Prompt(), tuple(Response(text=r["text"], finish=r["finish"]) for r in row["responses"])) for row in rows
    ]
