"""The wish, and the kind of rows that it needs."""

from __future__ import annotations

from itertools import islice

from tiltyard.advice.request import Request
from tiltyard.advice.rows import FIRST
from tiltyard.data import Kind, read_rows
from tiltyard.data.clean import kind_of
from tiltyard.data.formats import parse_row
from tiltyard.errors import DataError
from tiltyard.runs import existing_path

OF_KIND: dict[str, str] = {"comparisons": "prefer", "labelled": "prefer", "demonstrations": "imitate"}
NEEDS: dict[str, tuple[Kind, ...]] = {
    "imitate": ("demonstrations", "comparisons"),
    "prefer": ("comparisons", "labelled"),
    "reward": ("prompts",),
    "judge": ("prompts",),
}
WORDS = {
    "imitate": "demonstrations (prompt and completion, or messages), or pairs, whose chosen answers are imitated",
    "prefer": "comparisons (prompt, chosen, rejected) or labelled answers (prompt, completion, label)",
    "reward": "rows with a prompt",
    "judge": "rows with a prompt",
}
RAREST = 0.5  # share of the first rows that must be of the kind


def settle(request: Request) -> tuple[str, Kind]:
    """Returns (the wish, the kind as which the rows are read).

    Raises:
        DataError: no such data, or rows of a kind that the wish cannot use.
    """
    path = existing_path(request.data)
    place = str(request.data if path is None else path)
    rows = list(islice(read_rows(place, split=request.split or None, on_bad=lambda _: None), FIRST))
    kind = kind_of(rows)
    want = request.want or ("reward" if request.reward and kind == "prompts" else "")
    want = want or ("judge" if request.judge else "") or OF_KIND.get(kind, "")
    if not want:
        raise _no_wish(request, kind)
    if want in ("reward", "judge"):
        fits = sum(_reads(row, "prompts") for row in rows)
        if fits > RAREST * len(rows):
            return want, "prompts"
    elif want == "imitate" and kind == "comparisons":
        return want, "demonstrations"
    elif kind in NEEDS[want]:
        return want, kind
    raise DataError(
        f"the data do not fit the wish to {_verb(want)}",
        where=request.data,
        got=f"rows of {kind}",
        expected=WORDS[want],
        fix=f"--want {OF_KIND[kind]} is what such rows are for"
        if kind in OF_KIND
        else "docs/data.md has the fields of each kind",
    )


def _verb(want: str) -> str:
    return {"reward": "raise a reward", "judge": "please a judge", "prefer": "prefer the better answers"}.get(
        want, want
    )


def _no_wish(request: Request, kind: str) -> DataError:
    if kind == "prompts":
        fix = "name what an answer is worth: --reward FILE.py:FUNCTION, a reward model, a rule, or --judge"
        got = "prompts without answers"
    else:
        fix = "continue pretraining on plain texts with: tiltyard train pretrain model=MODEL data=DATA"
        got = f"rows of {kind}"
    expected = "pairs, rankings, labelled answers, demonstrations; or prompts with a reward or a judge"
    return DataError(
        "the data alone do not show what is wanted", where=request.data, got=got, expected=expected, fix=fix
    )


def _reads(row: object, kind: Kind) -> bool:
    try:
        parse_row(row, kind)  # type: ignore[arg-type]
    except DataError:
        return False
    return True
