"""Sources that read files: texts, demonstrations, comparisons, labelled responses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tiltyard.data import Chat, GroupFile, Kind, check_data
from tiltyard.inputs.base import InputSource, Opened, StepSize
from tiltyard.inputs.comparisons import as_pairs, check_differences, check_labels, check_labels_differ, labelled
from tiltyard.inputs.files import Encode, files_of, rewritten, stream_of, write_group_file
from tiltyard.inputs.measure import Measure, preference
from tiltyard.inputs.reference import reference_logps
from tiltyard.inputs.scores import Scoring
from tiltyard.inputs.settings import (
    Data,
    FileSettings,
    LabelledData,
    OpponentSampling,
    PairData,
    PretrainSettings,
    SelfPlaySettings,
    StageSettings,
)
from tiltyard.inputs.workspace import Workspace
from tiltyard.records import Record, part
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.training import self_play as runtime
from tiltyard.training.algorithm import Models, Source
from tiltyard.training.source import Offline
from tiltyard.types import Group, Preference, Prompt, Response


class FileSource(InputSource):
    """A source that reads groups from files."""

    settings: ClassVar[type[StageSettings]] = FileSettings

    def open(self, work: Workspace, settings: StageSettings, chat: Chat, scoring: Scoring | None) -> Opened:
        """Reads the files and returns an `Offline` source over their groups."""
        own = part(settings, FileSettings)
        groups = self.training_groups(work, own.data, settings.seed, chat)
        rows = Offline(groups, settings.prompts_per_step, settings.seed, own.tokens_per_step, own.data.order)
        return Opened(rows, settings.steps or rows.steps(settings.epochs), groups, _prompts(groups))

    def training_groups(self, work: Workspace, data: Data, seed: int, chat: Chat) -> GroupFile:
        """The groups of the training files."""
        return self.read(work, "data", data.path, data, seed, chat)

    def held_out(self, work: Workspace, settings: StageSettings, chat: Chat) -> GroupFile | None:
        """The held-out groups, read like the training data; None where the settings name none."""
        data = _data(settings)
        if not data.held_out:
            return None
        whole = data.model_copy(update={"limit": data.held_out_limit, "split": ""})
        return self.read(work, "held_out", data.held_out, whole, settings.seed, chat)

    def overlap(self, training: Sequence[Group], held_out: Sequence[Group]) -> list[str]:
        """Lines about what training and held-out groups share."""
        return check_data(training, held_out).lines()

    def read(self, work: Workspace, key: str, path: str | list[str], data: Data, seed: int, chat: Chat) -> GroupFile:
        """The groups of files in the form that the method takes.

        Args:
            key: the setting that names the files, for the report.
            data: which rows, how long.
            seed: of selections at random.
        """
        return write_group_file(
            work, self.shaped(work, key, self.stream(work, key, path, data, chat, seed), data, seed)
        )

    def stream(
        self, work: Workspace, key: str, path: str | list[str], data: Data, chat: Chat, seed: int
    ) -> Iterable[Group]:
        """The groups of the files as they are."""
        return stream_of(work, key, path, self.data_kind, chat, data, seed)

    def shaped(self, work: Workspace, key: str, groups: Iterable[Group], data: Data, seed: int) -> Iterable[Group]:
        """The groups in the form that the method takes."""
        return groups

    def step_size(self, settings: StageSettings) -> StepSize:
        """Returns the largest size of a step."""
        own, longest = part(settings, FileSettings), _data(settings).max_length
        if own.tokens_per_step:
            text = f"as many as have {own.tokens_per_step:,} tokens together"
            return StepSize(text, longest, max(own.tokens_per_step, longest))
        return StepSize(f"{settings.prompts_per_step}", longest, settings.prompts_per_step * longest)

    def placeholder(self, settings: Mapping[str, Any]) -> Source:
        """A source over one made-up group."""
        return Offline([self.example()], settings["prompts_per_step"])

    @abstractmethod
    def example(self) -> Group:
        """A made-up group of the form that the method reads."""


def _data(settings: StageSettings) -> Data:
    assert isinstance(settings, FileSettings | SelfPlaySettings)
    return settings.data


def _prompts(groups: Sequence[Group]) -> tuple[Prompt, ...]:
    return tuple(g.prompt for g in groups[:3])


def _single() -> Group:
    return Group(Prompt(text="?", ids=(0,)), (Response(ids=(0,)),), (0.0,), Preference(ranks=(1,)))


def _couple() -> Group:
    responses = (Response(ids=(0,)), Response(ids=(1,)))
    return Group(Prompt(text="?", ids=(0,)), responses, (0.0, 1.0), Preference(ranks=(2, 1)))


@dataclass(frozen=True)
class Texts(FileSource):
    """Plain documents. A method that reads them may begin with a new model."""

    data_kind = "text"
    settings = PretrainSettings

    def overlap(self, training: Sequence[Group], held_out: Sequence[Group]) -> list[str]:
        """Documents are not compared."""
        return []

    def example(self) -> Group:
        """A made-up document."""
        return _single()


@dataclass(frozen=True)
class Demonstrations(FileSource):
    """Prompts with one response each, which is imitated."""

    data_kind = "demonstrations"

    def example(self) -> Group:
        """A made-up demonstration."""
        return _single()


@dataclass(frozen=True)
class Rankings(FileSource):
    """Comparisons: prompts with two or more ranked responses.

    Args:
        encode: how groups are rewritten where the method reads more than one response at once (a ranker); training and
            held-out data alike. Rows are then pairs already.
    """

    data_kind = "comparisons"
    human_labels = True
    encode: Encode | None = None

    @property
    def records(self) -> Mapping[str, type[Record]]:
        """Rankings may be cut into pairs."""
        return {} if self.encode else {"data": PairData}

    def training_groups(self, work: Workspace, data: Data, seed: int, chat: Chat) -> GroupFile:
        """The groups of the training files.

        Raises:
            DataError: all of them are ties, or compare an answer with itself.
        """
        groups = super().training_groups(work, data, seed, chat)
        check_differences(groups, ", ".join(files_of("data", data.path)))
        return groups

    def stream(
        self, work: Workspace, key: str, path: str | list[str], data: Data, chat: Chat, seed: int
    ) -> Iterable[Group]:
        """The groups of the files, rewritten by `encode`."""
        return rewritten(work, key, self.encode, super().stream(work, key, path, data, chat, seed), chat, data)

    def shaped(self, work: Workspace, key: str, groups: Iterable[Group], data: Data, seed: int) -> Iterable[Group]:
        """Returns the groups, cut into pairs if the settings require it."""
        if isinstance(data, PairData) and data.pairs != "given":
            return as_pairs(work, key, write_group_file(work, groups), data.pairs, seed)
        return groups

    def measure(self, work: Workspace, settings: StageSettings, models: Models, groups: Sequence[Group]) -> Measure:
        """Returns the measure of how well the log-ratio to the reference orders held-out responses."""
        return preference(groups, settings.run.tokens_per_microbatch, reference_logps(work, settings, models, groups))

    def example(self) -> Group:
        """A made-up pair."""
        return _couple()


@dataclass(frozen=True)
class Pairs(Rankings):
    """Comparisons of two responses each."""


@dataclass(frozen=True)
class Labelled(FileSource):
    """Prompts with responses that are labelled good (1) or bad (0)."""

    data_kind = "labelled"
    human_labels = True

    @property
    def records(self) -> Mapping[str, type[Record]]:
        """Ranks or scores may be turned into labels."""
        return {"data": LabelledData}

    def training_groups(self, work: Workspace, data: Data, seed: int, chat: Chat) -> GroupFile:
        """The groups of the training files.

        Raises:
            DataError: all of them call one and the same answer good and bad.
        """
        groups = super().training_groups(work, data, seed, chat)
        check_labels_differ(groups, ", ".join(files_of("data", data.path)))
        return groups

    def stream(
        self, work: Workspace, key: str, path: str | list[str], data: Data, chat: Chat, seed: int
    ) -> Iterable[Group]:
        """The groups of the files; with `good_from` those of comparisons."""
        kind: Kind = "comparisons" if part(data, LabelledData).good_from is not None else "labelled"
        return stream_of(work, key, path, kind, chat, data, seed)

    def shaped(self, work: Workspace, key: str, groups: Iterable[Group], data: Data, seed: int) -> Iterable[Group]:
        """The groups with a label a response."""
        good_from = part(data, LabelledData).good_from
        if good_from is None:
            return map(check_labels, groups)
        return (labelled(group, good_from) for group in groups)

    def measure(self, work: Workspace, settings: StageSettings, models: Models, groups: Sequence[Group]) -> Measure:
        """Returns the measure of how well the log-ratio to the reference separates good from bad held-out responses."""
        return preference(groups, settings.run.tokens_per_microbatch, reference_logps(work, settings, models, groups))

    def example(self) -> Group:
        """A made-up group of a bad and a good response."""
        return _couple()


@dataclass(frozen=True)
class SelfPlay(Demonstrations):
    """Demonstrations against responses of a snapshot of the policy, which is renewed every iteration."""

    settings = SelfPlaySettings
    samples: Any = "per iteration"
    feedback: Any = "per iteration"

    @property
    def records(self) -> Mapping[str, type[Record]]:
        """The opponent has sampling settings of its own."""
        return {"sampling": OpponentSampling}

    def open(self, work: Workspace, settings: StageSettings, chat: Chat, scoring: Scoring | None) -> Opened:
        """Reads the demonstrations and returns a `SelfPlay` source over them."""
        own = part(settings, SelfPlaySettings)
        groups = self.training_groups(work, own.data, settings.seed, chat)
        steps = settings.steps_over(len(groups))
        sampling = SampleSettings(
            temperature=own.sampling.temperature,
            max_tokens=own.sampling.max_tokens,
            stop=own.sampling.stop,
            max_concurrent=own.sampling.max_concurrent,
        )
        every = -(-steps // own.iterations)
        source = runtime.SelfPlay(
            groups,
            NativeSampler(),
            settings.prompts_per_step,
            every,
            sampling,
            settings.seed,
            order=own.data.order,
        )
        return Opened(source, steps, groups, _prompts(groups))

    def step_size(self, settings: StageSettings) -> StepSize:
        """Returns the largest size of a step."""
        longest = _data(settings).max_length
        return StepSize(f"{settings.prompts_per_step}", longest, settings.prompts_per_step * longest)

    def placeholder(self, settings: Mapping[str, Any]) -> Source:
        """A source over one made-up demonstration."""
        return runtime.SelfPlay([_couple()], NativeSampler(), settings["prompts_per_step"], every=1)
