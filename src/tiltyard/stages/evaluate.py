"""The stage `evaluate`: every model on the same held-out prompts and benchmark files; scores, intervals, tables."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tiltyard.errors import ConfigError, nearest
from tiltyard.evaluation import EvaluatedResponse, PolicySummary, summarise
from tiltyard.evaluation.divergence import kl_and_entropy
from tiltyard.evaluation.judged import total_of, values_of
from tiltyard.evaluation.outcomes import with_tests
from tiltyard.evaluation.policies import WinBy
from tiltyard.feedback import JudgeSettings
from tiltyard.files import atomic_write, write_json
from tiltyard.inputs.contexts import check_reading
from tiltyard.inputs.files import prompts_of
from tiltyard.inputs.scores import WORDS, Reward, ScoreSettings, Watched
from tiltyard.inputs.settings import STOP, PromptReading, StopStrings
from tiltyard.inputs.workspace import model_folder
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.numerals import plural, verb
from tiltyard.records import LAST_BITS
from tiltyard.report import (
    print_table,
    side_by_side,
    write_samples_markdown,
    write_summary,
)
from tiltyard.report.benchmark_tables import print_benchmarks
from tiltyard.report.comparison_plot import comparison_png
from tiltyard.report.significance import significance_lines
from tiltyard.sampling import SampleSettings, sample
from tiltyard.scoring import check_prompts
from tiltyard.scoring.reward_model import same_vocabulary
from tiltyard.stages.backend import report_model
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.costs import cost_of
from tiltyard.stages.evaluate_benchmarks import Benchmarks, Sources
from tiltyard.stages.evaluate_curves import reward_vs_kl
from tiltyard.stages.evaluate_judge import JudgedModels, judge_models
from tiltyard.stages.measured import add_policies
from tiltyard.stages.model_names import named_models, short_name
from tiltyard.stages.rewards import Rewards, named, sources
from tiltyard.stages.selection import KEYS, Part, prompts_digest, prompts_of_part, seen, selection_line, within
from tiltyard.stages.token_file import TokenFile
from tiltyard.training.log import TimeLeft
from tiltyard.types import Group
from tiltyard.world import gold
from tiltyard.world.reward import is_world_prompt


class EvaluateSettings(PromptReading, ScoreSettings):
    models: Annotated[
        list[str] | dict[str, str],
        Field(min_length=1, description="stages, folders or hub names in table order; {name: model} to name them"),
    ]
    prompts: Annotated[str, Field(description="held-out prompts; empty: benchmarks alone")] = ""
    part: Annotated[
        Part,
        Field(
            description="halves of the prompts, by the hash of each: choose models, checkpoints and settings on "
            "`choose`, report the chosen one on `report`, which is refused on prompts that an evaluation has used to "
            "look at other models"
        ),
    ] = "all"
    benchmarks: Annotated[
        Sources,
        Field(
            description="benchmark files (pairs such as HHH, multiple choice such as TruthfulQA, prompts to refuse or "
            "to answer, texts) or lmeval:TASK; {NAME: FILE} or {NAME: {from: FILE, expect: refuse}} to name them"
        ),
    ] = []
    reward: Annotated[
        Reward,
        Field(
            description="what scores responses: a reward model, a function, an address, a rule or a weighted sum, "
            "as in training; empty: nothing"
        ),
    ] = ""
    judge: Annotated[
        JudgeSettings | None,
        Field(description="an AI judge: compares with the baseline's responses in both orders, or grades (ask)"),
    ] = None
    people: Annotated[
        str,
        Field(
            description="pairs of these responses that people labelled (rows, groups, a feedback store): the judge's "
            "win rate is corrected by them"
        ),
    ] = ""
    null_prompts: Annotated[
        int,
        Field(
            ge=0,
            description="prompts on which a judge that compares also sees answers that answer nothing (a constant one, "
            "the longest to another prompt, a copy of the prompt): it should prefer none. 0: none",
        ),
    ] = 20
    monitors: Annotated[
        Watched, Field(description="further rewards, each with a column of its own; or {NAME: {from: SOURCE}}")
    ] = []
    baseline: Annotated[
        str, Field(description="model that the win rate is against; empty: `sft` if listed, else the first")
    ] = ""
    ref: Annotated[str, Field(description="KL is measured to this model; empty: the baseline")] = ""
    gold: Annotated[Literal["auto", "world", "none"], Field(description="gold scores of the embedded world")] = "auto"
    samples_per_prompt: Annotated[
        int, Field(gt=0, description="responses to each prompt; greedy decoding makes one, as all would be the same")
    ] = 2
    max_tokens: Annotated[int, Field(gt=0, description="tokens of a response")] = 128
    stop: Annotated[StopStrings, Field(description=STOP)] = ()
    temperature: Annotated[
        float, Field(ge=0, description="of sampling; KL is measured at it too. 0: greedy, without a KL")
    ] = 1.0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="likeliest tokens of this probability; 1: all. Below 1 no KL is measured")
    ] = 1.0
    top_k: Annotated[int, Field(ge=0, description="likeliest tokens; 0: all. With it no KL is measured")] = 0
    curves: Annotated[
        list[str], Field(description="RL stages whose reward against KL is plotted; empty: all listed")
    ] = []
    show: Annotated[int, Field(ge=0, description="prompts shown side by side")] = 5
    seed: Annotated[int, Field(ge=0, description="of sampling; all models get the same random numbers")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"

    @model_validator(mode="after")
    def _judged_by_people(self) -> EvaluateSettings:
        if self.people and (self.judge is None or self.judge.ask != "pair"):
            raise ValueError("people has no effect without a judge that compares: set judge, with ask: pair")
        if not self.prompts and self.part != "all":
            raise ValueError("part has no effect without prompts: set prompts")
        if not self.prompts and not self.benchmarks:
            raise ValueError("there is nothing to evaluate on: set prompts, benchmarks, or both")
        if not self.prompts and self.judge is not None and self.judge.ask == "pair":
            raise ValueError("a judge that compares has no effect without prompts: set prompts, or ask: score")
        return self


def run(context: StageContext, settings: EvaluateSettings) -> dict[str, Any]:
    """Measures the models; writes summary.json and, of prompts, samples.md, answers.jsonl and reward_vs_kl.png."""
    began = time.perf_counter()
    names = named_models(settings.models)
    baseline = _baseline_of(settings, names)
    for name, value in names.items():
        for line in check_reading(context, value, sources(settings), settings.max_prompt, settings.max_tokens):
            context.report(name, [line])
    common: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
    sampling, count = sampling_of(settings), settings.samples_per_prompt
    bench = Benchmarks(context, settings.benchmarks, sampling, count, settings.seed, **common)
    rewards = Rewards(context, settings, **common)
    judge = rewards.judge()
    sampled, responses, tokens = _every_model(context, settings, names, baseline, rewards, bench)
    judged, results = JudgedModels(), []
    if judge is not None and settings.judge is not None:
        how: dict[str, Any] = {"max_missing": settings.judge.max_missing, "people": settings.people}
        how["null_prompts"] = settings.null_prompts
        judged = judge_models(context, judge, sampled, responses, baseline, **how)
    if settings.prompts:
        results = _summaries(responses, baseline, rewards, judged=judge is not None)
        print_table(results, context.console)
    figures = bench.figures(baseline)
    disclosed = _disclosed(context, settings, names, baseline, responses, judged, bench.facts(figures))
    lines = [*significance_lines(results), *_unscored(results), *judged.lines(baseline)]
    lines += (
        [selection_line(disclosed["selection"], disclosed["prompts"], part=settings.part), _note(settings)]
        if results
        else []
    )
    _tell(context, lines)
    if settings.show and responses:
        side_by_side(responses, settings.show, context.console)
    if figures:
        print_benchmarks(figures, baseline, context.console)
        looked = [selection_line(one["selection"], one["items"], one["name"]) for one in disclosed["benchmarks"]]
        _tell(context, [*bench.notes(), *looked])
    seconds = {**context.seconds, context.name: round(time.perf_counter() - began, 3)}
    costs = {r.name: cost_of(context, names[r.name], r.distinct_2) | judged.facts(r.name) for r in results}
    for folder in (context.folder, context.run_folder):
        write_summary(folder / "summary.json", results, seconds, {"evaluation": disclosed}, costs)
    bench.write(context.folder)
    add_policies(context, names, results, costs, disclosed, f"at most {settings.max_tokens} tokens", figures)
    if results:
        _write_answers(context, settings, responses, tokens)
    if len(results) > MANY:
        facts = {r.name: {**asdict(r), **costs[r.name]} for r in results}
        plot = comparison_png(context.folder / "comparison.png", facts, title=f"{context.run_name}: methods compared")
        _tell(context, [f"methods compared: {plot}"])
    curves = reward_vs_kl(context, {short_name(c): c for c in settings.curves} or names)
    _tell(
        context, [f"reward against KL: {curves}" if curves else "", f"summary: {context.run_folder / 'summary.json'}"]
    )
    return {"summary": str(context.run_folder / "summary.json"), "models": list(names)}


def _tell(context: StageContext, lines: Iterable[str]) -> None:
    for line in filter(None, lines):
        context.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _baseline_of(settings: EvaluateSettings, names: dict[str, str]) -> str:
    baseline = settings.baseline or ("sft" if "sft" in names else next(iter(names)))
    if baseline not in names:
        raise ConfigError(
            "the baseline is not among the models",
            where="evaluate.baseline",
            got=baseline,
            fix=nearest(baseline, names),
        )
    return baseline


def _every_model(
    context: StageContext,
    settings: EvaluateSettings,
    names: dict[str, str],
    baseline: str,
    rewards: Rewards,
    bench: Benchmarks,
) -> tuple[dict[str, list[Group]], dict[str, list[EvaluatedResponse]], TokenFile]:
    """Samples and measures every model, one in memory at a time beside the reference."""
    common: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
    sampled: dict[str, list[Group]] = {}
    responses: dict[str, list[EvaluatedResponse]] = {}
    left, tokens = TimeLeft(len(names), least=1), TokenFile()
    own = settings.ref or names[baseline]
    ref = load_language_model(model_folder(context, own), **common) if settings.prompts else None
    for number, (name, value) in enumerate(names.items()):
        rest = left.after(number)
        folder = model_folder(context, value)
        model = load_language_model(folder, **common)
        report_model(context, name, model, samples=bool(settings.prompts))
        if ref is not None:
            place = ", ".join(filter(None, (f"model {number + 1} of {len(names)}", rest)))
            _tell(context, [f"  sampling {name} ({place})"])
            sampled[name], responses[name] = _evaluated(context, settings, model, ref, rewards)
            tokens.add(name, sampled[name], model, ref, settings.temperature or 1.0)
        bench.measure(name, folder, model, rewards)
        del model  # before the next one is loaded beside it
    return sampled, responses, tokens


def _disclosed(
    context: StageContext,
    settings: EvaluateSettings,
    names: dict[str, str],
    baseline: str,
    responses: dict[str, list[EvaluatedResponse]],
    judged: JudgedModels,
    benchmarks: list[dict[str, Any]],
) -> dict[str, Any]:
    """Returns the facts of the evaluation as a whole, see docs/eval.md."""
    runs = context.run_folder.parent
    models = {name: within(runs, str(context.outputs.get(value) or value)) for name, value in names.items()}
    keys = list(dict.fromkeys(one.key for one in responses.get(baseline, [])))
    own: dict[str, Any] = {"own": context.folder, "models": models.values()}
    return {
        "prompts_source": settings.prompts,
        "prompts": len(keys),
        "part": settings.part,
        "prompts_digest": prompts_digest(keys) if keys else "",
        "baseline": baseline,
        "models": models,
        "selection": seen(runs, prompts_digest(keys) if keys else "", keys=keys, **own),
        "null_rows": [row.to_dict() for row in judged.nulls],
        "alarms": list(judged.alarms(baseline)),
        "benchmarks": [{**one, "selection": seen(runs, one["digest"], **own)} for one in benchmarks],
    }


def _write_answers(
    context: StageContext,
    settings: EvaluateSettings,
    responses: dict[str, list[EvaluatedResponse]],
    tokens: TokenFile,
) -> None:
    write_samples_markdown(context.folder / "samples.md", responses, max(settings.show, 5))
    with atomic_write(context.folder / "answers.jsonl") as file:
        for name, evaluated in responses.items():
            file.writelines(json.dumps({"model": name, **asdict(r)}) + "\n" for r in evaluated)
    keys = sorted({one.key for evaluated in responses.values() for one in evaluated})
    write_json(context.folder / KEYS, keys)
    tokens.write(context.folder / "tokens.jsonl")


MANY = 3  # above this number of models a figure compares them


def _evaluated(
    context: StageContext,
    settings: EvaluateSettings,
    model: LanguageModel,
    ref: LanguageModel,
    rewards: Rewards,
) -> tuple[list[Group], list[EvaluatedResponse]]:
    """One model's responses, as they were sampled and with what was measured of them."""
    prompts = prompts_of(context, settings.prompts, model.chat, settings, settings.seed)
    prompts = prompts_of_part(context, prompts, settings.part, named_models(settings.models).values())
    measured = rewards.of(model.chat)
    for reward in measured:
        check_prompts(reward.scorer, prompts)
    sampling = sampling_of(settings)
    n = settings.samples_per_prompt if settings.temperature > 0 else 1
    groups = sample(model, prompts, n, sampling, seed=settings.seed)
    groups = [replace(group, origin=group.origin or f"{settings.prompts}:{i}") for i, group in enumerate(groups, 1)]
    values = {reward.name: values_of(reward.scorer, groups) for reward in measured}
    totals = total_of(measured, values, groups)
    shown = [reward.name for reward in named(measured)]
    shared = same_vocabulary(model.chat, ref.chat)  # log-probs of other tokens cannot be compared
    log_ratios, entropies = kl_and_entropy(groups, model, ref if shared else model, settings.temperature or 1.0)
    if not shared:
        context.report("KL", ["not measured: the reference has another tokenizer"])
    # the mean log-ratio is the KL only under samples of the whole distribution
    kls = log_ratios if shared and sampling.is_untruncated else [None] * len(log_ratios)
    flat = [(group, k) for group in groups for k in range(len(group.responses))]
    evaluated = [_response(*flat[i], kls[i], entropies[i], settings.gold) for i in range(len(flat))]
    flat_totals = [value for row in totals for value in row]
    by_name = {name: [value for row in values[name] for value in row] for name in shown}
    return groups, [
        replace(one, proxy=flat_totals[i], rewards={name: by_name[name][i] for name in shown})
        for i, one in enumerate(evaluated)
    ]


