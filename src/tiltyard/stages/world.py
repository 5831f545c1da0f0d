"""The embedded world as a stage: writes its files, so that every other stage reads them like anybody's data."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tiltyard.config import Settings
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.world import make_world


class WorldSettings(Settings):
    seed: Annotated[int, Field(ge=0, description="of the whole world and every file")] = 0


def run(context: StageContext, settings: WorldSettings) -> dict[str, Any]:
    """Writes corpus, demonstrations, prompts and held-out files."""
    return {"rows": make_world(settings.seed).write(context.folder)}


register(
    Stage("world", run, WorldSettings, "The embedded demo world: corpus, demonstrations, prompts, held-out prompts.")
)
