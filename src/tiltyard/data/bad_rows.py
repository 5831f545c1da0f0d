"""Rows that cannot be used: all of a source are collected, then refused together, or left out and counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tiltyard.data.formats import Kind, parse_row
from tiltyard.data.limit import Limit
from tiltyard.data.pair_labels import PairLabels, as_ranking
from tiltyard.data.read import Row, read_rows
from tiltyard.errors import DataError
from tiltyard.numerals import plural
from tiltyard.types import Group

BadRowRule = Literal["error", "drop"]

_EXAMPLES = 5  # places that a report names for a reason
_SHOWN = 10  # bad rows that an error names one by one


class BadRows:
    """The rows of one source that cannot be used.

    Args:
        rule: `error` refuses the source, with all of them in one error; `drop` leaves them out.

    Attributes:
        rows: read so far, good and bad.
        places: `file:line` of each bad row by the reason.
        drawn: a sentence on the rows that were drawn from the source; "": all, or the first.
    """

    def __init__(self, rule: BadRowRule = "error"):
        self.rule, self.rows, self.drawn = rule, 0, ""
        self.places: dict[str, list[str]] = {}
        self._first: list[DataError] = []

    def add(self, error: DataError) -> None:
        """Takes the error of one row."""
        self.places.setdefault(reason_of(error), []).append(error.where)
        if len(self._first) < _SHOWN:
            self._first.append(error)

    def told(self, sentence: str) -> None:
        """Takes the sentence on the rows that were drawn."""
        self.drawn = sentence

    @property
    def count(self) -> int:
        """Number of bad rows."""
        return sum(map(len, self.places.values()))

    def lines(self) -> list[str]:
        """Formats the counts for people, one reason a line with the first places; what was drawn before them."""
        return [self.drawn] * bool(self.drawn) + [
            f"dropped {len(places):,}: {reason}, such as {', '.join(places[:_EXAMPLES])}"
            for reason, places in self.places.items()
        ]

    @property
    def refused(self) -> bool:
        """True once the source will be refused: the rest of it is read for its errors alone."""
        return self.rule == "error" and bool(self._first)

    def settle(self, source: str) -> None:
        """Ends the reading of a source.

        Raises:
            DataError: there are bad rows and the rule is `error`, or there is no other row.
        """
        if self._first and (self.rule == "error" or self.count == self.rows):
            raise self._error(source)

    def _error(self, source: str) -> DataError:
        first, count = self._first[0], self.count
        drop = "leave them out with a count: bad_rows=drop" if count < self.rows else ""
        fix = "; or ".join(filter(None, (first.fix, drop)))
        if count == 1:
            return DataError(first.what, where=first.where, got=first.got, expected=first.expected, fix=fix)
        got = "\n            ".join(_one_line(error) for error in self._first)
        if count > len(self._first):
            reasons = "; ".join(f"{len(places):,} x {reason}" for reason, places in self.places.items())
            got += f"\n            and {count - len(self._first):,} more; in all: {reasons}"
        what = f"{count:,} of {plural(self.rows, 'row')} cannot be used"
        return DataError(what, where=source, got=got, expected=first.expected, fix=fix)


def reason_of(error: DataError) -> str:
    """Returns the reason under which a bad row is counted: what is wrong, whatever the position in a list."""
    return re.sub(r"\[\d+\]", "[...]", error.what)


def _one_line(error: DataError) -> str:
    got = "" if error.got is None else f" ({' '.join(str(error.got).split())[:80]})"
    return f"{error.where}: {error.what}{got}"


def parsed_rows(
    source: str | Path,
    parse: Kind | Callable[[Row], Group],
    bad: BadRows,
    *,
    split: str | None = None,
    limit: Limit = None,
) -> Iterator[tuple[Row, Group]]:
    """Reads and parses the rows of a source; those that cannot be used go to `bad`.

    Args:
        source, split, limit: as for `read_rows`.
        parse: the kind of the rows, or what parses one of them.
        bad: settled after the last row.

    Raises:
        DataError: bad rows, if they are refused, after the last row; a source that is missing, empty or damaged;
            labels of pairs that can be read in two ways, after the last row.
    """

    def unreadable(error: DataError) -> None:
        bad.rows += 1
        bad.add(error)

    labels, compared = PairLabels(), parse == "comparisons" or parse is parse_answers
    for row in read_rows(source, split=split, limit=limit, on_bad=unreadable, told=bad.told):
        bad.rows += 1
        try:
            group = parse_row(row, parse) if isinstance(parse, str) else parse(row)
        except DataError as error:
            bad.add(error)
        else:
            if compared:
                labels.take(row)
            yield row, group
    bad.settle(str(source))
    labels.check()


def parse_answers(row: Row) -> Group:
    """Parses a comparison, or `prompt` and `responses` without a preference."""
    row = as_ranking(row)
    responses = row.value.get("responses")
    if not isinstance(responses, list) or {"scores", "ranks", "shares"} & row.value.keys():
        return parse_row(row, "comparisons")
    ranked = Row({**row.value, "ranks": [1] * len(responses)}, row.where)  # parsed with all the checks of a ranking
    return replace(parse_row(ranked, "comparisons"), preference=None)
