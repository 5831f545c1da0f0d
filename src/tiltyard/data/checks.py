"""Checks of preference data before training: duplicates, contradictions, leaks, length bias."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any

import numpy as np

from tiltyard.data.keys import answer_key, content_key, near_key, prompt_key, quality_of
from tiltyard.numerals import plural
from tiltyard.stats.correlation import kendall_tau_b
from tiltyard.stats.intervals import wilson
from tiltyard.types import Group, ranks_of

_EXAMPLES = 5
_NEARLY = "but for white space, case, invisible characters or Unicode form"
_PLACES = 100  # of bad rows with one reason that are shown


@dataclass(frozen=True)
class LengthBias:
    """Comparison of the best and the worst response of each group that ranks them.

    Lengths are means, in tokens (None if any answer is unencoded) and in characters.

    `longer`: share of the groups of unequal length (in characters) where the best answer is the longer one, with its
    95% Wilson interval. `tau`: mean Kendall tau-b of quality and length over the `tau_groups` groups of 3 and more
    answers where it exists; 1 means that the longer answer is always the better one.
    """

    compared: int
    chosen_tokens: float | None
    rejected_tokens: float | None
    chosen_chars: float
    rejected_chars: float
    unequal: int
    longer: float | None
    longer_interval: tuple[float, float]
    tau: float | None
    tau_groups: int


@dataclass(frozen=True)
class CheckReport:
    """Counts over groups; `examples` holds the `file:line` of the first findings of each kind.

    `duplicates`: groups whose prompt, answers and verdict all occurred before. `repeated_prompts`: whose prompt did.
    `contradictions`: groups of the same prompt and answers as an earlier one, with another order.
    `held_out_overlap`: groups of the held-out split whose prompt (for documents: text) also is in the training split;
    `held_out_near`: others whose prompt is but for white space, case, invisible characters or its Unicode form.
    `ties`: groups with two answers judged equal. `identical`: groups with two answers of the same text.
    `empty`, `truncated`: answers without words, answers cut by a token limit.
    `rows`, `bad`: rows of the files that were read, and the places of all those that cannot be used, by the reason.
    `breaks_off`: the error of a file that cannot be read to its end.
    `commonest`: of how many different prompts the commonest answer is a (best) answer, and how it begins. One answer
    for many questions is a template, a bug, or a string that fools the judge.
    `facts`: rows by what they have beyond their format's own fields (system prompts, weights, tool calls, ...).
    """

    groups: int
    responses: int
    prompts: int
    duplicates: int
    contradictions: int
    repeated_prompts: int
    held_out: int | None
    held_out_overlap: int
    ties: int
    identical: int
    empty: int
    truncated: int
    commonest: tuple[int, str]
    length: LengthBias | None
    examples: dict[str, tuple[str, ...]]
    held_out_near: int = 0
    facts: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    bad: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    breaks_off: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if every row could be read and used."""
        return not self.bad and not self.breaks_off

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-ready values."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Formats the report for people, one fact a line, findings with their first `file:line`."""
        found = [
            f"{plural(self.groups, 'group')}, {plural(self.responses, 'answer')}, "
            f"{plural(self.prompts, 'different prompt')}"
        ]
        found += _bad_lines(self.rows, self.bad)
        for error in self.breaks_off:
            found += f"not read to the end: {error}".splitlines()
        if self.held_out is not None:
            shared = f"{self.held_out:,} held-out groups, {self.held_out_overlap:,} share a prompt with training"
            near = f", {self.held_out_near:,} more nearly ({_NEARLY})" if self.held_out_near else ""
            found.append(shared + near)
        names = {
            "duplicates": "duplicate groups",
            "contradictions": "groups that contradict an earlier one",
            "ties": "groups with ties",
            "identical": "groups with two identical answers",
            "empty": "empty answers",
            "truncated": "answers cut by the token limit",
        }
        for key, name in names.items():
            places = ", ".join(self.examples.get(key, ()))
            found.append(f"{getattr(self, key):,} {name}" + (f", such as {places}" if places else ""))
        for kind, name in (("held_out_overlap", "overlap"), ("held_out_near", "near overlap")):
            if getattr(self, kind):
                found.append(f"  held-out {name} at {', '.join(self.examples.get(kind, ()))}")
        prompts, start = self.commonest
        if prompts >= max(_EXAMPLES, self.prompts / 50):
            found.append(
                f"one and the same answer is the (best) answer to {plural(prompts, 'different prompt')}: {start!r}..."
            )
        found += [f"{count:,} {fact}" for fact, count in self.facts.items()]
        return found + (_length_lines(self.length) if self.length else [])


