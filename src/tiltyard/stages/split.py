"""The stage `split`: rows to train on, held-out rows of other prompts, and those prompts."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tiltyard.data import BadRows, Kind, parsed_rows, read_rows
from tiltyard.data.clean import kind_of, parse_any
from tiltyard.data.held_out import part_by_prompt
from tiltyard.data.keys import near_key
from tiltyard.data.row import Row
from tiltyard.errors import DataError
from tiltyard.files import atomic_write
from tiltyard.inputs.settings import BadRowsSetting
from tiltyard.numerals import plural
from tiltyard.records import Settings
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.types import Group

_FIRST = 200  # rows whose fields show the kind of the file


class SplitSettings(Settings):
    data: Annotated[str, Field(description="rows of any kind: a file, stage/file, hub name")]
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    kind: Annotated[
        Kind | Literal["auto"], Field(description="kind of the rows; auto: the one that most of the first 200 fit")
    ] = "auto"
    bad_rows: BadRowsSetting = "error"
    held_out: Annotated[
        float, Field(gt=0, lt=1, description="share of the prompts whose rows are kept from training")
    ] = 0.1
    held_out_prompts: Annotated[int, Field(ge=0, description="held-out prompts at most; 0: no limit")] = 100
    held_out_rows: Annotated[
        int, Field(ge=0, description="held-out rows at most, as many prompts as can be; 0: no limit")
    ] = 400
    limit: Annotated[int, Field(ge=0, description="rows to train on, a sample of all; 0: all")] = 0
    seed: Annotated[int, Field(ge=0, description="of which prompts are held out and which rows are used")] = 0


def run(context: StageContext, settings: SplitSettings) -> dict[str, Any]:
    """Writes train.jsonl, held_out.jsonl and prompts.jsonl (one row a held-out prompt), and reports their sizes."""
    path, split = context.resolve(settings.data, want=""), settings.split or None
    kind = _kind(path, split) if settings.kind == "auto" else settings.kind
    bad = BadRows(settings.bad_rows)
    rows = list(parsed_rows(path, partial(parse_any, kind=kind), bad, split=split))
    keys = [near_key(group) for _, group in rows]
    parts = part_by_prompt(
        keys, settings.held_out, settings.held_out_prompts, settings.held_out_rows, settings.limit, settings.seed
    )
    if not parts.held_out:
        raise DataError(
            "there is only one prompt, so none can be held out",
            where=settings.data,
            got=f"{len(rows):,} rows of one prompt",
            expected="at least two prompts",
            fix="add rows of other prompts, or train without a measurement: tiltyard train",
        )
    for name, places in (("train", parts.train), ("held_out", parts.held_out)):
        _write(context.folder / f"{name}.jsonl", [rows[place][0].value for place in places])
    _write(context.folder / "prompts.jsonl", [_prompt(*rows[place], kind) for place in parts.prompts])
    out = {keys[place] for place in parts.prompts}
    left = sum(key not in out for key in keys)
    sampled = f", a sample of {left:,}" if len(parts.train) < left else ""
    lines = [
        f"{plural(len(parts.train), 'row')} to train on{sampled}, read as {kind}",
        f"{plural(len(parts.held_out), 'row')} of {plural(len(parts.prompts), 'other prompt')} held out "
        f"(of {plural(len(set(keys)), 'prompt')} in all, seed {settings.seed})",
    ]
    context.report("data", [*lines, *bad.lines()])
    sizes = {"train": len(parts.train), "held_out": len(parts.held_out), "prompts": len(parts.prompts)}
    return {**sizes, "read": bad.rows, "kind": kind}


def _kind(path: str | Path, split: str | None) -> Kind:
    return kind_of(list(islice(read_rows(path, split=split, on_bad=lambda _: None), _FIRST)))


def _prompt(row: Row, group: Group, kind: Kind) -> dict[str, Any]:
    """The prompt of a row as a row of its own, with the row's further fields: a reward may read them."""
    if kind == "prompts":
        return dict(row.value)
    asked = {key: value for key, value in group.prompt.to_row().items() if value}
    return asked | ({"meta": dict(group.prompt.meta)} if group.prompt.meta else {})


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


register(
    Stage(
        "split",
        run,
        SplitSettings,
        "Rows to train on, rows of other prompts to measure on, and those prompts.",
        ("data",),
    )
)
