"""The stage `wordings`: several wordings of a right and of a wrong answer to prompts of the embedded world."""

from __future__ import annotations

import json
import random
from typing import Annotated, Any

from pydantic import Field

from tiltyard.errors import DataError
from tiltyard.feedback.simulated import seed_from
from tiltyard.files import atomic_write
from tiltyard.numerals import plural
from tiltyard.records import Settings
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.world.assistants import wordings
from tiltyard.world.gold import gold

WORDINGS = "wordings.jsonl"
RIGHT, WRONG = 0.7, 0.2  # gold of the right answers at least, of the wrong ones at most


class WordingsSettings(Settings):
    prompts: Annotated[str, Field(description="prompts of the embedded world")]
    k: Annotated[int, Field(ge=2, le=4, description="wordings of each answer at most")] = 4
    seed: Annotated[int, Field(ge=0, description="of the wordings")] = 0


def run(context: StageContext, settings: WordingsSettings) -> dict[str, Any]:
    """Writes wordings.jsonl: comparisons whose responses of rank 1 are right and of rank 2 wrong."""
    rows, path = 0, context.resolve(settings.prompts, want="")
    with open(path, encoding="utf-8") as source, atomic_write(context.folder / WORDINGS) as file:
        for number, line in enumerate(source):
            row = json.loads(line)
            meta = row.get("meta") or {}
            if "kind" not in meta:
                raise DataError(
                    "wordings are known of the embedded world alone", where=f"{settings.prompts}:{number + 1}"
                )
            right, wrong = wordings(meta, settings.k, random.Random(seed_from(settings.seed, "wordings", number)))
            right = [text for text in right if gold(meta, text).total >= RIGHT]
            wrong = [text for text in wrong if gold(meta, text).total <= WRONG]
            if len(right) < 2 or len(wrong) < 2:
                continue
            rows += 1
            ranks = [1] * len(right) + [2] * len(wrong)
            file.write(json.dumps({**row, "responses": right + wrong, "ranks": ranks}, ensure_ascii=False) + "\n")
    context.report("wordings", [f"of {rows:,} of {plural(number + 1, 'prompt')}"])
    return {"prompts": number + 1, "rows": rows}


register(
    Stage(
        "wordings",
        run,
        WordingsSettings,
        "Several wordings of a right and a wrong answer to prompts of the embedded world.",
        refers=("prompts",),
    )
)
