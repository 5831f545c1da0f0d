"""The stage `gap`: how far each model is from pi* = prior exp(r / beta) / Z, with intervals, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from tiltyard.errors import ConfigError
from tiltyard.evaluation.gap import Gap, gap_of
from tiltyard.files import atomic_write, write_json
from tiltyard.inputs.contexts import check_reading
from tiltyard.inputs.files import prompts_of
from tiltyard.inputs.scores import WORDS, Reward, ScoreSettings
from tiltyard.inputs.settings import STOP, BadRowsSetting, LimitBySetting, StopStrings
from tiltyard.inputs.workspace import model_folder
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.posterior.estimates import Samples, upper_bound
from tiltyard.posterior.frontier import best_of_n, optimal_curve
from tiltyard.posterior.measure import PriorSamples, check_comparable, measure_policy, measure_prior
from tiltyard.posterior.target import Prior, exp, score
from tiltyard.records import LAST_BITS, Settings
from tiltyard.report.gap_tables import frontier_png, print_gaps, refusal_lines
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import check_prompts
from tiltyard.stages.backend import report_model
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.evaluate import named_models
from tiltyard.stages.rewards import Rewards, sources
from tiltyard.training.log import Tally
from tiltyard.types import Group

STEPS = 2.0 ** (np.arange(-16, 17) / 4)  # betas of the frontier's curve, in multiples of the target's
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # N of best-of-N
SECONDS = 10.0  # between two lines of progress
PRIOR = "prior"


class GapSettings(Settings):
    models: Annotated[
        list[str] | dict[str, str],
        Field(min_length=1, description="stages, folders or hub names in table order; {name: model} to name them"),
    ]
    prompts: Annotated[str, Field(description="held-out prompts")]
    prior: Annotated[str, Field(description="the model that KL is measured to: the reference of training")]
    reward: Annotated[
        Reward, Field(description="reward model, function, address, rule or weighted sum that scores responses")
    ]
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False, description="of the target prior * exp(reward / beta)")]
    samples_per_prompt: Annotated[
        int, Field(ge=10, description="responses to each prompt, of every model and of the prior")
    ] = 64
    temperature: Annotated[
        float, Field(gt=0, description="of the prior and of all models: their distributions are those at it")
    ] = 1.0
    cut: Annotated[
        Literal["outcome", "ended"],
        Field(
            description="a response that max_tokens cuts is an outcome of its own, or all distributions are given "
            "that responses end"
        ),
    ] = "outcome"
    score_bound: Annotated[
        float | None,
        Field(
            description="the highest possible reward, if there is one: gives exact samples of pi* and an upper bound"
        ),
    ] = None
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="number of prompts that are used; 0: all")] = 0
    limit_by: LimitBySetting = "first"
    max_prompt: Annotated[int, Field(ge=1, description="tokens of a prompt")] = 256
    too_long: Annotated[Literal["drop", "truncate"], Field(description="longer prompts")] = "drop"
    bad_rows: BadRowsSetting = "error"
    max_tokens: Annotated[int, Field(gt=0, description="tokens of a response")] = 32
    stop: Annotated[StopStrings, Field(description=STOP)] = ()
    seed: Annotated[int, Field(ge=0, description="of sampling and of the intervals")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"


def run(context: StageContext, settings: GapSettings) -> dict[str, Any]:
    """Measures every model; writes gap.json, frontier.png and responses.jsonl."""
    names = named_models(settings.models)
    scoring = ScoreSettings(reward=settings.reward)
    if PRIOR in names:
        raise ConfigError("this name is the prior's", where="gap.models", got=PRIOR, fix="name the model otherwise")
    load: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
    prior_folder = model_folder(context, settings.prior)
    model = load_language_model(prior_folder, **load)
    report_model(context, PRIOR, model, samples=True)
    folders = {name: model_folder(context, value) for name, value in names.items()}
    policies = {  # all of them before the first sample: one that cannot be used is found at once
        name: _policy(context, name, load_language_model(folder, **load), model)
        for name, folder in folders.items()
        if folder != prior_folder
    }
    for name in names:
        sizes = (settings.max_prompt, settings.max_tokens)
        for line in check_reading(context, names[name], sources(scoring), *sizes):
            context.report(name, [line])
    prompts = prompts_of(context, settings.prompts, model.chat, settings, settings.seed)
    scorer = Rewards(context, scoring, **load).scorer(model.chat)
    check_prompts(scorer, prompts)
    target = Prior(model, settings.temperature) * exp(score(scorer) / settings.beta)
    sampling = SampleSettings(settings.temperature, max_tokens=settings.max_tokens, stop=settings.stop)
    n = settings.samples_per_prompt
    prior = measure_prior(
        target,
        prompts,
        n,
        sampling,
        cut=settings.cut,
        seed=settings.seed,
        progress=_progress(context, PRIOR, len(prompts) * n),
    )
    upper = _upper(settings, prior)
    measured: dict[str, tuple[list[Group], Samples]] = {PRIOR: (prior.groups, prior.as_policy())}
    for key, (name, policy) in enumerate(policies.items(), 1):
        progress = _progress(context, name, len(prompts) * n)
        measured[name] = measure_policy(
            policy, target, prior, n, sampling, seed=settings.seed, key=key, progress=progress
        )
    gaps = [
        gap_of(name, groups, samples, settings.beta, upper_P=upper, seed=settings.seed)
        for name, (groups, samples) in measured.items()
    ]
    return _written(context, settings, gaps, prior, measured, None if upper is None else float(np.mean(upper)))


def _policy(context: StageContext, name: str, policy: LanguageModel, prior: LanguageModel) -> LanguageModel:
    report_model(context, name, policy, samples=True)
    check_comparable(policy, prior)
    return policy


def _progress(context: StageContext, name: str, total: int) -> Any:
    tally = Tally(total, lambda line: context.report(name, [f"{line} responses"]), every=SECONDS)
    context.report(name, [f"sampling {total:,} responses"])
    return tally.add


def _upper(settings: GapSettings, prior: PriorSamples) -> np.ndarray | None:
    if settings.score_bound is None or settings.cut == "ended":
        return None
    uniform = np.random.default_rng(settings.seed).random(prior.log_factor.shape)
    return upper_bound(prior.log_factor, settings.score_bound / settings.beta, uniform)


def conventions(settings: GapSettings, prompts: int) -> str:
    """A line about what the numbers mean: the distributions, the cut, the sizes."""
    cut = "a response cut at the limit is an outcome" if settings.cut == "outcome" else "given that responses end"
    return (
        f"beta {settings.beta:g}, temperature {settings.temperature:g}, up to {settings.max_tokens} tokens ({cut}); "
        f"{prompts:,} prompts, {settings.samples_per_prompt} samples a model; KLs, log Z and entropy in nats a response"
    )


def _written(
    context: StageContext,
    settings: GapSettings,
    gaps: Sequence[Gap],
    prior: PriorSamples,
    measured: dict[str, tuple[list[Group], Samples]],
    upper: float | None,
) -> dict[str, Any]:
    note = conventions(settings, len(prior.groups))
    print_gaps(gaps, context.console)
    if upper is not None:
        context.console.print(f"log Z is at most {upper:.2f} on average, by exact samples of pi*", highlight=False)
    context.console.print(note, markup=False, highlight=False, soft_wrap=True)
    reward_PM = prior.log_factor * settings.beta
    if prior.ended is None:
        curve = optimal_curve(reward_PM, [settings.beta * float(s) for s in STEPS[::-1]])
        best = best_of_n(reward_PM, [n for n in COUNTS if n <= reward_PM.shape[-1] // 2])
    else:
        curve, best = [], []  # both are of the prior's whole distribution
    picture = frontier_png(context.folder / "frontier.png", gaps, curve, best, settings.beta, note)
    body = {
        "conventions": note,
        "upper_log_z": upper,
        "models": {gap.name: gap.to_dict() for gap in gaps},
        "refusals": refusal_lines(gaps),
        "optimum": [point._asdict() for point in curve],
        "best_of_n": [point._asdict() for point in best],
    }
    path = context.folder / "gap.json"
    write_json(path, body)
    _write_responses(context, settings, measured)
    for name, file in (("frontier", picture), ("numbers", path)):
        context.console.print(f"{name}: {file}", markup=False, highlight=False, soft_wrap=True)
    found = {f"gap_{gap.name}": gap.estimates["gap"].value for gap in gaps if "gap" in gap.estimates}
    return {**found, "refused": [gap.name for gap in gaps if not gap.support.ok], "gap": str(path)}


def _write_responses(
    context: StageContext, settings: GapSettings, measured: dict[str, tuple[list[Group], Samples]]
) -> None:
    """One line a response: text, reward, and its log-probs under the model and the prior."""
    with atomic_write(context.folder / "responses.jsonl") as file:
        for name, (groups, samples) in measured.items():
            for i, group in enumerate(groups):
                for k, response in enumerate(group.responses):
                    row = {
                        "model": name,
                        "prompt": group.prompt.id,
                        "text": response.text,
                        "finish": response.finish,
                        "reward": float(samples.log_factor[i, k]) * settings.beta,
                        "log_model": float(samples.log_policy[i, k]),
                        "log_prior": float(samples.log_prior[i, k]),
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


register(
    Stage(
        "gap",
        run,
        GapSettings,
        "Distance of models to the optimum pi* = prior exp(r/beta)/Z: KLs, TV, log Z, intervals, a picture.",
        refers=("models", "prompts", "prior", "reward"),
        words=WORDS,
    )
)
