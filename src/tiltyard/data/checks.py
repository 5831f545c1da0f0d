"""What is wrong, or merely worth knowing, about preference data before anyone trains on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tiltyard.rates import kendall_tau_b, wilson
from tiltyard.types import Group, Response

_EXAMPLES = 5


@dataclass(frozen=True)
class LengthBias:
    """Best against worst answer of each group that says which is which.

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
    """Counts over groups; `examples` holds the places of the first findings of each kind.

    `duplicates`: groups whose prompt, answers and verdict all occurred before. `repeated_prompts`: whose prompt did.
    `contradictions`: groups of the same prompt and answers as an earlier one, with another order.
    `held_out_overlap`: groups of the held-out split whose prompt (for documents: text) also is in the training split.
    `ties`: groups with two answers judged equal. `identical`: groups with two answers of the same text.
    `empty`, `truncated`: answers without words, answers cut by a token limit.
    `commonest`: of how many different prompts the commonest answer is a (best) answer, and how it begins. One answer
    for many questions is a template, a bug, or a string that fools the judge.
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

    def to_dict(self) -> dict[str, Any]:
        """For programs: JSON-ready."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """For people: one fact a line, findings with where to look."""
        found = [f"{self.groups:,} groups, {self.responses:,} answers, {self.prompts:,} different prompts"]
        if self.held_out is not None:
            found.append(f"{self.held_out:,} held-out groups, {self.held_out_overlap:,} share a prompt with training")
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
        if self.held_out_overlap:
            found.append(f"  held-out overlap at {', '.join(self.examples.get('held_out_overlap', ()))}")
        prompts, start = self.commonest
        if prompts >= max(_EXAMPLES, self.prompts / 50):
            found.append(f"one and the same answer is the (best) answer to {prompts:,} different prompts: {start!r}...")
        return found + (_length_lines(self.length) if self.length else [])


def check_data(groups: Sequence[Group], held_out: Sequence[Group] | None = None) -> CheckReport:
    """Look for duplicates inside and between splits, ties, empty and truncated answers, and length bias."""
    places: dict[str, list[str]] = {}

    def note(kind: str, group: Group) -> None:
        places.setdefault(kind, []).append(group.origin or group.prompt.id)

    prompts: set[Any] = set()
    seen: dict[Any, set[Any]] = {}  # prompt and answers -> verdicts given on them
    repeated = 0
    for group in groups:
        prompt = _prompt_key(group)
        repeated += prompt in prompts
        prompts.add(prompt)
        answers, verdict = _content_key(group)
        earlier = seen.setdefault((prompt, answers), set())
        if earlier:
            note("duplicates" if verdict in earlier else "contradictions", group)
        earlier.add(verdict)
        judged = group.ranks or group.scores
        if judged is not None and len(set(judged)) < len(judged):
            note("ties", group)
        if len({r.text or r.ids for r in group.responses}) < len(group.responses):
            note("identical", group)
        for response in group.responses:
            if not response.text.strip() and len(response.ids) <= 1:
                note("empty", group)
            if response.finish == "length":
                note("truncated", group)
    for group in held_out or ():
        if _prompt_key(group) in prompts:
            note("held_out_overlap", group)
    return CheckReport(
        groups=len(groups),
        responses=sum(len(g.responses) for g in groups),
        prompts=len(prompts),
        duplicates=len(places.get("duplicates", ())),
        contradictions=len(places.get("contradictions", ())),
        repeated_prompts=repeated,
        held_out=None if held_out is None else len(held_out),
        held_out_overlap=len(places.get("held_out_overlap", ())),
        ties=len(places.get("ties", ())),
        identical=len(places.get("identical", ())),
        empty=len(places.get("empty", ())),
        truncated=len(places.get("truncated", ())),
        commonest=_commonest(groups),
        length=_length_bias(groups),
        examples={kind: tuple(found[:_EXAMPLES]) for kind, found in places.items()},
    )


def _commonest(groups: Sequence[Group]) -> tuple[int, str]:
    asked: dict[str, set[Any]] = {}
    for group in groups:
        quality = _quality(group) or (0.0,) * len(group.responses)
        for response, value in zip(group.responses, quality, strict=True):
            if value == max(quality) and response.text:
                asked.setdefault(response.text, set()).add(_prompt_key(group))
    text = max(asked, key=lambda t: len(asked[t]), default="")
    return len(asked.get(text, ())), text[:60]


def _prompt_key(group: Group) -> Any:
    prompt = group.prompt
    if prompt.messages:
        return prompt.messages
    # the prompt of a document is empty: what may leak between splits is its text
    return prompt.text or tuple(r.text or r.ids for r in group.responses)


def _content_key(group: Group) -> tuple[Any, Any]:
    """The answers in an order that does not depend on the row's, and which of them is at least as good as which."""
    texts = [r.text or str(r.ids) for r in group.responses]
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    quality = _quality(group)
    verdict = None if quality is None else tuple(sum(q > quality[i] for q in quality) for i in order)
    return tuple(texts[i] for i in order), verdict


def _quality(group: Group) -> tuple[float, ...] | None:
    """Higher is better; ranks go before scores, for they are what somebody decided."""
    return group.scores if group.ranks is None else tuple(-float(rank) for rank in group.ranks)


def _length_bias(groups: Sequence[Group]) -> LengthBias | None:
    pairs: list[tuple[Response, Response]] = []
    taus = []
    for group in groups:
        quality = _quality(group)
        if quality is None or len(set(quality)) < 2:
            continue
        order = sorted(range(len(quality)), key=lambda i: quality[i])
        pairs.append((group.responses[order[-1]], group.responses[order[0]]))
        if len(quality) > 2:
            tau = kendall_tau_b(quality, [float(len(r.text)) for r in group.responses])
            taus += [] if math.isnan(tau) else [tau]
    if not pairs:
        return None
    unequal = [(len(a.text), len(b.text)) for a, b in pairs if len(a.text) != len(b.text)]
    wins = sum(a > b for a, b in unequal)
    encoded = all(a.ids and b.ids for a, b in pairs)
    return LengthBias(
        compared=len(pairs),
        chosen_tokens=fmean(len(a.ids) for a, _ in pairs) if encoded else None,
        rejected_tokens=fmean(len(b.ids) for _, b in pairs) if encoded else None,
        chosen_chars=fmean(len(a.text) for a, _ in pairs),
        rejected_chars=fmean(len(b.text) for _, b in pairs),
        unequal=len(unequal),
        longer=wins / len(unequal) if unequal else None,
        longer_interval=wilson(wins, len(unequal)),
        tau=fmean(taus) if taus else None,
        tau_groups=len(taus),
    )


def _length_lines(bias: LengthBias) -> list[str]:
    means = f"mean length of the best answer {bias.chosen_chars:.0f} characters, of the worst {bias.rejected_chars:.0f}"
    if bias.chosen_tokens is not None:
        means += f" ({bias.chosen_tokens:.0f} and {bias.rejected_tokens:.0f} tokens)"
    found = [means]
    if bias.longer is not None:
        low, high = bias.longer_interval
        found.append(
            f"the best answer is the longer one in {bias.longer:.1%} of {bias.unequal:,} groups "
            f"(95% interval {low:.1%} to {high:.1%})" + (": length bias" if low > 0.5 or high < 0.5 else "")
        )
    if bias.tau is not None:
        found.append(f"Kendall tau of quality and length {bias.tau:+.2f}, mean of {bias.tau_groups:,} rankings")
    return found
