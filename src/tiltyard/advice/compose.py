"""The stages of a recipe, with every choice and its reason."""

from __future__ import annotations

from tiltyard.advice import fit
from tiltyard.advice.choose import Sizes, batch_of, rate_of
from tiltyard.advice.fit import Amounts, Costs
from tiltyard.advice.model import ModelFacts
from tiltyard.advice.parts import Choice, StageAdvice
from tiltyard.advice.request import Request
from tiltyard.advice.rows import REFUSED, REPEATED, RowFacts
from tiltyard.runs import existing_path

MINUTE = 60.0  # between two checkpoints


def composed(
    request: Request,
    want: str,
    model: ModelFacts,
    rows: RowFacts,
    sizes: Sizes,
    costs: Costs,
    amounts: Amounts,
    method: Choice,
    share: Choice,
    *,
    cleans: bool,
    judged: bool,
) -> list[StageAdvice]:
    """The stages in order: clean, split, the method, a reward model to measure by, the comparison."""
    own = source_of(request.model)
    stages = [_clean(request, rows)] if cleans else []
    stages.append(_split(request, rows, amounts, share, "clean/rows.jsonl" if cleans else source_of(request.data)))
    name = str(method.value)
    trained = StageAdvice(name, name, method.why)
    trained.set("model", own)
    if want in ("reward", "judge"):
        _sampling(trained, request, want, sizes, amounts)
    else:
        _rows(trained, name, rows, sizes, amounts)
    _common(trained, request, sizes, costs, amounts, rate_of(name, model, sizes.lora))
    stages.append(trained)
    if judged:
        stages.append(_judge(request, own, model, rows, sizes, costs, amounts))
    stages.append(_before_after(request, own, name, rows, sizes, amounts, judged=judged))
    return stages


def source_of(name: str) -> str:
    """A model or data as a recipe names it; a path is made absolute where a stage could be meant."""
    path = existing_path(name)
    return name if path is None else str(path.resolve())


def _clean(request: Request, rows: RowFacts) -> StageAdvice:
    stage = StageAdvice("clean", "clean", "what `tiltyard check` finds is left out")
    stage.set("data", source_of(request.data))
    if request.split:
        stage.set("split", request.split)
    stage.set("kind", rows.kind)
    why = "answers that are given to more prompts than this are templates, bugs, or strings that fool a judge"
    stage.set("max_prompts", REPEATED, why)
    if rows.bad:
        stage.set("bad_rows", "drop", f"{rows.bad:,} rows cannot be used")
    return stage


def _split(request: Request, rows: RowFacts, amounts: Amounts, share: Choice, data: str) -> StageAdvice:
    stage = StageAdvice("split", "split", "no prompt is both trained on and measured on")
    stage.set("data", data)
    if request.split and data != "clean/rows.jsonl":
        stage.set("split", request.split)
    stage.set("kind", rows.kind)
    stage.set("held_out", share.value, share.why)
    stage.set("held_out_prompts", 0)
    stage.set("held_out_rows", amounts.held_rows, "measured before and after; as many prompts as can be")
    if amounts.rows:
        stage.set(
            "limit",
            amounts.rows,
            f"a sample of the rows, drawn with the seed, that fits into {request.minutes:g} minutes",
        )
    if rows.bad and data != "clean/rows.jsonl":
        stage.set("bad_rows", "drop", f"{rows.bad:,} rows cannot be used")
    stage.set("seed", request.seed)
    return stage


def _rows(stage: StageAdvice, method: str, rows: RowFacts, sizes: Sizes, amounts: Amounts) -> None:
    """Settings of a method that learns from rows."""
    stage.set("data", "split/train.jsonl")
    stage.set("max_length", *sizes.max_length)
    if _refused(rows):
        stage.set("bad_rows", "drop", "the chat template refuses some rows")
    if rows.kind == "comparisons" and rows.answers > 2 and method == "dpo":
        stage.set("pairs", "best_worst", "of each ranking the clearest pair")
    batch = batch_of(amounts.used, amounts.passes.value)
    stage.set("epochs", *amounts.passes)
    stage.set("prompts_per_step", *batch)
    if method == "kto":
        _weights(stage, rows)


def _weights(stage: StageAdvice, rows: RowFacts) -> None:
    """Weights that balance good and bad answers."""
    labels = [label for group in rows.groups for label in (group.preference.labels if group.preference else None) or ()]
    good, bad = sum(labels), len(labels) - sum(labels)
    if good and bad and not 0.75 <= good / bad <= 4 / 3:
        key, value = ("desirable", bad / good) if good < bad else ("undesirable", good / bad)
        stage.set(key, float(f"{value:.2g}"), f"{good:,} good and {bad:,} bad answers weigh the same together")


