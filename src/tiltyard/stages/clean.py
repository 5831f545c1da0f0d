"""The stage `clean`: data without what `check` finds in them."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tiltyard.data import BadRows, Kind, check_data, parsed_rows, read_rows
from tiltyard.data.clean import clean_rows, kind_of, parse_any
from tiltyard.data.keys import near_key
from tiltyard.errors import DataError
from tiltyard.files import atomic_write
from tiltyard.inputs.settings import BadRowsSetting
from tiltyard.numerals import plural
from tiltyard.records import Settings
from tiltyard.stages.base import Stage, StageContext, register

_FIRST = 200  # rows whose fields show the kind of the file
_LEFT = ("contradict", "ties", "two identical", "empty answers", "nearly")  # what `check` would still find


class CleanSettings(Settings):
    data: Annotated[
        str, Field(description="demonstrations, comparisons or labelled rows: a file, stage/file, hub name")
    ]
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    kind: Annotated[
        Kind | Literal["auto"], Field(description="kind of the rows; auto: the one that most of the first 200 fit")
    ] = "auto"
    bad_rows: BadRowsSetting = "error"
    held_out: Annotated[
        str, Field(description="rows whose prompt is in this file too (as `check` compares them) are removed")
    ] = ""
    max_prompts: Annotated[
        int, Field(ge=0, description="an answer given to more different prompts than this is removed; 0 keeps it")
    ] = 20


def run(context: StageContext, settings: CleanSettings) -> dict[str, Any]:
    """Writes rows.jsonl and reports what was removed, and what `check` finds in the rest."""
    path, split = context.resolve(settings.data, want=""), settings.split or None
    if str(path).endswith(".groups.jsonl"):
        fix = "give it rows; of sampled groups the stages that read them leave out what they cannot use"
        raise DataError("a file of sampled groups", where=settings.data, expected="rows with texts", fix=fix)
    kind = _kind(path, split) if settings.kind == "auto" else settings.kind
    bad = BadRows(settings.bad_rows)
    rows = parsed_rows(path, partial(parse_any, kind=kind), bad, split=split)
    cleaned = clean_rows(rows, kind, settings.max_prompts, _held_out(context, settings, kind))
    if not cleaned.rows:
        raise DataError(
            "nothing is left", where=settings.data, got=f"{bad.rows:,} rows, all dropped", fix="raise max_prompts"
        )
    with atomic_write(context.folder / "rows.jsonl") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in cleaned.rows)
    lines = [f"{len(cleaned.rows):,} of {plural(bad.rows, 'row')} kept, read as {kind}"]
    lines += [f"{count:,} dropped: {reason}" for reason, count in sorted(cleaned.dropped.items())]
    lines += bad.lines()
    lines += [f"answer to {plural(prompts, 'prompt')}: {start!r}..." for start, prompts in cleaned.repeated[:5]]
    left = check_data(cleaned.groups).lines()
    lines += [f"kept: {line}" for line in left if not line.startswith("0 ") and any(word in line for word in _LEFT)]
    context.report("data", lines)
    dropped = {**cleaned.dropped, **{reason: len(places) for reason, places in bad.places.items()}}
    return {
        "rows": len(cleaned.rows),
        "read": bad.rows,
        "kind": kind,
        "dropped": dropped,
        "repeated": len(cleaned.repeated),
    }


def _kind(path: str | Path, split: str | None) -> Kind:
    rows = read_rows(path, split=split, on_bad=lambda _: None)
    return kind_of(list(islice(rows, _FIRST)))


def _held_out(context: StageContext, settings: CleanSettings, kind: Kind) -> frozenset[Any]:
    if not settings.held_out:
        return frozenset()
    path = context.resolve(settings.held_out, want="")
    rows = parsed_rows(path, partial(parse_any, kind=kind), BadRows(settings.bad_rows))
    return frozenset(near_key(group) for _, group in rows)


register(
    Stage(
        "clean",
        run,
        CleanSettings,
        "Data without answers given to everything, repetitions and held-out prompts.",
        ("data", "held_out"),
    )
)
