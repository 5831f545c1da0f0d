"""The stage `infer`: samples prior * exp(r / beta) without training, so that samplers stand beside trained models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from tiltyard.errors import ConfigError
from tiltyard.files import read_json, write_json
from tiltyard.inputs.contexts import check_reading
from tiltyard.inputs.files import prompts_of
from tiltyard.inputs.scores import WORDS, Reward, ScoreSettings
from tiltyard.inputs.settings import STOP, PromptReading, StopStrings
from tiltyard.inputs.workspace import model_folder
from tiltyard.models.load import load_language_model
from tiltyard.posterior.frontier import SampledPoint
from tiltyard.posterior.target import Prior, exp, score
from tiltyard.records import LAST_BITS
from tiltyard.report.infer_tables import report_lines
from tiltyard.runs import StageReader
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import check_prompts, highest_score
from tiltyard.stages.backend import keeps_backend, report_model, settle
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.infer_rows import LEARN, Asked, check_sampler, digest, sample_rows
from tiltyard.stages.rewards import Rewards, sources
from tiltyard.stats.intervals import Estimate

NUMBERS = "infer.json"
OWN = ("candidates", "most", "particles", "every", "score_bound", "twist")  # settings of samplers


class InferSettings(PromptReading):
    model: Annotated[str, Field(description="the model that is sampled, the prior: a stage, a folder or a hub name")]
    prompts: Annotated[str, Field(description="prompts: a file, stage/file or hub name")]
    sampler: Annotated[str, Field(description="best_of_n, smc, ...: docs/infer.md")]
    reward: Annotated[
        Reward, Field(description="reward model, function, address, rule or weighted sum that scores responses")
    ]
    beta: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="of the target; best_of_n and best_of_poisson need none"),
    ] = None
    samples_per_prompt: Annotated[int, Field(gt=0, description="responses to each prompt")] = 1
    candidates: Annotated[int | None, Field(gt=0, description="sampled for each response; empty: the sampler's")] = None
    most: Annotated[int | None, Field(gt=0, description="candidates to a prompt at most; of smc: for bounds")] = None
    particles: Annotated[int | None, Field(gt=0, description="of SMC, to a prompt; empty: the sampler's")] = None
    every: Annotated[int | None, Field(ge=0, description="of smc: tokens between two scorings")] = None
    score_bound: Annotated[
        float | None, Field(description="the highest possible reward; empty: what the reward declares")
    ] = None
    twist: Annotated[str, Field(description="of twisted_smc: a stage ppo, its value model, or learn")] = ""
    temperature: Annotated[float, Field(gt=0, description="of the model: its distribution is that at it")] = 1.0
    max_tokens: Annotated[int, Field(gt=0, description="tokens of a response")] = 32
    stop: Annotated[StopStrings, Field(description=STOP)] = ()
    seed: Annotated[int, Field(ge=0, description="of sampling and of the intervals")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"

    @model_validator(mode="after")
    def _known(self) -> InferSettings:
        check_sampler(self.sampler, self.beta, "infer.sampler")
        return self


def run(context: StageContext, settings: InferSettings) -> dict[str, Any]:
    """Samples; writes responses.jsonl, a row a prompt, and infer.json, the report."""
    load: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
    scoring = ScoreSettings(reward=settings.reward)
    for line in check_reading(context, settings.model, sources(scoring), settings.max_prompt, settings.max_tokens):
        context.report("context", [line])
    folder = model_folder(context, settings.model)
    model = load_language_model(folder, **load)
    settle(context, model)
    report_model(context, "model", model, samples=True)
    prompts = prompts_of(context, settings.prompts, model.chat, settings, settings.seed)
    scorer = Rewards(context, scoring, **load).scorer(model.chat)
    check_prompts(scorer, prompts)
    sampling = SampleSettings(settings.temperature, max_tokens=settings.max_tokens, stop=settings.stop)
    asked = Asked(
        settings.sampler,
        settings.beta,
        settings.samples_per_prompt,
        settings.seed,
        sampling,
        {key: getattr(settings, key) for key in OWN} | {"twist": _twist(context, settings.twist)},
        {"model": str(folder), "reward": repr(settings.reward)},
        **load,
    )
    target = Prior(model, settings.temperature) * exp(score(scorer) / asked.strength)
    path = context.folder / "responses.jsonl"
    _, report = sample_rows(target, prompts, prompts, asked, highest_score(scorer), path, context.report)
    for line in report_lines(report):
        context.console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    same = {"max_tokens": settings.max_tokens, "temperature": settings.temperature, "prompts": digest(prompts)}
    write_json(context.folder / NUMBERS, {"report": report.to_dict(), "same": same, "beta": settings.beta})
    wanted = {"responses": report.given, "tokens": report.tokens, "seconds": report.seconds, "ess": report.ess}
    values = {key: getattr(report, key) for key in ("reward", "kl_to_prior", "kl", "tv", "log_z")}
    return {**wanted, **{key: None if value is None else value.value for key, value in values.items()}}


def _twist(context: StageContext, twist: str) -> str:
    if twist in ("", LEARN):
        return twist
    return str(context.resolve(twist, want=""))


def sampled_point(name: str, reader: StageReader, same: dict[str, Any]) -> SampledPoint:
    """The reward and KL that a stage `infer` reported.

    Args:
        same: max_tokens, temperature and digest of the prompts that its responses must share with others.

    Raises:
        ConfigError: a stage of another kind, of other prompts or sampling, or one without a KL.
    """
    path = reader.folder / NUMBERS
    body = read_json(path) if path.exists() else None
    if body is None:
        raise ConfigError(
            "a sampler on the frontier is a stage `infer`", where=str(reader.folder), got="a stage without infer.json"
        )
    if body["same"] != same:
        differ = [key for key in same if body["same"].get(key) != same[key]]
        raise ConfigError(
            "this sampler's responses cannot stand beside the models': they are of other prompts or lengths",
            where=str(reader.folder),
            got=", ".join(f"{key} {body['same'].get(key)}" for key in differ),
            expected=", ".join(f"{key} {same[key]}" for key in differ),
            fix="give both stages the same prompts, limit, limit_by, seed, max_tokens and temperature",
        )
    report = body["report"]
    values = [report[key] for key in ("reward", "kl_to_prior")]
    if any(value is None or not np.isfinite(value["value"]) for value in values):
        raise ConfigError(
            "this sampler reported no KL to the model", where=str(reader.folder), fix="leave it out of `samplers`"
        )
    reward, kl = (Estimate(**value) for value in values)
    return SampledPoint(name, reward, kl, bool(report["at_most"]))


register(
    Stage(
        "infer",
        keeps_backend(run),
        InferSettings,
        "Samples the optimum prior * exp(r/beta) without training: best-of-N, rejection, SMC, ...; a report.",
        refers=("model", "prompts", "reward", "twist"),
        words=(*WORDS, LEARN),
    )
)
