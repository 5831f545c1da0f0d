"""A second data set that a method may be given, as the second argument of its function."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, create_model

from tiltyard.data import Chat, Kind
from tiltyard.inputs.files import Rows, groups_of
from tiltyard.inputs.settings import FileSettings, PromptSettings, SelfPlaySettings, StageSettings
from tiltyard.inputs.workspace import Workspace
from tiltyard.records import Settings
from tiltyard.training.source import Offline


@dataclass(frozen=True)
class AuxData:
    """An optional second data set.

    Args:
        key: the setting that names it.
        kind: of its rows.
        doc: of the setting.
    """

    key: str
    kind: Kind
    doc: str

    def settings(self) -> type[Settings]:
        """The settings model with the one setting."""
        field = (str, Field("", description=self.doc))
        model: type[Settings] = create_model(self.key, __base__=Settings, **{self.key: field})  # type: ignore[call-overload]
        return model

    def open(self, work: Workspace, settings: StageSettings, chat: Chat) -> Offline | None:
        """The source over the data set; None where the setting names none."""
        path = str(getattr(settings, self.key))
        if not path:
            return None
        groups = groups_of(work, self.key, path, self.kind, chat, self._limits(settings))
        budget = settings.tokens_per_step if isinstance(settings, FileSettings) else 0
        return Offline(groups, settings.prompts_per_step, settings.seed, budget)

    def _limits(self, settings: StageSettings) -> Rows:
        """Those of the first data set; where that has prompts, what a prompt and its response may have together."""
        if isinstance(settings, PromptSettings):
            longest = settings.prompts.max_prompt + settings.sampling.max_tokens
            return Rows(longest, settings.prompts.too_long, bad_rows=settings.prompts.bad_rows)
        assert isinstance(settings, FileSettings | SelfPlaySettings)
        return Rows(settings.data.max_length, settings.data.too_long, bad_rows=settings.data.bad_rows)


CORPUS = AuxData("corpus", "text", "plain documents for an auxiliary language-modelling loss; empty: none")
DEMONSTRATIONS = AuxData(
    "demonstrations", "demonstrations", "demonstrations to keep likely beside the data; empty: none"
)
ROUND_DEMONSTRATIONS = AuxData(
    "demonstrations",
    "demonstrations",
    "demonstrations that join the responses of every round, scored like them; empty: none",
)
