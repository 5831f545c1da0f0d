"""The quality of the labels of judged groups: agreement, quality and habits of annotators, disagreements.

Units are items, a prompt with its responses whatever their order. Adjudications are left out of the indices of
agreement, since only disputed items have them; gold and attention items count for the gold accuracy alone.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from tiltyard.errors import DataError
from tiltyard.stats.agreement import (
    Agreement,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    mean_kendall_w,
    percent_agreement,
)
from tiltyard.stats.annotations import Annotations
from tiltyard.stats.annotators import dawid_skene, mace, standing
from tiltyard.stats.habits import preference_habits
from tiltyard.stats.intervals import Estimate, rate_ci
from tiltyard.stats.judged import BOTH_BAD, is_judge, prompt_name
from tiltyard.types import Group, Preference, ranks_of, response_id

Item = tuple[str, ...]
TESTS = ("gold", "attention", "training")
DECIDED = ("1", "2")
PAIR_LABELS = (*DECIDED, "tie", BOTH_BAD)
COHEN_MOST = 12  # annotators up to which all pairs are compared


class Label(NamedTuple):
    """One annotator's judgement of one item.

    Args:
        item: prompt and ids of the responses, sorted. kind: "rating", where each response was rated.
        label: of a pair "1" or "2" by that order, "tie" or "both_bad"; of other kinds the ranks in that order.
        first, longer: of a pair, whether the response "1" was shown first, and whether it is longer; None: not known.
        ratings: of each response in that order, where they were rated.
    """

    item: Item
    kind: Literal["pair", "ranking", "rating"]
    annotator: str
    label: str
    ranks: tuple[int, ...]
    stage: str
    judge: bool
    first: bool | None
    longer: float | None
    ratings: tuple[float, ...] | None
    right: bool | None
    seconds: float | None
    group: Group


class AnnotatorQuality(NamedTuple):
    """One annotator: labels, and what they show; estimates are None where they are not defined.

    `accuracy`: Dawid-Skene's. `competence`: MACE's. `gold`: share of known items that were right. `first`, `longer`,
    `ties`: habits. `repeats`: share of items judged twice with the same label. `seconds`: median of a judgement.
    """

    name: str
    judge: bool
    labels: int
    accuracy: Estimate | None
    competence: Estimate | None
    standing: str
    gold: Estimate | None
    first: Estimate | None
    longer: Estimate | None
    ties: Estimate | None
    both_bad: float
    repeats: Estimate | None
    seconds: float


class Disagreement(NamedTuple):
    """An item with different labels: who gave which, and the posterior of the true label by Dawid-Skene."""

    item: Item
    prompt: str
    responses: tuple[str, ...]
    labels: dict[str, str]
    posterior: dict[str, float]
    origin: str


@dataclass(frozen=True)
class LabelReport:
    """Agreement and quality of annotators; `indices`: (kind of task, name of the index, value)."""

    judgements: int
    items: int
    doubly: int
    indices: tuple[tuple[str, str, Agreement], ...]
    cohen: tuple[tuple[str, str, Agreement], ...]
    annotators: tuple[AnnotatorQuality, ...]
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-ready values."""
        indices = [{"kind": kind, "index": name, **value._asdict()} for kind, name, value in self.indices]
        cohen = [{"a": a, "b": b, **value._asdict()} for a, b, value in self.cohen]
        people = [
            {key: x._asdict() if isinstance(x, Estimate) else x for key, x in one._asdict().items()}
            for one in self.annotators
        ]
        found = [one._asdict() for one in self.disagreements]
        own = {"indices": indices, "cohen": cohen, "annotators": people, "disagreements": found}
        return {**{key: value for key, value in asdict(self).items() if key not in own}, **own}


def labels_of(groups: Iterable[Group], judges: Sequence[str] = ()) -> list[Label]:
    """Returns the labels of judged groups; those without a verdict or an annotator's name are left out."""
    found = []
    for group in groups:
        preference = group.preference
        if preference is None or not preference.annotator:
            continue
        ranks = ranks_of(preference)
        both_bad = preference.meta.get("reason") == BOTH_BAD and len(group.responses) == 2
        if ranks is None and not both_bad:
            continue
        found.append(_label(group, preference, ranks or (1,) * len(group.responses), both_bad, judges))
    return found


def _label(group: Group, preference: Preference, ranks: Sequence[int], both_bad: bool, judges: Sequence[str]) -> Label:
    ids = [f"{response_id(r)}:{r.meta.get('policy', '')}:{r.meta.get('version', '')}" for r in group.responses]
    order = sorted(range(len(ids)), key=lambda k: ids[k])
    own = tuple(ranks[k] for k in order)
    rated = preference.ratings is not None
    kind: Literal["pair", "ranking", "rating"] = "rating" if rated else "pair" if len(ids) == 2 else "ranking"
    pair = kind == "pair"
    label = " ".join(map(str, own))
    if pair:
        label = BOTH_BAD if both_bad else "tie" if own[0] == own[1] else "1" if own[0] < own[1] else "2"
    meta, shown = preference.meta, preference.meta.get("shown")
    first = list(shown).index(order[0]) < list(shown).index(order[1]) if pair and shown is not None else None
    lengths = [len(group.responses[k].text) for k in order]
    longer = (np.sign(lengths[0] - lengths[1]) + 1) / 2 if pair and all(lengths) else None
    ratings = None if preference.ratings is None else tuple(float(preference.ratings[k]) for k in order)
    right, seconds = meta.get("right"), meta.get("seconds")
    return Label(
        (prompt_name(group), *(ids[k] for k in order)),
        kind,
        preference.annotator,
        label,
        own,
        str(meta.get("stage", "real")),
        is_judge(preference, judges),
        first,
        None if longer is None else float(longer),
        ratings,
        None if right is None else bool(right),
        float(seconds) if isinstance(seconds, int | float) else None,
        group,
    )