def _sampling(stage: StageAdvice, request: Request, want: str, sizes: Sizes, amounts: Amounts) -> None:
    """Settings of a method that samples."""
    stage.set("prompts", "split/train.jsonl")
    stage.set("max_prompt", max(16, sizes.max_prompt), "the longest prompt")
    if want == "reward":
        stage.set("reward", request.reward_value())
        stage.set("samples_per_prompt", fit.RL_SAMPLES, "each answer is compared with the prompt's other ones")
        stage.set("beta", 0.02, "a weak pull to the start; raise it if answers become strange")
        stage.set("missing_eos", "none", "an answer that is cut keeps its reward: a penalty would be learnt first")
    else:
        stage.set("judge", request.judge_value())
        stage.set("samples_per_prompt", 2, "a pair")
    stage.set("max_tokens", *sizes.max_tokens)
    stage.set("prompts_per_step", fit.RL_PROMPTS)
    stage.set("steps", amounts.steps, f"as many as fit into {request.minutes:g} minutes" if request.minutes else "")


def _common(stage: StageAdvice, request: Request, sizes: Sizes, costs: Costs, amounts: Amounts, rate: Choice) -> None:
    stage.set("lr", *rate)
    stage.set("warmup", 0.1, "a tenth of the steps: the published numbers are longer than this run")
    if sizes.lora:
        stage.set("lora", {"rank": 16}, sizes.why_lora)
    else:
        stage.set("max_grad_norm", 1.0, sizes.why_lora)
    stage.set("dtype", costs.fast.dtype, _why_dtype(costs))
    if sizes.micro.why:
        stage.set("tokens_per_microbatch", *sizes.micro)
    if sizes.checkpointing.value:
        stage.set("gradient_checkpointing", True, sizes.checkpointing.why)
    stage.set("save_every", _interval(costs, stage, amounts), "about a minute of work is lost if the run is killed")
    stage.set("seed", request.seed)


def _why_dtype(costs: Costs) -> str:
    if costs.fast.dtype == costs.exact.dtype:
        return "the fastest here"
    times = costs.exact.train / costs.fast.train
    return f"{times:.1f} times as fast as float32 here; weights stay in float32"


def _interval(costs: Costs, stage: StageAdvice, amounts: Amounts) -> int:
    """Steps between two checkpoints."""
    if amounts.steps:
        one = 10.0
    else:
        batch = stage.settings["prompts_per_step"].value
        one = batch * amounts.tokens / max(1, amounts.used) * costs.fast.train
    return min(50, max(1, round(MINUTE / max(one, 1e-3))))


def _judge(
    request: Request, own: str, model: ModelFacts, rows: RowFacts, sizes: Sizes, costs: Costs, amounts: Amounts
) -> StageAdvice:
    """The reward model of the comparison."""
    why = "a reward model of the same training rows: it measures the answers before and after, and trains nothing"
    stage = StageAdvice("reward", "reward", why)
    stage.set("model", own)
    stage.set("data", "split/train.jsonl")
    if amounts.judge_rows:
        stage.set("limit", amounts.judge_rows, "half of the rows, for time")
        stage.set("limit_by", "sample")
    stage.set("max_length", sizes.max_length.value)
    if _refused(rows):
        stage.set("bad_rows", "drop")
    used = amounts.used if not amounts.judge_rows else round(amounts.used * amounts.judge_rows / max(1, amounts.rows))
    stage.set("prompts_per_step", *batch_of(used, 1.0))
    stage.set("normalise", "none", "only differences of scores are used")
    _common(stage, request, sizes, costs, amounts, rate_of("reward", model, sizes.lora))
    for key in ("warmup", "lora", "max_grad_norm", "dtype", "tokens_per_microbatch", "save_every"):
        if key in stage.settings:  # the reason stands at the first stage
            stage.set(key, stage.settings[key].value)
    return stage


def _before_after(
    request: Request, own: str, method: str, rows: RowFacts, sizes: Sizes, amounts: Amounts, *, judged: bool
) -> StageAdvice:
    stage = StageAdvice("before_after", "before_after", "the model as it was and as it is now, on what it never saw")
    stage.set("before", own)
    stage.set("after", method)
    if rows.kind != "prompts":
        stage.set("data", "split/held_out.jsonl")
        stage.set("kind", rows.kind)
        stage.set("max_length", sizes.max_length.value)
        if _refused(rows):
            stage.set("bad_rows", "drop")
    stage.set("prompts", "split/prompts.jsonl")
    stage.set("limit", amounts.prompts, "prompts that both models answer")
    stage.set("max_prompt", max(16, sizes.max_prompt))
    stage.set("max_tokens", *sizes.max_tokens)
    _decoding(stage, rows)
    if judged:
        stage.set("reward", "reward")
        stage.set("proxy", True, "it learnt from the same pairs: it shows what was learnt, not that it is good")
    elif request.reward:
        stage.set("reward", request.reward_value())
    elif request.judge:
        stage.set("judge", request.judge_value())
    stage.set("seed", request.seed)
    return stage


def _decoding(stage: StageAdvice, rows: RowFacts) -> None:
    if rows.kind == "prompts":
        stage.set("temperature", 1.0, "as it is trained")
        stage.set("samples_per_prompt", 2)
    else:
        stage.set("temperature", 0.0, "greedy: the likeliest answers, without chance")


def _refused(rows: RowFacts) -> bool:
    return bool(rows.bad) or REFUSED in rows.dropped
