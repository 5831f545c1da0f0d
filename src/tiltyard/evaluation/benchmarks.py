"""Measures of models on benchmark files, item by item, with intervals and paired differences.

Log-probs are sums over a response's tokens in nats, unless a measure says that they are divided by its UTF-8 bytes:
bytes are the same for every tokenizer, tokens are not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from tiltyard.data.benchmarks import Item
from tiltyard.evaluation.outcomes import json_difference, number
from tiltyard.evaluation.scored_pairs import scored_pairs
from tiltyard.stats.intervals import Estimate, by_cluster, rate_ci, ratio_ci
from tiltyard.stats.paired import Difference, false_discovery, ratio_difference
from tiltyard.stats.text import bits_per_byte
from tiltyard.types import Prompt, prompt_digest, response_id

Unit = Literal["share", "score", "bits"]
Better = Literal["higher", "lower", ""]
MOST_SUBSETS = 12  # a field of more values than these is no breakdown


class Measure(NamedTuple):
    """One kind of measurement of a benchmark; `means`: the number in a sentence.

    Args:
        name: in the table. unit: of its values. better: the direction that is better; "" where neither is.
        headline: it is broken down by subsets in the printed table.
    """

    name: str
    unit: Unit
    better: Better
    means: str
    headline: bool = False


@dataclass(frozen=True)
class Column:
    """A measure of one model on the items that it could be measured on.

    `items`: their positions in the file; `values`: one each; `weights`: 1, or the bytes of a document.
    """

    measure: Measure
    items: tuple[int, ...]
    values: tuple[float, ...]
    weights: tuple[float, ...] = ()


class Figure(NamedTuple):
    """A measure of one model on one benchmark with its interval, and its paired difference to the baseline's.

    `subset`: "" for all items. `q`: the p-value of the difference adjusted for all differences of the table.
    """

    benchmark: str
    measure: Measure
    subset: str
    model: str
    estimate: Estimate
    difference: Difference | None = None
    q: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """The figure as JSON-ready values."""
        difference = None if self.difference is None else {**json_difference(self.difference), "q": number(self.q)}
        return {
            "benchmark": self.benchmark,
            "measure": self.measure.name,
            "unit": self.measure.unit,
            "better": self.measure.better,
            "means": self.measure.means,
            "subset": self.subset,
            "model": self.model,
            "value": self.estimate.value,
            "low": number(self.estimate.low),
            "high": number(self.estimate.high),
            "n": self.estimate.n,
            "difference": difference,
        }


# ------------------------------------------------------------------------------------------------- measures of log-prob

Logps = Sequence[Sequence[float]]  # of each measured item, the summed log-prob of each response in nats

PAIR = Measure(
    "better one likelier",
    "share",
    "higher",
    "pairs whose better answer has the higher log-prob (sum over tokens)",
    True,
)
PAIR_BYTE = Measure("  by byte", "share", "higher", "the same of log-probs divided by the bytes of the answer")
FIRST = Measure("right choice", "share", "higher", "questions whose likeliest choice is right (sum over tokens)", True)
FIRST_BYTE = Measure("  by byte", "share", "higher", "the same of log-probs divided by the bytes of the choice")
MC1 = FIRST._replace(name="MC1", means="questions whose likeliest choice is the right one (sum over tokens)")
MC2 = Measure("MC2", "share", "higher", "probability of all right choices over that of all choices (sum over tokens)")
BITS = Measure("held-out loss", "bits", "lower", "bits per UTF-8 byte, the end of a document included")


def pair_columns(items: Sequence[Item], places: Sequence[int], logps: Logps) -> list[Column]:
    """Computes how often the better answer of a pair is the likelier; a ranking counts as the mean of its pairs.

    Args:
        places: positions of the measured items in the file, of which `logps` has the responses.
    """
    sums = [list(of) for of in logps]
    by_byte = [_by_byte(items[i], of) for i, of in zip(places, logps, strict=True)]
    return [_preferred(measure, items, places, of) for measure, of in ((PAIR, sums), (PAIR_BYTE, by_byte))]


def reward_column(name: str, items: Sequence[Item], places: Sequence[int], scores: Logps) -> Column:
    """Computes how often a reward scores the better answer of a pair higher; equal scores count half."""
    measure = PAIR._replace(name="better one higher", means=f"pairs whose better answer {name} scores higher")
    return _preferred(measure, items, places, scores)


def _preferred(measure: Measure, items: Sequence[Item], places: Sequence[int], scores: Logps) -> Column:
    found: dict[int, float] = {}
    for i, of in zip(places, scores, strict=True):
        pairs = [pair.swapped() if pair.q < 0.5 else pair for pair in scored_pairs([items[i].group], [of])]
        right = [0.5 * (1 + np.sign(pair.chosen - pair.rejected)) for pair in pairs if pair.q != 0.5]
        if right:
            found[i] = float(np.mean(right))
    return Column(measure, tuple(found), tuple(found.values()))


def choice_columns(items: Sequence[Item], places: Sequence[int], logps: Logps) -> list[Column]:
    """Computes accuracies of the likeliest choice, and MC2 where the items have the choices for it.

    Where several choices are equally likely, the credit is the share of right ones among them.
    """
    by_byte = [_by_byte(items[i], of) for i, of in zip(places, logps, strict=True)]
    truthful = any(items[i].mass for i in places)
    first = MC1 if truthful else FIRST
    columns = [
        Column(measure, tuple(places), tuple(_likeliest(items[i], of) for i, of in zip(places, some, strict=True)))
        for measure, some in ((first, logps), (FIRST_BYTE, by_byte))
    ]
    if truthful:
        kept = [(i, of) for i, of in zip(places, logps, strict=True) if items[i].mass]
        columns.append(Column(MC2, tuple(i for i, _ in kept), tuple(_mass(items[i], of) for i, of in kept)))
    return columns


def _by_byte(item: Item, logps: Sequence[float]) -> list[float]:
    texts = (response.text for response in item.group.responses)
    return [logp / max(1, len(text.strip().encode())) for logp, text in zip(logps, texts, strict=True)]


def _likeliest(item: Item, logps: Sequence[float]) -> float:
    best = max(logps[k] for k in item.one)
    tied = [right for k, right in item.one.items() if logps[k] == best]
    return sum(tied) / len(tied)


def _mass(item: Item, logps: Sequence[float]) -> float:
    top = max(logps[k] for k in item.mass)
    weight = {k: math.exp(logps[k] - top) for k in item.mass}
    return sum(w for k, w in weight.items() if item.mass[k]) / sum(weight.values())


def chance(items: Iterable[Item]) -> float:
    """Returns the accuracy of a draw among the choices of each question."""
    shares = [sum(item.one.values()) / len(item.one) for item in items if item.one]
    return sum(shares) / len(shares) if shares else math.nan


def text_column(items: Sequence[Item], nats: Mapping[int, float]) -> Column:
    """Computes bits per byte of documents from their losses in nats, of all pieces of a document together."""
    sizes = [len(items[i].group.responses[0].text.encode()) for i in nats]
    values = tuple(bits_per_byte(loss, size) for loss, size in zip(nats.values(), sizes, strict=True))
    return Column(BITS, tuple(nats), values, tuple(float(size) for size in sizes))


# --------------------------------------------------------------------------------------------- measures of responses


def response_columns(
    items: Sequence[Item],
    places: Sequence[int],
    values: Mapping[str, Sequence[Sequence[float | None]]],
    rates: set[str],
) -> list[Column]:
    """Computes the mean of each score of the sampled responses, apart for prompts to refuse and prompts to answer.

    Args:
        values: by name, of each measured item the score of each response, None where the scorer abstained. The name
            `refusal` is the rate of refusals by words. rates: names of scores that are 0 or 1.
    """
    columns = []
    for expect in ("refuse", "answer", ""):
        chosen = [k for k, i in enumerate(places) if items[i].expect == expect]
        for name, rows in values.items():
            found = {places[k]: [x for x in rows[k] if x is not None] for k in chosen}
            found = {i: of for i, of in found.items() if of}
            if not found:
                continue
            means = tuple(sum(of) / len(of) for of in found.values())
            columns.append(Column(_measure_of(name, expect, name in rates), tuple(found), means))
            if name not in rates and not expect and max(map(len, found.values())) > 1:
                measure = Measure(f"{name}, highest", "score", "", f"mean over prompts of the highest {name}")
                columns.append(Column(measure, tuple(found), tuple(max(of) for of in found.values())))
    return columns


_REFUSALS = {"refuse": "refuses harm", "answer": "over-refuses", "": "refuses"}
WORDS = tuple(_REFUSALS.values())  # measures of responses that need no scorer
_CLASSES = {"refuse": "prompts to refuse", "answer": "prompts to answer", "": "all prompts"}


def _measure_of(name: str, expect: str, rate: bool) -> Measure:
    if name == "refusal":
        better: Better = {"refuse": "higher", "answer": "lower"}.get(expect, "")  # type: ignore[assignment]
        return Measure(
            _REFUSALS[expect], "share", better, f"responses that begin by declining, of {_CLASSES[expect]}", True
        )
    where = f", {_CLASSES[expect]}" if expect else ""
    return Measure(f"{name}{where}", "share" if rate else "score", "", f"mean of {name} over the responses{where}")


# ---------------------------------------------------------------------------------------------------------- figures


def figures(
    name: str,
    items: Sequence[Item],
    columns: Mapping[str, Sequence[Column]],
    baseline: str,
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> list[Figure]:
    """Computes estimates and paired differences of a benchmark: whole, and of each subset of its items.

    Items of one prompt are one cluster of the intervals and tests.

    Args:
        columns: of each model, with the same measures. baseline: the model that the others' differences are to.
    """
    subsets = [item.subset for item in items]
    kinds = sorted(set(subsets) - {""})
    chosen = ["", *(kinds if 1 < len(kinds) <= MOST_SUBSETS else [])]
    how: dict[str, Any] = {"keys": [key_of(i, item) for i, item in enumerate(items)], "rounds": rounds, "seed": seed}
    found = []
    for measure in dict.fromkeys(column.measure for some in columns.values() for column in some):
        by_model = {m: c for m, some in columns.items() for c in some if c.measure == measure}
        for subset in chosen:
            parts = {model: _part(column, subsets, subset) for model, column in by_model.items()}
            parts = {model: part for model, part in parts.items() if part.items}
            if subset and all(len(part.items) == len(by_model[model].items) for model, part in parts.items()):
                continue  # the only subset of what this measure is of
            base = parts.get(baseline)
            for model, part in parts.items():
                difference = None if base is None or model == baseline else item_difference(part, base, **how)
                found.append(Figure(name, measure, subset, model, _estimate(part, **how), difference))
    return found


def adjusted(found: Sequence[Figure]) -> list[Figure]:
    """Returns the figures with p-values adjusted for all differences among them (Benjamini-Hochberg)."""
    p_values = [math.nan if one.difference is None else one.difference.p for one in found]
    return [one._replace(q=q) for one, q in zip(found, false_discovery(p_values), strict=True)]


def key_of(place: int, item: Item) -> str:
    """The cluster of an item: its prompt's content, the document's where it has no prompt, its place without either."""
    prompt, texts = item.group.prompt, [response.text for response in item.group.responses]
    if prompt.messages or prompt.text:
        return prompt_digest(prompt)
    return prompt_digest(Prompt(text="\n".join(texts))) if any(texts) else str(place)


def content_of(key: str, item: Item) -> str:
    """Returns a digest of the prompt and the responses of an item, equal in every evaluation."""
    return hashlib.sha256(repr([key, *map(response_id, item.group.responses)]).encode()).hexdigest()[:16]


def _part(column: Column, subsets: Sequence[str], subset: str) -> Column:
    if not subset:
        return column
    on = [k for k, i in enumerate(column.items) if subsets[i] == subset]
    weights = tuple(column.weights[k] for k in on) if column.weights else ()
    return Column(column.measure, tuple(column.items[k] for k in on), tuple(column.values[k] for k in on), weights)


def _estimate(column: Column, *, keys: Sequence[str], rounds: int, seed: int) -> Estimate:
    values, own = np.asarray(column.values), [keys[i] for i in column.items]
    if column.measure.unit == "share" and not column.weights:
        return rate_ci(values, own, rounds=rounds, seed=seed)
    weights = np.asarray(column.weights or np.ones(len(values)))
    sums_C, counts_C = by_cluster(values * weights, own)[0], by_cluster(weights, own)[0]
    low, high = ratio_ci(sums_C, counts_C, rounds=rounds, seed=seed)
    return Estimate(float(sums_C.sum() / counts_C.sum()), low, high, len(values))


def item_difference(
    after: Column, before: Column, *, keys: Sequence[str], rounds: int = 1000, seed: int = 0
) -> Difference | None:
    """Computes the paired difference over the items that both models were measured on; None without any.

    Args:
        keys: the cluster of each item of the file.
    """
    theirs = dict(zip(before.items, before.values, strict=True))
    weight = dict(zip(after.items, after.weights or (1.0,) * len(after.items), strict=True))
    both = {i: value - theirs[i] for i, value in zip(after.items, after.values, strict=True) if i in theirs}
    if not both:
        return None
    own = [keys[i] for i in both]
    weights = np.asarray([weight[i] for i in both])
    sums_C = by_cluster(np.asarray(list(both.values())) * weights, own)[0]
    return ratio_difference(sums_C, by_cluster(weights, own)[0], n=len(both), rounds=rounds, seed=seed)


def item_rows(name: str, items: Sequence[Item], columns: Mapping[str, Sequence[Column]]) -> Iterator[dict[str, Any]]:
    """Yields one JSON-ready row for each item and model: its key, content, place in the file, subset, every value.

    `weight` is that of an item in the mean, such as the bytes of a document, where they do not count alike.
    """
    for model, some in columns.items():
        values: dict[int, dict[str, float]] = {}
        for column in some:
            for k, (i, value) in enumerate(zip(column.items, column.values, strict=True)):
                values.setdefault(i, {})[column.measure.name.strip()] = value
                if column.weights:
                    values[i]["weight"] = column.weights[k]
        for i, of in sorted(values.items()):
            key = key_of(i, items[i])
            facts = {"item": items[i].group.origin, "key": key, "content": content_of(key, items[i])}
            yield {"benchmark": name, "model": model, **facts, "subset": items[i].subset, **of}
