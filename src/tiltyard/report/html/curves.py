"""Training curves of the page: the metrics of every stage, averaged over bins of steps where there are many."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiltyard.numerals import verb
from tiltyard.report.html.island import size
from tiltyard.report.html.reading import Source, json_lines, number, rounded, text_of

Series = tuple[list[Any], list[Any]]  # steps, values

POINTS = 200  # of one curve; half of them, or a quarter, where all curves together would be too large
HALVINGS = 3
FEWEST = 12  # points that are never merged
CURVES = 1_300_000  # bytes of all curves in the page
KNOWN = (  # in the order of the page: pattern of the metric, title, unit, what it is
    (r"loss", "Loss", "", "what the optimiser minimises"),
    (r"held_out/loss", "Held-out loss", "nats a token", "on rows that were not trained on"),
    (r"score", "Reward", "", "mean score of the sampled responses: the proxy"),
    (r"reward/gold", "Gold reward", "", "true score by the rules of the embedded world; nothing is trained on it"),
    (r"reward/.+", "", "", "a further reward that is watched"),
    (r"kl_exact", "KL to the reference", "nats a response", "exact at each token, along sampled responses"),
    (r"length", "Length", "tokens", "mean of the sampled responses"),
    (r"truncated", "Cut at the limit", "share", "responses that reached max_tokens"),
    (r"accuracy", "Accuracy", "share", "pairs of the step whose chosen response is preferred"),
    (r"margin", "Margin", "", "chosen less rejected"),
    (r"entropy", "Entropy", "nats a token", "of the sampled distribution"),
    (r"held_out/.+", "", "", "on rows that were not trained on"),
    (r"chosen_reward", "Reward of chosen", "", "implicit reward of the chosen responses"),
    (r"rejected_reward", "Reward of rejected", "", "implicit reward of the rejected responses"),
    (r"value_error", "Value error", "", "mean squared error of the value head"),
    (r"clipped", "Clipped", "share", "tokens whose ratio left the clip range"),
    (r"kl", "KL, sampled", "nats a response", "from the sampled tokens alone"),
    (r"grad_norm", "Gradient norm", "", "before clipping"),
    (r"sampler_gap", "Trainer and sampler", "nats a token", "mean distance of their log-probs"),
    (r"staleness", "Age of responses", "updates", "of the policy since it sampled them"),
    (r"time/waited", "Waited for responses", "seconds", "by the trainer, for what is sampled ahead"),
    (r"mismatch/off", "Ratios off 1", "share", "tokens whose chance is 10% off between trainer and sampler"),
    (
        r"mismatch/effective",
        "Effective sample",
        "share",
        "by the ratios between trainer and sampler; 1: all count alike",
    ),
)
LOSSES = 4  # kinds of stages whose losses are drawn at once
MAIN = 12  # metrics that are drawn before the reader asks for the others


def curves(sources: list[Source], *, budget: int = CURVES) -> dict[str, Any]:
    """The metrics of all stages: {metrics, stages, merged, notes}.

    `metrics`: [{name, title, unit, about, main, series: [{stage, x, y}]}]; without `x`, a stage's `steps` are meant.
    `merged`: steps that a point is the mean of, by stage. Where they are more than `budget` bytes, curves have fewer
    points; then metrics are left out, the less known first, with a note that counts them.
    """
    read = [found for source in sources for found in _read(source)]
    found = _drawn(read)
    for _ in range(HALVINGS):
        if size(found) <= budget:
            break
        read = [one.halved() for one in read]
        found = _drawn(read)
    if size(found) <= budget:
        return found | {"notes": []}
    kept: list[dict[str, Any]] = []
    rest = budget - size(found | {"metrics": []})
    for metric in found["metrics"]:
        rest -= size(metric)
        if rest < 0:
            break
        kept.append(metric)
    left_out = len(found["metrics"]) - len(kept)
    charts = f"{left_out:,} of {len(found['metrics']):,} charts of metrics {verb(left_out, 'is', 'are')}"
    note = f"{charts} left out, as the page would be too large."
    return found | {"metrics": kept, "notes": [note]}


@dataclass(frozen=True)
class _Columns:
    """The metrics of one stage: its label, its kind, {metric: (steps, values)}, and the steps of a point."""

    label: str
    kind: str
    series: Mapping[str, Series]
    width: int

    def halved(self) -> _Columns:
        """The same with half the points where there are many, each the mean of two."""
        many = {key: len(x) > 2 * FEWEST for key, (x, _) in self.series.items()}
        halves = {
            key: _merged(list(zip(x, y, strict=True)), 2) if many[key] else (x, y)
            for key, (x, y) in self.series.items()
        }
        return replace(self, series=halves, width=self.width * (2 if any(many.values()) else 1))


def _read(source: Source) -> Iterator[_Columns]:
    """Yields the metrics of the stages that have some; notes what is damaged or missing."""
    for name, reader in source.stages.items():
        path = reader.folder / "metrics.jsonl"
        if not path.exists():
            continue
        none = list[dict[str, Any]]()
        rows = source.attempt(f"{name}/metrics.jsonl", none, _rows, source, name, path)
        width = -(-len(rows) // POINTS) if len(rows) > POINTS else 1
        keys = dict.fromkeys(key for row in rows for key in row if key != "step")
        found = {key: series for key in keys if (series := _series(rows, key, width))}
        if not found:
            source.notes.append(f"{source.label(name)} has no metrics yet.")
            continue
        yield _Columns(text_of(source.label(name)), text_of(reader.config.kind if reader.config else ""), found, width)


def _drawn(read: Sequence[_Columns]) -> dict[str, Any]:
    columns: dict[str, list[dict[str, Any]]] = {}
    steps: dict[str, list[Any]] = {}
    for one in read:
        steps[one.label] = max((x for x, _ in one.series.values()), key=len)
        for metric, (x, y) in one.series.items():
            own = {} if x == steps[one.label] else {"x": x}
            columns.setdefault(metric, []).append({"stage": one.label, "y": y, **own})
    kinds = {one.label: one.kind for one in read}
    metrics = [m for name in sorted(columns, key=_order) for m in _metrics(name, columns[name], kinds)]
    losses = len([metric for metric in metrics if metric["name"] == "loss"])
    for place, chart in enumerate(metrics):
        many = chart["name"] == "loss" and losses > LOSSES
        chart["main"] = not many and place < MAIN + losses and _order(chart["name"])[0] < len(KNOWN)
    merged = {one.label: one.width for one in read if one.width > 1}
    return {"metrics": metrics, "stages": list(kinds), "steps": steps, "merged": merged}


def _metrics(name: str, series: list[dict[str, Any]], kinds: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The charts of a metric: one; of the loss one for each kind of stage, since their scales differ."""
    if name != "loss":
        yield _metric(name, series)
        return
    for kind in dict.fromkeys(kinds[one["stage"]] for one in series):
        made = _metric(name, [one for one in series if kinds[one["stage"]] == kind])
        yield made | {"title": f"Loss of {kind}" if len(set(kinds.values())) > 1 else "Loss"}


