"""Over-optimisation and collapse along training, as `tiltyard gap` with `gold` and `along` measured them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tiltyard.posterior.overoptimise import Form, curve_of
from tiltyard.report.html.reading import estimate_of, number, rounded, text_of

POINTS = 120  # of one training run: means of neighbouring steps where there are more
CURVE = 40  # points of a fitted curve
FORMS: Mapping[Form, str] = {"best_of_n": "d (a − b d)", "rl": "d (a − b log d)"}
MEASURES = (  # key of the file, title, unit, what it is
    ("entropy", "Entropy", "nats", "mean nats a token"),
    ("distinct_2", "Distinct-2", "share", "different among all pairs of neighbouring words"),
    ("self_bleu", "Self-BLEU", "", "likeness of a step's responses to each other: 1 where all are alike"),
    ("unique", "Different responses", "share", "of the responses of a step"),
)
OWN = ("step", "kl", "reward", "gold")  # columns that are no measure of collapse


def along_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {paths, fits, courses, measures} of a `gap.json`.

    `paths`: [{name, what: reward or gold, points: [[sqrt(KL), value, N or step]], loose}]; `fits`: gold against
    sqrt(KL) with the intervals of both coefficients and the peak where it is known; `courses`: [{name, step, series}];
    `measures`: what the series are.
    """
    courses = [course for course in body.get("along") or [] if isinstance(course, Mapping)]
    best = body.get("overoptimisation")
    runs = [("best of N", best, "n")] if isinstance(best, Mapping) else []
    runs += [(str(course.get("name")), course, "step") for course in courses]
    series = [_course(course) for course in courses]
    keys = dict.fromkeys(key for one in series for key in one["series"])
    known = {key: (title, unit, about) for key, title, unit, about in MEASURES}
    return {
        "paths": [path for name, facts, key in runs for path in _paths(name, facts, key)] if best else [],
        "fits": [fit for name, facts, _ in runs if (fit := _fit(name, facts)) is not None],
        "courses": series,
        "measures": [
            dict(zip(("key", "title", "unit", "about"), (key, *known.get(key, (key, "", ""))), strict=True))
            for key in [*(k for k in known if k in keys), *(k for k in keys if k not in known)]
        ],
    }


def _paths(name: str, facts: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    kl, marks = facts["kl"], facts[key]
    for what in ("reward", "gold"):
        values = facts.get(what) or []
        points = [
            (math.sqrt(max(x, 0.0)), y, float(mark))
            for k, value, mark in zip(kl, values, marks, strict=False)
            if (x := number(k)) is not None and (y := number(value)) is not None
        ]
        if points:
            shown = _merged(points)
            loose = key == "step"
            yield {"name": text_of(name), "what": what, "points": shown, "loose": loose, "of": len(points)}


def _merged(rows: Sequence[Sequence[float]]) -> list[list[Any]]:
    """The rows; where they are many the means of neighbours, at most `POINTS`."""
    width = -(-len(rows) // POINTS)
    parts = [np.array(rows[start : start + width]).mean(0) for start in range(0, len(rows), width)]
    return [[rounded(float(x)) for x in part] for part in parts]


def _fit(name: str, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    fit = facts.get("fit")
    if not isinstance(fit, Mapping) or fit.get("form") not in FORMS:
        return None
    low, high = (float(end) for end in fit["reach"])
    alpha, beta = (float(fit[key]["value"]) for key in ("alpha", "beta"))
    d = np.linspace(max(low, 1e-3), high, CURVE)
    gold = float(fit["start"]) + curve_of(fit["form"], alpha, beta, d)
    return {
        "name": text_of(name),
        "form": FORMS[fit["form"]],
        "start": rounded(fit["start"]),
        "a": estimate_of(fit["alpha"]),
        "b": estimate_of(fit["beta"]),
        "reach": [rounded(low), rounded(high)],
        "peak": estimate_of(fit["peak"]) if fit.get("peak") else None,
        "curve": [[rounded(float(x)), rounded(float(y))] for x, y in zip(d, gold, strict=True)],
    }


def _course(course: Mapping[str, Any]) -> dict[str, Any]:
    """One training run: {name, step, series: {measure: values}}."""
    steps = [number(step) or 0.0 for step in course["step"]]
    found = {}
    for key, values in course.items():
        if key in OWN or not isinstance(values, list) or len(values) != len(steps):
            continue
        rows = [(step, x) for step, value in zip(steps, values, strict=True) if (x := number(value)) is not None]
        if rows:
            found[text_of(key)] = [list(column) for column in zip(*_merged(rows), strict=True)]
    return {"name": text_of(course.get("name")), "series": found}
