"""The stage `world`: writes the files of the embedded world, which other stages read like any data."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tiltyard.records import Settings
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.world import make_world, write_world


class WorldSettings(Settings):
    seed: Annotated[int, Field(ge=0, description="of the whole world and every file")] = 0
    documents: Annotated[int, Field(gt=0, description="documents of the corpus")] = 7000
    dialogues: Annotated[int, Field(gt=0, description="dialogues of the corpus, good and bad")] = 9000
    demonstrations: Annotated[int, Field(gt=0, description="demonstrations, good six times in ten")] = 1500
    prompts: Annotated[int, Field(gt=0, description="prompts for labelling and RL")] = 1600
    held_out: Annotated[int, Field(gt=0, description="prompts about entities kept out of the rest")] = 300
    tuning: Annotated[int, Field(gt=0, description="others of that kind, to choose settings on")] = 300


def run(context: StageContext, settings: WorldSettings) -> dict[str, Any]:
    """Writes corpus, demonstrations, prompts, held-out files and prompts to tune on."""
    sizes = settings.model_dump(exclude={"seed"})
    return {"rows": write_world(make_world(settings.seed), context.folder, **sizes)}


register(
    Stage("world", run, WorldSettings, "The embedded demo world: corpus, demonstrations, prompts, held-out prompts.")
)
