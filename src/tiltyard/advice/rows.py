"""The data: their kind, number, prompts, lengths in the model's tokens, and what is odd about them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from tiltyard.data import BadRows, Chat, CheckReport, Kind, check_data, parsed_rows
from tiltyard.data.clean import clean_rows, parse_any
from tiltyard.data.keys import near_key
from tiltyard.errors import DataError, TiltyardError
from tiltyard.numerals import plural, verb
from tiltyard.runs import existing_path
from tiltyard.types import Group

REFUSED = "the chat template refuses them"
FIRST = 200  # rows whose fields show the kind of the file
COUNTED = 20_000  # rows whose tokens are counted; of more these are a sample
BIASED = 0.6  # share of longer better answers from which on length is a large part of the preference
REPEATED = 20  # an answer of more prompts than this is no answer (the default of the stage `clean`)


class Lengths(NamedTuple):
    """Tokens of a row: its prompt, its longest answer, and all of it packed (the prompt once)."""

    prompt: int
    answer: int
    packed: int

    @property
    def longest(self) -> int:
        """Prompt and longest answer together."""
        return self.prompt + self.answer


class RowFacts(NamedTuple):
    """Data as they are, and after cleaning.

    Args:
        rows: rows of the file, `bad` of which cannot be used.
        groups: rows that are left after cleaning, without token ids.
        keys: of each such row, equal for rows of one prompt.
        lengths: of each such row.
        report: of `check`, on the rows before cleaning.
        dropped: rows that cleaning takes out, by reason.
        repeated: (how it begins, prompts) of answers that are given to many prompts.
        answers: the largest number of answers of a row.
    """

    kind: Kind
    rows: int
    bad: int
    groups: Sequence[Group]
    keys: Sequence[object]
    lengths: Sequence[Lengths]
    report: CheckReport
    dropped: dict[str, int]
    repeated: Sequence[tuple[str, int]]
    answers: int

    @property
    def prompts(self) -> int:
        """Different prompts after cleaning."""
        return len(set(self.keys))

    def words(self) -> list[str]:
        """Lines for people."""
        names = {"comparisons": "pairs" if self.answers == 2 else "rankings", "labelled": "labelled answers"}
        lines = [
            f"{plural(self.rows, 'row')} of {names.get(self.kind, self.kind)}, "
            f"{plural(self.report.prompts, 'different prompt')}"
        ]
        if self.bad:
            lines.append(
                f"{plural(self.bad, 'row')} cannot be used and {verb(self.bad, 'is', 'are')} left out "
                "(tiltyard check lists them)"
            )
        for start, prompts in self.repeated[:2]:
            lines.append(f"one and the same answer is given to {plural(prompts, 'prompt')}: {_short(start)}")
        if self.dropped:
            lines += [f"{plural(count, 'row')} left out: {reason}" for reason, count in self.dropped.items()]
            are = verb(len(self.groups), "is", "are")
            lines.append(f"{plural(len(self.groups), 'row')} of {plural(self.prompts, 'prompt')} {are} left")
        bias = self.report.length
        if bias is not None and bias.longer is not None:
            learnt = ": length is learnt with the rest" if bias.longer_interval[0] > BIASED else ""
            lines.append(f"the better answer is the longer one in {bias.longer:.0%} of the rows{learnt}")
        packed = sorted(one.packed for one in self.lengths)
        lines.append(f"tokens a row: {packed[len(packed) // 2]:,} (median), {packed[-1]:,} at most")
        return lines


def look_at_rows(source: str, kind: Kind, chat: Chat, split: str = "", *, clean: bool = True) -> RowFacts:
    """Reads all rows as training will, and counts the model's tokens.

    Args:
        kind: as which they are read. clean: whether they are cleaned first.

    Raises:
        DataError: no file, or no row that can be used.
    """
    path = existing_path(source)
    place = str(source if path is None else path)
    if place.endswith(".groups.jsonl"):
        raise DataError(
            "a file of sampled groups",
            where=source,
            got=".groups.jsonl",
            expected="rows with texts",
            fix="name the stages that read it in a recipe of your own (docs/recipes.md)",
        )
    bad = BadRows("drop")
    rows = list(parsed_rows(place, partial(parse_any, kind=kind), bad, split=split or None))
    groups = [group for _, group in rows]
    report = check_data(groups)
    dropped: dict[str, int] = {}
    repeated: list[tuple[str, int]] = []
    if clean and kind in ("comparisons", "labelled", "demonstrations"):
        cleaned = clean_rows(rows, kind, REPEATED)
        groups, dropped, repeated = cleaned.groups, dict(cleaned.dropped), cleaned.repeated
        if not groups:
            raise DataError(
                "nothing is left of the data after cleaning",
                where=source,
                got="; ".join(f"{count:,} x {reason}" for reason, count in dropped.items()),
                expected="rows with answers of their own",
                fix="correct the file (tiltyard check shows what it holds), or keep everything: --no-clean",
            )
    most = max(len(group.responses) for group in groups)
    measured = [(group, length) for group, length in zip(groups, _lengths(groups, chat, source), strict=True) if length]
    if len(measured) < len(groups):
        dropped[REFUSED] = len(groups) - len(measured)
    kept, lengths = [group for group, _ in measured], [length for _, length in measured]
    keys = [near_key(group) for group in kept]
    return RowFacts(kind, bad.rows, bad.count, kept, keys, lengths, report, dropped, repeated, most)


def _lengths(groups: Sequence[Group], chat: Chat, source: str) -> list[Lengths | None]:
    """Tokens of each row, None where the template refuses it; of many rows those of every n-th, for its neighbours."""
    every = -(-len(groups) // COUNTED)
    chosen = groups[::every]
    found: list[Lengths | None] = []
    refused: TiltyardError | None = None
    for start in range(0, len(chosen), 1024):
        block = chosen[start : start + 1024]
        try:
            found += map(_length, chat.encode_groups(block))
        except DataError:
            for group in block:
                try:
                    found.append(_length(chat.encode_group(group)))
                except DataError as error:
                    refused = refused or error
                    found.append(None)
    if refused is not None and not any(found):
        raise DataError(
            "the chat template of the model refuses every row",
            where=source,
            got=" ".join(refused.what.split()),
            expected="rows that the template can show",
            fix=refused.fix or "take a model whose template takes such rows (system turns, tools)",
        )
    return found if every == 1 else [found[min(place // every, len(found) - 1)] for place in range(len(groups))]


def _length(group: Group) -> Lengths:
    answers = [len(r.ids) for r in group.responses] or [0]
    return Lengths(len(group.prompt.ids), max(answers), len(group.prompt.ids) + sum(answers))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line[:40] + "...") if len(line) > 40 else repr(line)
