"""Declared sources: what a method learns from, with its settings, its reader, its plan and its held-out measure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from tiltyard.data import Chat, Kind
from tiltyard.inputs.measure import Measure, likelihood
from tiltyard.inputs.scores import Scoring
from tiltyard.inputs.settings import StageSettings
from tiltyard.inputs.workspace import Workspace
from tiltyard.records import Record
from tiltyard.training.algorithm import Models, Source
from tiltyard.types import Group, Prompt

Often = Literal["no", "per iteration", "every step"]


class Opened(NamedTuple):
    """A source at work: the runtime source, the outer steps, the groups of a file (none where prompts are sampled)."""

    source: Source
    steps: int
    groups: Sequence[Group] = ()
    prompts: Sequence[Prompt] = ()  # a few, to print samples of


class StepSize(NamedTuple):
    """The size of a step, for the plan.

    Args:
        text: of the groups a step. longest: packed tokens of the longest group. tokens: of a step at most.
        decoded: tokens in the decoding cache at most; 0: nothing is sampled.
    """

    text: str
    longest: int
    tokens: int
    decoded: int = 0


class InputSource(ABC):
    """The source of a method's training data. A method declares one, with settings, reader and measure.

    Attributes:
        data_kind: of the rows that it reads, see docs/data.md.
        samples: how often the distribution that responses are sampled from is renewed; "no": nothing is sampled.
        feedback: how often fresh feedback is requested while the method runs.
        human_labels: whether its data, or the reward model that scores its samples, rest on labels of people.
    """

    data_kind: ClassVar[Kind]
    settings: ClassVar[type[StageSettings]]
    samples: Often = "no"
    feedback: Often = "no"
    human_labels: ClassVar[bool] = False

    @property
    def records(self) -> Mapping[str, type[Record]]:
        """Records of `settings` that this source replaces by a more special one."""
        return {}

    @abstractmethod
    def open(self, work: Workspace, settings: StageSettings, chat: Chat, scoring: Scoring | None) -> Opened:
        """Reads the data or prompts, reports what was read, and returns the source of a run.

        Args:
            chat: of the trained model.
            scoring: of sampled responses; None for methods that sample none.

        Raises:
            DataError: rows that the method cannot learn from.
        """

    @abstractmethod
    def placeholder(self, settings: Mapping[str, Any]) -> Source:
        """A source over one made-up item, from which nothing is computed: for showing a composition.

        Args:
            settings: by dotted key.
        """

    @abstractmethod
    def step_size(self, settings: StageSettings) -> StepSize:
        """Returns the largest size of a step."""

    def held_out(self, work: Workspace, settings: StageSettings, chat: Chat) -> Sequence[Group] | None:
        """The held-out groups, read like the training data; None where the settings name none."""
        return None

    def measure(self, work: Workspace, settings: StageSettings, models: Models, groups: Sequence[Group]) -> Measure:
        """Returns the measure of a policy on held-out groups."""
        return likelihood(groups, settings.run.tokens_per_microbatch)
