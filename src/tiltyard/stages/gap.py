"""The stage `gap`: how far each model is from pi* = prior exp(r / beta) / Z, with intervals, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from tiltyard.errors import ConfigError
from tiltyard.evaluation.along import Course, best_of_n_course, course_of
from tiltyard.evaluation.gap import Gap, gap_of, gold_of
from tiltyard.files import write_json
from tiltyard.inputs.contexts import check_reading
from tiltyard.inputs.files import prompts_of
from tiltyard.inputs.scores import WORDS, Reward, ScoreSettings
from tiltyard.inputs.settings import STOP, PromptReading, StopStrings
from tiltyard.inputs.workspace import model_folder, stage_folder
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.numerals import verb
from tiltyard.posterior.bounds import UpperBound, upper_bound
from tiltyard.posterior.estimates import Samples
from tiltyard.posterior.frontier import SampledPoint, best_of_n, optimal_curve
from tiltyard.posterior.measure import PriorSamples, check_comparable, measure_policy, measure_prior
from tiltyard.posterior.target import Prior, Target, exp, score
from tiltyard.records import LAST_BITS
from tiltyard.report.along_plots import (
    Kept,
    collapse_lines,
    collapse_png,
    kept_lines,
    overoptimisation_lines,
    overoptimisation_png,
)
from tiltyard.report.gap_tables import bound_lines, frontier_png, print_gaps, refusal_lines, sampler_lines
from tiltyard.runs import StageReader
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import Scorer, check_prompts, highest_score
from tiltyard.stages.backend import keeps_backend, report_model, settle
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.gap_files import ResponseFile
from tiltyard.stages.infer import sampled_point
from tiltyard.stages.infer_rows import digest
from tiltyard.stages.model_names import named_models
from tiltyard.stages.rewards import Rewards, sources
from tiltyard.training.log import Tally
from tiltyard.types import Group, Prompt

STEPS = 2.0 ** (np.arange(-16, 17) / 4)  # betas of the frontier's curve, in multiples of the target's
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # N of best-of-N
SECONDS = 10.0  # between two lines of progress
PRIOR = "prior"


class GapSettings(PromptReading):
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
            description="the highest possible reward; empty: what the reward declares (gold, rules, a function's "
            "`highest`). With it come exact samples of pi* and an upper bound of log Z"
        ),
    ] = None
    gold: Annotated[
        Reward,
        Field(
            description="what the reward stands for, e.g. gold or a better reward model: scores the same responses, "
            "and shows over-optimisation; empty: none"
        ),
    ] = ""
    along: Annotated[
        list[str],
        Field(
            description="stages that sampled at each step (ppo, rloo, ...): gold, KL and collapse by step, "
            "and the distances of the models that they kept (models_every)"
        ),
    ] = []
    samplers: Annotated[
        list[str], Field(description="stages `infer` of the same prior, prompts and lengths, drawn on the frontier")
    ] = []
    max_tokens: Annotated[int, Field(gt=0, description="tokens of a response")] = 32
    stop: Annotated[StopStrings, Field(description=STOP)] = ()
    seed: Annotated[int, Field(ge=0, description="of sampling and of the intervals")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"


def run(context: StageContext, settings: GapSettings) -> dict[str, Any]:
    """Measures every model; writes gap.json, frontier.png and responses.jsonl."""
    names = named_models(settings.models, "gap.models")
    scoring = ScoreSettings(reward=settings.reward)
    if PRIOR in names:
        raise ConfigError("this name is the prior's", where="gap.models", got=PRIOR, fix="name the model otherwise")
    load: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
    prior_folder = model_folder(context, settings.prior)
    model = load_language_model(prior_folder, **load)
    settle(context, model)
    report_model(context, PRIOR, model, samples=True)
    folders = {name: model_folder(context, value) for name, value in names.items()}
    folders = {name: folder for name, folder in folders.items() if folder != prior_folder}
    for name, folder in folders.items():  # before the first sample, so that one that cannot be used is found at once
        _policy(context, name, load_language_model(folder, **load), model)
        for line in check_reading(context, names[name], sources(scoring), settings.max_prompt, settings.max_tokens):
            context.report(name, [line])
    prompts = prompts_of(context, settings.prompts, model.chat, settings, settings.seed)
    scorer = Rewards(context, scoring, **load).scorer(model.chat)
    gold = _gold(context, settings, model, prompts, load)
    check_prompts(scorer, prompts)
    stages = {Path(name).name: StageReader(stage_folder(context, name)) for name in settings.along}
    kept = {name: {step: f"{name}@{step}" for step in stage.kept_models} for name, stage in stages.items()}
    for name, stage in stages.items():
        folders |= {kept[name][step]: folder for step, folder in stage.kept_models.items()}
    same = {"max_tokens": settings.max_tokens, "temperature": settings.temperature, "prompts": digest(prompts)}
    readers = {Path(name).name: StageReader(stage_folder(context, name)) for name in settings.samplers}
    sampled = [sampled_point(name, reader, same) for name, reader in readers.items()]
    along = [course_of(name, stage, gold, seed=settings.seed) for name, stage in stages.items()]
    target = Prior(model, settings.temperature) * exp(score(scorer) / settings.beta)
    sampling = SampleSettings(settings.temperature, max_tokens=settings.max_tokens, stop=settings.stop)
    file = ResponseFile(context.folder, prompts, settings.beta)
    n = settings.samples_per_prompt

    def how(name: str) -> dict[str, Any]:
        progress = _progress(context, name, len(prompts) * n, file.done(name) * n)
        return {"seed": settings.seed, "keep": file.of(name), "progress": progress}

    prior = measure_prior(target, prompts, n, sampling, cut=settings.cut, **how(PRIOR))
    upper = _upper(context, settings, target, prior, sampling, scorer)

    def summary(name: str, groups: list[Group], samples: Samples) -> Gap:
        gold_PN = None if gold is None else gold_of(gold, groups)
        return gap_of(name, groups, samples, settings.beta, upper=upper, gold_PN=gold_PN, seed=settings.seed)

    gaps = [summary(PRIOR, prior.groups, prior.as_policy())]
    for key, (name, folder) in enumerate(folders.items(), 1):
        policy = load_language_model(folder, **load)
        gaps.append(summary(name, *measure_policy(policy, target, prior, n, sampling, key=key, **how(name))))
    file.journal.close()
    gold_PM = None if gold is None else gold_of(gold, prior.groups)
    by_name = {gap.name: gap for gap in gaps}
    courses = {name: [(step, by_name[key]) for step, key in models.items()] for name, models in kept.items() if models}
    return _written(context, settings, gaps, prior, upper, gold_PM, along, sampled, courses)


def _policy(context: StageContext, name: str, policy: LanguageModel, prior: LanguageModel) -> None:
    report_model(context, name, policy, samples=True)
    check_comparable(policy, prior)


def _gold(
    context: StageContext, settings: GapSettings, model: LanguageModel, prompts: list[Prompt], load: dict[str, Any]
) -> Scorer | None:
    if not settings.gold:
        return None
    gold = Rewards(context, ScoreSettings(reward=settings.gold), **load).scorer(model.chat)
    check_prompts(gold, prompts)
    return gold


def _progress(context: StageContext, name: str, total: int, done: int) -> Any:
    tally = Tally(total, lambda line: context.report(name, [f"{line} responses"]), every=SECONDS)
    before = f"; {done:,} {verb(done, 'is', 'are')} there" if done else ""
    context.report(name, [f"sampling {total:,} responses{before}"])
    return tally.add


def _upper(
    context: StageContext,
    settings: GapSettings,
    target: Target,
    prior: PriorSamples,
    sampling: SampleSettings,
    scorer: Scorer,
) -> UpperBound | None:
    bound = highest_score(scorer) if settings.score_bound is None else settings.score_bound
    if bound is None or settings.cut == "ended":
        return None
    context.report("exact samples", [f"of pi*, by rejection: no reward is above {bound:g}"])
    return upper_bound(target, prior, bound / settings.beta, sampling, seed=settings.seed)


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
    upper: UpperBound | None,
    gold_PM: np.ndarray | None,
    along: Sequence[Course],
    sampled: Sequence[SampledPoint],
    kept: Kept,
) -> dict[str, Any]:
    note = conventions(settings, len(prior.groups))
    reward_PM = prior.log_factor * settings.beta
    counts = [n for n in COUNTS if n <= reward_PM.shape[-1] // 2] if prior.ended is None else []
    # without samples of the prior's whole distribution there is neither curve nor best-of-N
    curve = optimal_curve(reward_PM, [settings.beta * float(s) for s in STEPS[::-1]]) if prior.ended is None else []
    best = best_of_n(reward_PM, counts)
    chosen = None if gold_PM is None else best_of_n_course(reward_PM, gold_PM, counts, seed=settings.seed)
    print_gaps(gaps, context.console)
    lines = [
        *sampler_lines(sampled),
        *bound_lines(gaps[0], upper),
        *overoptimisation_lines(chosen, along),
        *collapse_lines(along),
        *kept_lines(kept),
        note,
    ]
    for line in lines:
        context.console.print(line, markup=False, highlight=False, soft_wrap=True)
    path = context.folder / "frontier.png"
    files = {"frontier": frontier_png(path, gaps, curve, best, settings.beta, note, sampled)}
    if chosen is not None:
        files["over-optimisation"] = overoptimisation_png(context.folder / "overoptimisation.png", chosen, along, gaps)
    if along:
        files["collapse"] = collapse_png(context.folder / "collapse.png", along, kept)
    body = {
        "conventions": note,
        "upper_log_z": None if upper is None else float(np.nanmean(upper.log_z)),
        "exact_samples": None if upper is None else {"accepted": upper.exact, "of": upper.tried},
        "models": {gap.name: gap.to_dict() for gap in gaps},
        "refusals": refusal_lines(gaps),
        "optimum": [point._asdict() for point in curve],
        "best_of_n": [point._asdict() for point in best],
        "overoptimisation": None if chosen is None else chosen.to_dict(),
        "kept": {name: {step: gap.name for step, gap in models} for name, models in kept.items()},
        "samplers": {point.name: point.to_dict() for point in sampled},
        "along": [course.to_dict() for course in along],
    }
    files["numbers"] = context.folder / "gap.json"
    write_json(files["numbers"], body)
    for name, path in files.items():
        context.console.print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)
    found = {gap.name: gap.estimates["gap"].value for gap in gaps if "gap" in gap.estimates}
    refused = [gap.name for gap in gaps if not gap.support.ok]
    return {"gaps": found, "refused": refused, "files": {name: str(path) for name, path in files.items()}}


register(
    Stage(
        "gap",
        keeps_backend(run),
        GapSettings,
        "Distance of models to the optimum pi* = prior exp(r/beta)/Z: KLs, TV, log Z, intervals, a picture.",
        refers=("models", "prompts", "prior", "reward", "gold", "along", "samplers"),
        words=WORDS,
        version="2",
    )
)
