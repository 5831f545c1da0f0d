"""Comparisons of every two models on the same prompts, ratings from them, and lengths: of the evaluated responses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tiltyard.errors import TiltyardError
from tiltyard.report.html.reading import Source, json_lines, number, rounded, text_of
from tiltyard.report.html.samples import answer_files, prompt_of
from tiltyard.stats.intervals import Estimate, rate_ci
from tiltyard.stats.ratings.battles import battles_of
from tiltyard.stats.ratings.board import BoardSettings, board_of
from tiltyard.stats.win_rates import win_rate_by_prompt

MOST_MODELS = 16
MANY = 3_000  # prompts above which intervals are drawn from fewer rounds
BATTLES = 100_000  # above this number there are no ratings: a fit of them takes longer than the rest of the report
FEWEST = 8  # prompts of a win rate by length: of fewer its interval says nothing
MEASURES = (("gold", "gold reward"), ("proxy", "reward"))
RATIOS = ((0.0, 0.8, "shorter"), (0.8, 1.25, "about as long"), (1.25, float("inf"), "longer"))


@dataclass
class _Model:
    """One model's responses by prompt."""

    scores: dict[str, dict[str, list[float]]] = field(default_factory=lambda: {key: {} for key, _ in MEASURES})
    scored_lengths: dict[str, dict[str, list[float]]] = field(default_factory=lambda: {key: {} for key, _ in MEASURES})
    lengths: dict[str, list[float]] = field(default_factory=dict)


def comparisons(sources: Sequence[Source], baselines: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry for each evaluation with two models or more: matrix, ratings, lengths.

    Args:
        baselines: name of the evaluation -> its baseline.
    """
    found, no_models, nothing = [], dict[str, _Model](), dict[str, Any]()
    for source, name, path in answer_files(sources):
        label = source.label(name)
        models = source.attempt(f"{name}/answers.jsonl", no_models, _models, path)
        if models:
            read = source.attempt(f"{name}/answers.jsonl", nothing, _compared, models, baselines.get(label, ""))
            found.append({"title": text_of(label), **read})
    return found


def _models(path: Any) -> dict[str, _Model]:
    models: dict[str, _Model] = {}
    for row, _ in json_lines(path):
        if row is None:
            continue
        key, model = prompt_of(row), models.setdefault(str(row.get("model") or ""), _Model())
        length = number(row.get("length"))
        if length is not None:
            model.lengths.setdefault(key, []).append(length)
        for measure, _ in MEASURES:
            if (value := number(row.get(measure))) is not None:
                model.scores[measure].setdefault(key, []).append(value)
                model.scored_lengths[measure].setdefault(key, []).append(length or 0.0)
    return models


def _compared(models: dict[str, _Model], baseline: str) -> dict[str, Any]:
    names = list(models)[:MOST_MODELS]
    baseline = baseline if baseline in models else names[0]
    by = next(((key, title) for key, title in MEASURES if sum(bool(models[n].scores[key]) for n in names) > 1), None)
    lengths = [{"model": text_of(n), **_quantiles(models[n])} for n in models if models[n].lengths]
    found: dict[str, Any] = {"lengths": lengths, "left_out": len(models) - len(names)}
    if by is None or len(names) < 2:
        return found
    key, title = by
    rated = [n for n in names if models[n].scores[key]]
    cells = {(a, b): _wins(models[a].scores[key], models[b].scores[key]) for a, b in itertools.combinations(rated, 2)}
    matrix = [[_cell(cells, a, b) for b in rated] for a in rated]
    found |= {"by": title, "models": [text_of(n) for n in rated], "matrix": matrix}
    found["ratings"] = _ratings(models, rated, key, baseline) if len(rated) > 2 else []
    found["by_length"] = [
        {"model": text_of(n), "rows": rows}
        for n in rated
        if n != baseline and (rows := list(_by_length(models[n], models[baseline], key)))
    ]
    found["baseline"] = text_of(baseline)
    return found


def _wins(a: Mapping[str, list[float]], b: Mapping[str, list[float]]) -> Estimate | None:
    both = [key for key in a if key in b]
    if not both:
        return None
    rounds = 1000 if len(both) <= MANY else 200
    found = win_rate_by_prompt({k: a[k] for k in both}, {k: b[k] for k in both}, rounds=rounds)
    return found._replace(n=len(both))


def _cell(cells: Mapping[tuple[str, str], Estimate | None], a: str, b: str) -> dict[str, Any] | None:
    found = cells.get((a, b)) or cells.get((b, a))
    if a == b or found is None:
        return None
    value, low, high, n = found
    if (a, b) not in cells:
        value, low, high = 1 - value, 1 - high, 1 - low
    return {"v": rounded(value), "lo": rounded(low), "hi": rounded(high), "n": n}


def _ratings(models: dict[str, _Model], names: list[str], key: str, baseline: str) -> list[dict[str, Any]]:
    """Bradley-Terry ratings from the first response of every two models to every prompt, the baseline at 1000."""
    columns: tuple[list[str], list[str], list[str], list[str]] = ([], [], [], [])
    for a, b in itertools.combinations(names, 2):
        one, other = models[a].scores[key], models[b].scores[key]
        for prompt in one:
            if prompt in other:
                x, y = one[prompt][0], other[prompt][0]
                row = (a, b, "a" if x > y else "b" if x < y else "tie", prompt)
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
    if not columns[0] or len(columns[0]) > BATTLES:
        return []
    settings = BoardSettings(anchor=baseline if baseline in names else None, elo_orders=0)
    try:
        board = board_of(battles_of(*columns[:3], prompt=columns[3]), settings)
    except TiltyardError:
        return []
    return [
        {"model": text_of(s.model), "v": rounded(s.rating), "lo": rounded(s.low), "hi": rounded(s.high)}
        for s in board.standings
        if rounded(s.rating) is not None
    ]


def _quantiles(model: _Model) -> dict[str, Any]:
    values = np.array([x for one in model.lengths.values() for x in one])
    points = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
    return {"q": [rounded(float(x)) for x in points], "mean": rounded(float(values.mean())), "n": len(values)}


def _by_length(model: _Model, baseline: _Model, key: str) -> Iterator[dict[str, Any]]:
    """Win rate against the baseline where the response is shorter, about as long, and longer."""
    rows = []
    for prompt, scores in model.scores[key].items():
        others = baseline.scores[key].get(prompt)
        if not others or prompt not in baseline.lengths:
            continue
        usual = sum(baseline.lengths[prompt]) / len(baseline.lengths[prompt])
        for score, length in zip(scores, model.scored_lengths[key][prompt], strict=True):
            win = sum((score > x) + 0.5 * (score == x) for x in others) / len(others)
            rows.append((prompt, win, length / max(1.0, usual)))
    for low, high, label in RATIOS:
        part = [(prompt, win) for prompt, win, ratio in rows if low <= ratio < high]
        if len({prompt for prompt, _ in part}) >= FEWEST:
            rounds = 1000 if len(part) <= MANY else 200
            one = rate_ci([win for _, win in part], [prompt for prompt, _ in part], rounds=rounds)
            cell = {"v": rounded(one.value), "lo": rounded(one.low), "hi": rounded(one.high), "n": len(part)}
            yield {"label": label, "wins": cell}