def label_report(
    groups: Iterable[Group],
    *,
    judges: Sequence[str] = (),
    floor: float = 0.3,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> LabelReport:
    """Computes agreement, quality of annotators and disagreements.

    Args:
        judges: names of annotators that are AI judges though nothing else shows it.
        floor: of MACE's competence: an annotator whose whole interval lies below it is "poor".

    Raises:
        DataError: no judgement with an annotator's name.
    """
    labels = labels_of(groups, judges)
    if not labels:
        raise DataError(
            "there are no judgements of named annotators",
            fix='give the rows "annotator", or "judgement": {"annotator": ...}',
        )
    data = [label for label in labels if label.stage not in TESTS]
    last = {(label.item, label.annotator): label for label in data}
    notes = []
    if len(last) < len(data):
        notes.append(
            f"{len(data) - len(last):,} judgements of an item by the same annotator again: the last one counts"
        )
    plain = [label for label in last.values() if label.stage != "adjudication"]
    pairs = [label for label in plain if label.kind == "pair"]
    options = {"rounds": rounds, "seed": seed, "level": level}
    models, posterior = _models([x for x in last.values() if x.kind == "pair"], rounds, seed, level, notes)
    per_item = Counter(label.item for label in plain)
    return LabelReport(
        len(labels),
        len(per_item),
        sum(n > 1 for n in per_item.values()),
        tuple(_indices(plain, pairs, options)),
        tuple(_cohen(pairs, options)),
        tuple(_annotators(labels, data, models, floor, options)),
        tuple(_disagreements(list(last.values()), posterior)),
        tuple(notes),
    )


def _pair_annotations(labels: Sequence[Label]) -> Annotations:
    return Annotations.of(((x.item, x.annotator, x.label) for x in labels), order=PAIR_LABELS)


def _indices(
    plain: Sequence[Label], pairs: Sequence[Label], options: dict[str, Any]
) -> list[tuple[str, str, Agreement]]:
    found: list[tuple[str, str, Agreement]] = []
    if pairs:
        data = _pair_annotations(pairs)
        found.append(("pair", "percent", percent_agreement(data, **options)))
        found.append(("pair", "Krippendorff alpha", krippendorff_alpha(data, **options)))
        found.append(("pair", "Fleiss kappa", fleiss_kappa(data, **options)))
        if len(data.annotators) == 2:
            found.append(("pair", "Cohen kappa", cohen_kappa(data, **options)))
    rated = [(label, k, r) for label in plain if label.ratings for k, r in enumerate(label.ratings)]
    if rated:
        data = Annotations.of(((label.item[0], label.item[1 + k]), label.annotator, r) for label, k, r in rated)
        found.append(("rating", "percent", percent_agreement(data, **options)))
        alpha = krippendorff_alpha(data, distance="ordinal", **options)
        found.append(("rating", "Krippendorff alpha, ordinal", alpha))
    rankings: dict[Item, list[tuple[int, ...]]] = defaultdict(list)
    for label in plain:
        if len(label.ranks) > 2:
            rankings[label.item].append(label.ranks)
    if rankings:
        found.append(("ranking", "Kendall W", mean_kendall_w(list(rankings.values()), **options)))
    return found


def _cohen(pairs: Sequence[Label], options: dict[str, Any]) -> list[tuple[str, str, Agreement]]:
    names = sorted({label.annotator for label in pairs})
    if not 2 < len(names) <= COHEN_MOST:
        return []
    data = _pair_annotations(pairs)
    found = [(a, b, cohen_kappa(data, (a, b), **options)) for a, b in combinations(names, 2)]
    return [one for one in found if one[2].n]


def _models(
    labels: Sequence[Label], rounds: int, seed: int, level: float, notes: list[str]
) -> tuple[tuple[dict[Any, Estimate], dict[Any, Estimate]], dict[Item, dict[str, float]]]:
    """Returns Dawid-Skene's accuracies, MACE's competences, and the posterior of each item's label."""
    overlap = Counter(label.item for label in labels)
    shared = [label for label in labels if overlap[label.item] > 1]
    if not shared:
        notes.append("no pair was judged by two annotators: their quality cannot be told from their labels")
        return ({}, {}), {}
    data = Annotations.of((x.item, x.annotator, x.label) for x in shared)
    try:
        draws = min(rounds, 200)
        ability = dawid_skene(data, rounds=draws, seed=seed, level=level)
        # the standing of many annotators is looked at: together they err as often as one
        strict = 1 - (1 - level) / len(data.annotators)
        competence = mace(
            _decided((x.item, x.annotator, x.label) for x in shared), rounds=draws, seed=seed, level=strict
        )
    except DataError as error:
        notes.append(f"no models of annotators: {error.what}")
        return ({}, {}), {}
    posterior = {
        item: {str(c): float(p) for c, p in zip(data.labels, ability.posterior_UC[u], strict=True)}
        for u, item in enumerate(data.units)
    }
    return (dict(ability.quality), dict(competence.quality)), posterior  # type: ignore[return-value]


def _decided(rows: Iterable[tuple[Item, str, str]]) -> Annotations:
    """Returns the labels that prefer one of two responses.

    MACE holds all true labels equally likely. With ties and "both bad", which are seldom the truth, among them, its
    likeliest parameters are that everyone guesses: annotators who are right in 85% get a competence near 0.
    """
    return Annotations.of((row for row in rows if row[2] in DECIDED), order=DECIDED)


def _annotators(
    labels: Sequence[Label],
    data: Sequence[Label],
    models: tuple[dict[Any, Estimate], dict[Any, Estimate]],
    floor: float,
    options: dict[str, Any],
) -> list[AnnotatorQuality]:
    accuracy, competence = models
    standings = standing(competence, floor)
    pairs = [x for x in data if x.kind == "pair" and x.label != BOTH_BAD]
    habits = _habits(pairs, options)
    found = []
    for name in sorted({label.annotator for label in labels}):
        own = [label for label in labels if label.annotator == name]
        known = [label.right for label in own if label.right is not None]
        gold = rate_ci([float(right) for right in known], **options) if known else None
        seconds = [label.seconds for label in own if label.seconds is not None]
        judged = [label for label in data if label.annotator == name]
        found.append(
            AnnotatorQuality(
                name,
                own[0].judge,
                len(judged),
                accuracy.get(name),
                competence.get(name),
                standings.get(name, ""),
                gold,
                *habits.get(name, (None, None, None)),
                sum(x.label == BOTH_BAD for x in judged) / len(judged) if judged else math.nan,
                _repeats(judged, options),
                median(seconds) if seconds else math.nan,
            )
        )
    return found


def _habits(
    pairs: Sequence[Label], options: dict[str, Any]
) -> dict[str, tuple[Estimate | None, Estimate | None, Estimate | None]]:
    won = {"1": 1.0, "2": 0.0, "tie": 0.5}
    ordered = [x for x in pairs if x.first is not None]
    first, others = {}, {}
    if ordered:
        first_won = [won[x.label] if x.first else 1 - won[x.label] for x in ordered]
        names, prompts = [x.annotator for x in ordered], [x.item[0] for x in ordered]
        first = preference_habits(names, first_won, prompts, **options)
    if pairs:
        names, prompts = [x.annotator for x in pairs], [x.item[0] for x in pairs]
        longer = [0.5 if x.longer is None else x.longer for x in pairs]
        others = preference_habits(names, [won[x.label] for x in pairs], prompts, longer, **options)
    return {
        str(name): (_known(first[name].first) if name in first else None, _known(rest.longer), _known(rest.ties))
        for name, rest in others.items()
    }


def _known(estimate: Estimate) -> Estimate | None:
    return None if math.isnan(estimate.value) else estimate


def _repeats(judged: Sequence[Label], options: dict[str, Any]) -> Estimate | None:
    """Returns the share of an annotator's repeated judgements that are the same as the first."""
    first: dict[Item, str] = {}
    same: list[float] = []
    prompts: list[str] = []
    for label in judged:
        if label.item in first:
            same.append(float(label.label == first[label.item]))
            prompts.append(label.item[0])
        first.setdefault(label.item, label.label)
    return rate_ci(same, prompts, **options) if same else None


def _disagreements(labels: Sequence[Label], posterior: dict[Item, dict[str, float]]) -> list[Disagreement]:
    """Returns the items with different labels, those on which opinion is most evenly split first."""
    by_item: dict[Item, list[Label]] = defaultdict(list)
    for label in labels:
        by_item[label.item].append(label)
    split = []
    for item, given in by_item.items():
        shares = [n / len(given) for n in Counter(label.label for label in given).values()]
        if len(shares) > 1:
            split.append((-sum(p * math.log(p) for p in shares), len(given), item))
    found = []
    for _, _, item in sorted(split, key=lambda one: (-one[0], -one[1], one[2])):
        given = by_item[item]
        group = given[0].group
        texts = {
            f"{response_id(r)}:{r.meta.get('policy', '')}:{r.meta.get('version', '')}": r.text for r in group.responses
        }
        turns = group.prompt.messages or ()
        prompt = turns[-1].content if turns else group.prompt.text or ""
        names = {label.annotator: label.label for label in given}
        responses = tuple(texts[key] for key in item[1:])
        found.append(Disagreement(item, prompt, responses, names, posterior.get(item, {}), group.origin))
    return found