def _summaries(
    responses: dict[str, list[EvaluatedResponse]], baseline: str, rewards: Rewards, *, judged: bool
) -> list[PolicySummary]:
    win_by: WinBy = "judge" if judged else "gold" if responses[baseline][0].gold is not None else "proxy"
    decided = win_by != "proxy" or any(one.proxy is not None for one in responses[baseline])
    how: dict[str, Any] = {"proxy_kind": rewards.kind, "rates": rewards.rates, "baseline": baseline}
    against = responses[baseline] if decided else None
    results = [summarise(name, evaluated, against, win_by, **how) for name, evaluated in responses.items()]
    return with_tests(results, responses, baseline)


def _unscored(results: list[PolicySummary]) -> list[str]:
    """Lines about responses without a score, which no mean has."""
    return [
        f"{one.name}: {one.unscored:,} of {plural(one.n, 'response')} {verb(one.unscored, 'has', 'have')} no reward"
        for one in results
        if one.unscored
    ]


def sampling_of(settings: EvaluateSettings) -> SampleSettings:
    """The distribution that every model is sampled from."""
    return SampleSettings(
        settings.temperature, settings.top_p, settings.top_k, max_tokens=settings.max_tokens, stop=settings.stop
    )


def _note(settings: EvaluateSettings) -> str:
    """A line about what this decoding leaves out; "" for samples of the whole distribution."""
    if sampling_of(settings).is_untruncated:
        return ""
    decoding = "greedy decoding" if settings.temperature == 0 else "truncated sampling"
    one = "one response to each prompt; " if settings.temperature == 0 and settings.samples_per_prompt > 1 else ""
    return f"{decoding}: {one}no KL, which needs samples of the whole distribution (temperature > 0, top_p=1, top_k=0)"


def _response(group: Group, k: int, kl: float | None, entropy: float, use_gold: str) -> EvaluatedResponse:
    response, prompt = group.responses[k], group.prompt
    scores: dict[str, Any] = {}
    if use_gold == "world" or (use_gold == "auto" and is_world_prompt(group.prompt)):
        result = gold(prompt.meta, response.text)
        scores = {key: float(getattr(result, key)) for key in ("helpful", "truthful", "harmless")}
        scores["gold"] = result.total
    return EvaluatedResponse.of(group, k, kl=kl, entropy=entropy, **scores)


register(
    Stage(
        "evaluate",
        run,
        EvaluateSettings,
        "Models on the same held-out prompts and benchmark files: rewards, KL, win rate, accuracies, with intervals.",
        refers=("models", "prompts", "benchmarks", "reward", "monitors", "judge", "people", "ref", "curves"),
        words=WORDS,
    )
)
