"""Advice as a whole: looks at model, data and machine, measures, chooses, and composes the stages of a recipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiltyard.advice import fit
from tiltyard.advice.choose import (
    Sizes,
    answer_tokens,
    held_out_of,
    max_length_of,
    method_of,
    sizes_of,
)
from tiltyard.advice.compose import composed
from tiltyard.advice.fit import Amounts, Costs
from tiltyard.advice.machine import Machine, this_machine
from tiltyard.advice.model import ModelFacts, look_at_model
from tiltyard.advice.parts import StageAdvice
from tiltyard.advice.recipe import recipe_text
from tiltyard.advice.request import Request
from tiltyard.advice.reward import try_reward
from tiltyard.advice.rows import RowFacts, look_at_rows
from tiltyard.advice.trial import Speed, measure
from tiltyard.advice.wants import settle
from tiltyard.training.log import duration

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Advice:
    """A recipe with its reasons. `seconds`: of everything; `memory`: bytes at the peak, over the libraries' own."""

    request: Request
    want: str
    model: ModelFacts
    rows: RowFacts
    machine: Machine
    speeds: tuple[Speed, ...]
    stages: tuple[StageAdvice, ...]
    amounts: Amounts
    memory: float
    seconds: float

    @property
    def trained(self) -> str:
        """The name of the stage that trains the policy."""
        return next(stage.name for stage in self.stages if stage.kind not in ("clean", "split", "reward"))

    def facts(self) -> list[str]:
        """Lines about what was found."""
        lines = [f"model: {self.model.words()}", f"machine: {self.machine.words()}"]
        return lines + [f"data: {line}" for line in self.rows.words()]

    def estimate(self) -> list[str]:
        """Lines about time and memory, and how they were found."""
        busy = max(speed.busy for speed in self.speeds)
        fast = self.speeds[0]
        taken = [(stage.name, stage.seconds) for stage in self.stages if stage.seconds >= 0.5]
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in taken)
        lines = [f"time: about {duration(self.seconds)}{f' ({parts})' if parts else ''}"]
        how = f"{1000 * fast.train:.2f} ms a token of training in {fast.dtype}, measured on this machine"
        lines.append(f"  {how}, times the tokens")
        if busy > 0.25:
            lines.append(
                f"  other programs took {busy:.0%} of the processors while it was measured: with them it takes longer"
            )
        if self.request.judge:
            lines.append("  without the judge's own time, which is not known before it is asked")
        if self.request.minutes and self.seconds > 60 * self.request.minutes:
            least = f"the smallest run takes {duration(self.seconds)}"
            lines.append(f"  more than the {self.request.minutes:g} minutes that were asked for: {least}")
        lines.append(f"memory: about {self.memory / 2**20:,.0f} MiB at the peak, over the libraries' own")
        return lines

    def recipe(self) -> str:
        """The recipe as commented YAML."""
        return recipe_text(self.request.run_name, [*self.facts(), *self.estimate()], self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The advice as JSON-ready values."""
        return {
            "request": self.request.to_dict(),
            "want": self.want,
            "name": self.request.run_name,
            "model": {"parameters": self.model.parameters, "context": self.model.context},
            "data": {"kind": self.rows.kind, "rows": self.rows.rows, "prompts": self.rows.prompts},
            "facts": self.facts(),
            "stages": [stage.to_dict() for stage in self.stages],
            "seconds": self.seconds,
            "memory_bytes": self.memory,
            "speeds": [speed._asdict() for speed in self.speeds],
        }


def advise(request: Request, progress: Progress = lambda _: None) -> Advice:
    """Chooses a method and its settings for a model, data and a wish, and measures how long it takes.

    Raises:
        ModelError, DataError, ConfigError: a model, data or a wish that cannot be used; too little memory.
    """
    machine = this_machine()
    progress("reading the model's configuration")
    model, chat = look_at_model(request.model, default_template=request.default_template)
    want, kind = settle(request)
    progress("reading the data")
    began = time.process_time()
    rows = look_at_rows(request.data, kind, chat, request.split, clean=request.clean)
    reading = time.process_time() - began
    try_reward(request, rows.groups)
    samples = want in ("reward", "judge")
    max_tokens = answer_tokens(rows)
    max_length = max_length_of(rows, model, machine, max_tokens.value if samples else 0)
    sizes = sizes_of(request, model, rows, machine, max_length, max_tokens)
    usable = [g for g, one in zip(rows.groups, rows.lengths, strict=True) if one.longest <= max_length.value]
    speeds = measure(request.model, usable, machine, lora=sizes.lora, decodes=samples, progress=progress)
    exact = next(speed for speed in speeds if speed.dtype == "float32")
    costs = Costs(speeds[0], exact, fit.body_share(model), reading / machine.threads)
    stages, amounts = _fitted(request, want, model, rows, sizes, costs)
    seconds = fit.START + sum(stage.seconds for stage in stages)
    return Advice(request, want, model, rows, machine, tuple(speeds), tuple(stages), amounts, sizes.memory, seconds)


def _fitted(
    request: Request, want: str, model: ModelFacts, rows: RowFacts, sizes: Sizes, costs: Costs
) -> tuple[list[StageAdvice], Amounts]:
    """The stages with their sizes, and these."""
    method = method_of(want, rows)
    share = held_out_of(rows.prompts)
    seconds, tokens = 60 * request.minutes, sizes.max_tokens.value
    pairs = rows.kind == "comparisons"
    judged = want == "prefer" and pairs and not (request.reward or request.judge)
    scored = judged or bool(request.reward)
    count = max(1, round(share.value * rows.prompts))
    held = sum(1 for _ in rows.keys) * share.value
    held_rows, prompts = fit.size_of_evaluation(
        costs, rows.lengths, count, max(1, round(held)), tokens, seconds, scored=scored
    )
    cleans = request.clean and rows.kind in ("comparisons", "labelled", "demonstrations") and bool(rows.dropped)
    measuring = fit.evaluation_seconds(costs, rows.lengths, held_rows, prompts, tokens, scored=scored)
    reading = {"clean": costs.reading if cleans else 0.0, "split": 0.6 * costs.reading}
    fixed = fit.START + measuring + sum(reading.values())
    if want in ("reward", "judge"):
        one = fit.step_seconds(costs, rows.lengths, tokens, 2 if want == "judge" else fit.RL_SAMPLES)
        steps = fit.fit_steps(one, seconds, fixed)
        amounts = Amounts(0, 0, steps, held_rows, prompts, len(rows.keys), 0)
        taken = {method.value: 2 * costs.fast.load + steps * one}
    else:
        amounts, taken = fit.fit_rows(
            costs,
            method.value,
            rows,
            max_length=sizes.max_length.value,
            share=share.value,
            seed=request.seed,
            seconds=seconds,
            fixed=fixed,
            held_rows=held_rows,
            prompts=prompts,
            judged=judged,
        )
    stages = composed(request, want, model, rows, sizes, costs, amounts, method, share, cleans=cleans, judged=judged)
    taken |= {**reading, "before_after": measuring}
    for stage in stages:
        stage.seconds = taken.get(stage.kind, 0.0)
    return stages, amounts
