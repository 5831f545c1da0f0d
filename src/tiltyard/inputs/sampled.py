"""The source of methods that sample: responses to prompts at every step, or in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tiltyard.data import Chat
from tiltyard.errors import CompositionError
from tiltyard.inputs.base import InputSource, Often, Opened, StepSize
from tiltyard.inputs.files import prompts_of
from tiltyard.inputs.samplers import sampler_of
from tiltyard.inputs.scores import Scoring
from tiltyard.inputs.settings import PromptSettings, RoundSettings, StageSettings, StepSettings
from tiltyard.inputs.workspace import Workspace, stage_folder
from tiltyard.records import part
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.ahead import ahead
from tiltyard.training.algorithm import Source
from tiltyard.training.prepare import Correction
from tiltyard.training.replay import replayed
from tiltyard.training.rounds import Rounds
from tiltyard.training.source import Online
from tiltyard.types import Prompt, Response

ROUND_STEPS = 100  # of a round that stands for any


@dataclass(frozen=True)
class Prompts(InputSource):
    """Prompts whose responses are sampled from the policy and scored.

    Args:
        every: `step`: from the policy as it is; `round`: many at once, from which the steps of the round learn.
    """

    every: Literal["step", "round"] = "step"

    data_kind = "prompts"
    human_labels = True

    @property
    def settings(self) -> type[StageSettings]:  # type: ignore[override]
        """Rounds have a number and a size; steps may be sampled ahead."""
        return RoundSettings if self.every == "round" else StepSettings

    @property
    def samples(self) -> Often:  # type: ignore[override]
        """Frequency at which the sampled distribution is renewed."""
        return "per iteration" if self.every == "round" else "every step"

    @property
    def feedback(self) -> Often:  # type: ignore[override]
        """Fresh responses are scored when they are sampled."""
        return self.samples

    def open(self, work: Workspace, settings: StageSettings, chat: Chat, scoring: Scoring | None) -> Opened:
        """Reads the prompts and returns an `Online` or `Rounds` source over them, or one that replays a stage."""
        own = part(settings, PromptSettings)
        assert scoring is not None
        prompts = prompts_of(work, own.prompts.path, chat, own.prompts, own.seed)
        scoring.check(prompts)
        steps = settings.steps_over(len(prompts))
        make = self._rounds if self.every == "round" else self._online
        return Opened(make(work, own, prompts, steps, scoring), steps, prompts=prompts[:3])

    def _online(
        self, work: Workspace, own: PromptSettings, prompts: list[Prompt], steps: int, scoring: Scoring
    ) -> Source:
        source: Online = Online(
            prompts,
            sampler_of(work, own),
            scoring.scorer,
            own.prompts_per_step,
            own.sampling.samples_per_prompt,
            own.sampling.sample_settings(),
            seed=own.seed,
            watch=scoring.monitors,
            order=own.prompts.order,
            correction=Correction(own.mismatch.correction, own.mismatch.cap),
        )
        if age := part(own, StepSettings).max_staleness:
            source = ahead(source, age, steps)
        return replayed(source, stage_folder(work, own.replay) / "groups.jsonl", steps) if own.replay else source

    def _rounds(
        self, work: Workspace, settings: PromptSettings, prompts: list[Prompt], steps: int, scoring: Scoring
    ) -> Source:
        own = part(settings, RoundSettings)
        every = -(-steps // own.iterations)
        rounds = Rounds(
            prompts,
            sampler_of(work, own),
            scoring.scorer,
            own.round_prompts or min(len(prompts), every * own.prompts_per_step),
            own.prompts_per_step,
            every,
            own.sampling.samples_per_prompt,
            own.sampling.sample_settings(),
            seed=own.seed,
            order=own.prompts.order,
        )
        rounds.folder, rounds.watch = work.folder / "rounds", scoring.monitors
        rounds.tokens_per_microbatch = own.run.tokens_per_microbatch
        if own.replay:
            rounds.folder, rounds.stored = stage_folder(work, own.replay) / "rounds", True
            rounds.check(steps)
        return rounds

    def step_size(self, settings: StageSettings) -> StepSize:
        """Returns the largest size of a step."""
        own = part(settings, PromptSettings)
        samples, longest = own.sampling.samples_per_prompt, own.prompts.max_prompt + own.sampling.max_tokens
        group = own.prompts.max_prompt + samples * own.sampling.max_tokens
        decoded = min(own.sampling.max_concurrent, own.prompts_per_step * samples) * longest
        age = getattr(settings, "max_staleness", 0)
        text = f"{own.prompts_per_step} prompts x {samples} responses"
        text += f", sampled {age} step{'s' if age > 1 else ''} ahead" if age else ""
        return StepSize(text, group, own.prompts_per_step * group, decoded)

    def placeholder(self, settings: Mapping[str, Any]) -> Source:
        """A source over one made-up prompt, with a scorer that must not be called."""

        def never(prompt: Prompt, response: Response) -> float:  # noqa: ARG001
            raise CompositionError("this composition was made to be shown, not to be trained")

        score = FunctionScorer(never)
        keys = ("temperature", "max_tokens", "max_concurrent")
        sampling = SampleSettings(**{key: settings[f"sampling.{key}"] for key in keys})
        prompts, size = [Prompt(text="?", ids=(0,))], settings["prompts_per_step"]
        samples = settings["sampling.samples_per_prompt"]
        if self.every == "round":
            return Rounds(prompts, NativeSampler(), score, size, size, ROUND_STEPS, samples, sampling)
        source = Online(prompts, NativeSampler(), score, size, samples, sampling)
        if age := settings["max_staleness"]:
            return ahead(source, age)
        return source