def check_data(groups: Iterable[Group], held_out: Iterable[Group] | None = None) -> CheckReport:
    """Finds duplicates inside and between splits, ties, empty and truncated responses, and length bias.

    Memory holds some 64 bytes a group, whatever its texts: they are compared by 64-bit hashes, of which two among a
    million differing texts are equal once in 30 million data sets.

    Args:
        groups: a list, or an iterable that can be iterated twice: findings are looked up in a second pass.
    """
    scan = _Scan(near=held_out is not None)
    for group in groups:
        scan.add(group)
    repeated = _repeated(scan.verdicts)
    indices = {
        "duplicates": np.flatnonzero(repeated),
        "contradictions": np.flatnonzero(_repeated(scan.contents) & ~repeated),
    }
    answer, prompts = scan.commonest()
    shown = {int(i) for found in indices.values() for i in found[:_EXAMPLES]} | ({answer[0]} if prompts else set())
    at = _select(groups, shown)
    examples = {kind: tuple(_where(at[int(i)]) for i in found[:_EXAMPLES]) for kind, found in indices.items()}
    held, leaks = _overlap(scan, held_out)
    examples |= {kind: tuple(found) for kind, found in (scan.examples | leaks.examples).items()}
    return CheckReport(
        groups=len(scan.prompts),
        responses=scan.responses,
        prompts=len(scan.prompts) - int(_repeated(scan.prompts).sum()),
        duplicates=len(indices["duplicates"]),
        contradictions=len(indices["contradictions"]),
        repeated_prompts=int(_repeated(scan.prompts).sum()),
        held_out=held,
        held_out_overlap=leaks.counts["held_out_overlap"],
        held_out_near=leaks.counts["held_out_near"],
        ties=scan.counts["ties"],
        identical=scan.counts["identical"],
        empty=scan.counts["empty"],
        truncated=scan.counts["truncated"],
        commonest=(prompts, at[answer[0]].responses[answer[1]].text[:60]) if prompts else (0, ""),
        length=scan.length.bias(),
        examples={kind: found for kind, found in examples.items() if found},
    )


