"""A dry run's reading of the data: it finds what the run would find before its first step, and writes nothing."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tiltyard.data import Chat
from tiltyard.inputs.base import Opened
from tiltyard.inputs.offline import FileSource
from tiltyard.inputs.scores import ScoreSettings, Scoring, SelfJudgeSettings, monitor_specs
from tiltyard.inputs.settings import PromptSettings, StageSettings
from tiltyard.methods.base import Method
from tiltyard.models.load import load_tokenizer
from tiltyard.models.pretrained import context_length, load_config, resolve
from tiltyard.runs import Ref
from tiltyard.scoring import FunctionScorer, Monitors, RewardPart, Scorer, build_reward
from tiltyard.stages.backend import new_arch
from tiltyard.stages.base import Stage, StageContext, references
from tiltyard.stages.lengths import Lengths, lengths_of
from tiltyard.types import Prompt, Response


def rehearse(
    method: Method, stage: Stage, context: StageContext, settings: StageSettings
) -> tuple[list[str], Lengths | None]:
    """Returns the lines that the run would print about its data, and the sizes of its steps.

    One line gives the reason where the data are not there.

    Raises:
        TiltyardError: the error with which the run would end before its first step.
    """
    missing = _missing(stage, context, settings)
    folder = None if new_arch(settings) is not None else Path(context.resolve(settings.model, want="model"))
    if missing or folder is None or not folder.exists():
        what = f"'{missing}' is made" if missing else "the run reads them"
        return [f"data: not read before {what}"], None
    trust = settings.models.trust_remote_code
    name = resolve(folder)
    tokenizer = load_tokenizer(name, trust_remote_code=trust)
    chat = Chat(tokenizer, max_length=context_length(load_config(name, trust)))
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "runs" / context.run_name
        quiet = Console(file=out, width=10_000)
        work = replace(context, folder=base / context.name, run_folder=base, console=quiet)
        scoring = _scoring(context, settings) if isinstance(settings, PromptSettings) else None
        opened = method.source.open(work, settings, chat, scoring)
        held_out = method.source.held_out(work, settings, chat)
        if held_out is not None and isinstance(method.source, FileSource):
            work.report("check", method.source.overlap(opened.groups, held_out))
        if method.aux_data is not None:
            method.aux_data.open(work, settings, chat)
        lines = [*(line.strip() for line in out.getvalue().splitlines()), *pace(settings, opened)]
        return lines, lengths_of(opened, settings.run.tokens_per_microbatch)


def _missing(stage: Stage, context: StageContext, settings: StageSettings) -> str:
    """Names an earlier stage whose results are read and not there yet."""
    for _, text in references(stage, settings):
        ref = Ref.find(text, stages=context.outputs, folder=context.recipe_folder)
        if ref is not None and ref.kind == "stage" and not (context.outputs[ref.name] / "done.json").is_file():
            return ref.name
    return ""


def _scoring(context: StageContext, settings: PromptSettings) -> Scoring:
    """The functions that score, which may refuse prompts; models and judges are not loaded."""

    def unread(prompt: Prompt, response: Response) -> float:  # noqa: ARG001
        return 0.0

    def stub(name: str, part: RewardPart | None = None) -> Scorer:  # noqa: ARG001
        return FunctionScorer(unread, name)

    spec = settings.reward_spec() if isinstance(settings, ScoreSettings) else ""
    watched = settings.monitors if isinstance(settings, ScoreSettings | SelfJudgeSettings) else []
    folders = [context.recipe_folder] if context.recipe_folder else []
    scorer = build_reward(spec, stub, folders=folders) if spec else stub("judge")
    monitors = [build_reward(one, stub, name=name, folders=folders) for name, one in monitor_specs(watched)]
    return Scoring(scorer, Monitors(monitors) if monitors else None)


def pace(settings: StageSettings, opened: Opened) -> list[str]:
    """Returns lines about the number of steps: passes over the data, and intervals that are longer than the run."""
    return [*_passes(settings, opened.steps, opened.groups), *_intervals(settings, opened.steps)]


def _passes(settings: StageSettings, steps: int, groups: Sequence[object]) -> Iterator[str]:
    if groups and not getattr(settings, "tokens_per_step", 0):
        passes = steps * settings.prompts_per_step / len(groups)
        if settings.steps:
            yield f"steps: {steps:,}, {passes:.3g} passes over {len(groups):,} groups"
        else:
            plural = "" if settings.epochs == 1 else "s"
            yield f"steps: {steps:,} ({settings.epochs:g} epoch{plural} of {len(groups):,} groups)"
    else:
        yield f"steps: {steps:,}"


def _intervals(settings: StageSettings, steps: int) -> Iterator[str]:
    held_out = getattr(getattr(settings, "data", None), "held_out", "")
    if held_out and settings.run.eval_every > steps:
        yield f"eval_every: {settings.run.eval_every:,} is beyond the {steps:,} steps: measured once, at the end"
    if settings.run.sample_every > steps:
        yield f"sample_every: {settings.run.sample_every:,} is beyond the {steps:,} steps: no samples are printed"
    if settings.optimizer.warmup >= max(1, steps):
        yield f"warm-up: {settings.optimizer.warmup:g} steps of {steps:,}: the rate stays below {settings.lr:g}"