def _metric(name: str, series: list[dict[str, Any]]) -> dict[str, Any]:
    place = _order(name)[0]
    title, unit, about = KNOWN[place][1:] if place < len(KNOWN) else ("", "", "")
    return {"name": text_of(name), "title": title or text_of(name), "unit": unit, "about": about, "series": series}


def _order(name: str) -> tuple[int, str]:
    for place, (pattern, *_) in enumerate(KNOWN):
        if re.fullmatch(pattern, name):
            return place, name
    return len(KNOWN) + name.startswith("time/"), name


def _rows(source: Source, name: str, path: Path) -> list[dict[str, Any]]:
    rows, bad = [], 0
    for row, _ in json_lines(path):
        if row is None or number(row.get("step")) is None:
            bad += 1
        else:
            rows.append(row)
    if bad:
        many = f"{bad:,} lines of the metrics are" if bad > 1 else "one line of the metrics is"
        source.notes.append(f"{source.label(name)}: {many} incomplete or damaged and left out.")
    return rows


def _series(rows: Sequence[Mapping[str, Any]], key: str, width: int) -> Series | None:
    pairs = [(number(row["step"]), number(row.get(key))) for row in rows]
    known = [(s, v) for s, v in pairs if s is not None and v is not None]
    if not known:
        return None
    return (
        _merged(known, width)
        if len(known) > POINTS
        else ([rounded(s) for s, _ in known], [rounded(v) for _, v in known])
    )


def _merged(points: Sequence[tuple[float, float]], width: int) -> Series:
    """(steps, values): means of `width` neighbours each."""
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    steps = [round(sum(s for s, _ in part) / len(part)) for part in parts]
    return steps, [rounded(sum(v for _, v in part) / len(part)) for part in parts]
