"""The stage `clean`: data without responses given to many prompts and without repeated rows."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field

from tiltyard.data import read_rows
from tiltyard.data.clean import clean_rows
from tiltyard.errors import DataError
from tiltyard.files import atomic_write
from tiltyard.records import Settings
from tiltyard.stages.base import Stage, StageContext, register


class CleanSettings(Settings):
    data: Annotated[
        str, Field(description="demonstrations, comparisons or labelled rows: a file, stage/file, hub name")
    ]
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    max_prompts: Annotated[
        int, Field(ge=0, description="an answer given to more different prompts than this is removed; 0 keeps it")
    ] = 20


def run(context: StageContext, settings: CleanSettings) -> dict[str, Any]:
    """Writes rows.jsonl and reports what was removed."""
    rows = list(read_rows(context.resolve(settings.data, want=""), split=settings.split or None))
    cleaned = clean_rows(rows, settings.max_prompts)
    if not cleaned.rows:
        raise DataError(
            "nothing is left", where=settings.data, got=f"{len(rows):,} rows, all dropped", fix="raise max_prompts"
        )
    with atomic_write(context.folder / "rows.jsonl") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in cleaned.rows)
    lines = [f"{len(cleaned.rows):,} of {len(rows):,} rows kept"]
    lines += [f"{count:,} dropped: {reason}" for reason, count in sorted(cleaned.dropped.items())]
    lines += [f"answer to {prompts:,} prompts: {start!r}..." for start, prompts in cleaned.repeated[:5]]
    context.report("data", lines)
    return {"rows": len(cleaned.rows), "read": len(rows), "dropped": cleaned.dropped, "repeated": len(cleaned.repeated)}


register(
    Stage("clean", run, CleanSettings, "Data without answers given to everything and without repetitions.", ("data",))
)