class _Found:
    """Counts of findings, and the places of the first of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def note(self, kind: str, group: Group) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= _EXAMPLES:
            self.examples.setdefault(kind, []).append(_where(group))


class _Scan(_Found):
    """One pass over the groups: hashes for finding duplicates, and counts of per-group findings."""

    def __init__(self, near: bool) -> None:
        super().__init__()
        self.near = array("q") if near else None  # prompts without what a reader does not see
        self.prompts, self.contents, self.verdicts = (array("q") for _ in range(3))
        self.best, self.best_prompt = array("q"), array("q")  # the best responses, each with its prompt
        self.owner, self.branch = array("q"), array("B")  # and their position: group, index of the response
        self.responses = 0
        self.length = _Lengths()

    def add(self, group: Group) -> None:
        prompt, answers, verdict = content_key(group)
        quality = quality_of(group)
        self.prompts.append(hash(prompt))
        if self.near is not None:
            self.near.append(hash(near_key(group)))
        self.contents.append(hash((prompt, answers)))
        self.verdicts.append(hash((prompt, answers, verdict)))
        values = quality or (0.0,) * len(group.responses)
        for number, (response, value) in enumerate(zip(group.responses, values, strict=True)):
            if value == max(values) and response.text:
                self.best.append(hash(response.text))
                self.best_prompt.append(self.prompts[-1])
                self.owner.append(len(self.prompts) - 1)
                self.branch.append(number)
        self.responses += len(group.responses)
        self._alone(group)
        self.length.add(group, quality)

    def _alone(self, group: Group) -> None:
        judged = ranks_of(group.preference) or group.scores
        if judged is not None and len(set(judged)) < len(judged):
            self.note("ties", group)
        if len(set(map(answer_key, group.responses))) < len(group.responses):
            self.note("identical", group)
        for response in group.responses:
            if not response.text.strip() and len(response.ids) <= 1:
                self.note("empty", group)
            if response.finish == "length":
                self.note("truncated", group)

    def commonest(self) -> tuple[tuple[int, int], int]:
        """Returns ((group, response) of the first occurrence of the commonest best response, number of its prompts)."""
        if not self.best:
            return (0, 0), 0
        pairs = np.stack([np.asarray(self.best), np.asarray(self.best_prompt)], axis=1)
        _, kept = np.unique(pairs, axis=0, return_index=True)
        kept.sort()
        _, first, counts = np.unique(pairs[kept, 0], return_index=True, return_counts=True)
        index = int(kept[first[counts == counts.max()].min()])
        return (self.owner[index], self.branch[index]), int(counts.max())


def _repeated(keys: array[int]) -> np.ndarray:
    """Returns a mask of the keys that occurred before."""
    again = np.ones(len(keys), dtype=bool)
    again[np.unique(np.asarray(keys), return_index=True)[1]] = False
    return again


def _select(groups: Iterable[Group], indices: set[int]) -> dict[int, Group]:
    """Returns the groups with these indices."""
    if isinstance(groups, Sequence):
        return {i: groups[i] for i in indices}
    return {i: group for i, group in enumerate(islice(groups, max(indices, default=-1) + 1)) if i in indices}


def _overlap(scan: _Scan, held_out: Iterable[Group] | None) -> tuple[int | None, _Found]:
    """Returns (number of held-out groups or None, those whose prompt is in the training split)."""
    found = _Found()
    if held_out is None or scan.near is None:
        return None, found
    prompts, near, count = np.unique(np.asarray(scan.prompts)), np.unique(np.asarray(scan.near)), 0
    for group in held_out:
        count += 1
        if _among(prompts, hash(prompt_key(group))):
            found.note("held_out_overlap", group)
        elif _among(near, hash(near_key(group))):
            found.note("held_out_near", group)
    return count, found


def _among(known: np.ndarray, key: int) -> bool:
    at = int(np.searchsorted(known, key))
    return at < len(known) and bool(known[at] == key)


def _where(group: Group) -> str:
    return group.origin or group.prompt.id


class _Lengths:
    """Sums over best and worst answers."""

    def __init__(self) -> None:
        self.compared = self.unequal = self.wins = 0
        self.tokens, self.chars = [0, 0], [0, 0]  # of the best answers, of the worst
        self.encoded = True
        self.taus = array("d")

    def add(self, group: Group, quality: tuple[float, ...] | None) -> None:
        if quality is None or len(set(quality)) < 2:
            return
        order = sorted(range(len(quality)), key=lambda i: quality[i])
        sides = group.responses[order[-1]], group.responses[order[0]]
        self.compared += 1
        for i, response in enumerate(sides):
            self.tokens[i] += len(response.ids)
            self.chars[i] += len(response.text)
            self.encoded &= bool(response.ids)
        best, worst = (len(r.text) for r in sides)
        self.unequal += best != worst
        self.wins += best > worst
        if len(quality) > 2:
            tau = kendall_tau_b(quality, [float(len(r.text)) for r in group.responses])
            if not math.isnan(tau):
                self.taus.append(tau)

    def bias(self) -> LengthBias | None:
        n = self.compared
        if not n:
            return None
        return LengthBias(
            compared=n,
            chosen_tokens=self.tokens[0] / n if self.encoded else None,
            rejected_tokens=self.tokens[1] / n if self.encoded else None,
            chosen_chars=self.chars[0] / n,
            rejected_chars=self.chars[1] / n,
            unequal=self.unequal,
            longer=self.wins / self.unequal if self.unequal else None,
            longer_interval=wilson(self.wins, self.unequal),
            tau=fmean(self.taus) if self.taus else None,
            tau_groups=len(self.taus),
        )


def _bad_lines(rows: int, bad: Mapping[str, Sequence[str]]) -> list[str]:
    if not bad:
        return []
    found = [
        f"{sum(map(len, bad.values())):,} of {plural(rows, 'row')} cannot be used (bad_rows=drop leaves them out):"
    ]
    for reason, places in bad.items():
        more = f" and {len(places) - _PLACES:,} more (--json lists all)" if len(places) > _PLACES else ""
        found.append(f"  {len(places):,} x {reason}: {', '.join(places[:_PLACES])}{more}")
    return found


def _length_lines(bias: LengthBias) -> list[str]:
    means = f"mean length of the best answer {bias.chosen_chars:.0f} characters, of the worst {bias.rejected_chars:.0f}"
    if bias.chosen_tokens is not None:
        means += f" ({bias.chosen_tokens:.0f} and {bias.rejected_tokens:.0f} tokens)"
    found = [means]
    if bias.longer is not None:
        low, high = bias.longer_interval
        found.append(
            f"the best answer is the longer one in {bias.longer:.1%} of {plural(bias.unequal, 'group')} "
            f"(95% interval {low:.1%} to {high:.1%})" + (": length bias" if low > 0.5 or high < 0.5 else "")
        )
    if bias.tau is not None:
        found.append(f"Kendall tau of quality and length {bias.tau:+.2f}, mean of {plural(bias.tau_groups, 'ranking')}")
    return found
