"""The pieces of advice: settings with reasons, stages, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A setting's value, and in a sentence why; "" where the value was given by the user."""

    value: Any
    why: str = ""


@dataclass
class StageAdvice:
    """A stage of the recipe: its name, kind, settings in order, a sentence on what it does, and seconds it takes."""

    name: str
    kind: str
    does: str
    settings: dict[str, Choice] = field(default_factory=dict)
    seconds: float = 0.0

    def set(self, key: str, value: Any, why: str = "") -> None:
        """Sets one setting."""
        self.settings[key] = Choice(value, why)

    def to_dict(self) -> dict[str, Any]:
        """The stage as JSON-ready values."""
        settings = {key: {"value": one.value, "why": one.why} for key, one in self.settings.items()}
        return {"name": self.name, "kind": self.kind, "does": self.does, "settings": settings, "seconds": self.seconds}
