"""Training curves of the page: the metrics of every stage, averaged over bins of steps where there are many."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiltyard.report.html.reading import Source, json_lines, number, rounded, text_of

Series = tuple[list[Any], list[Any]]  # steps, values

POINTS = 200  # of one curve
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
)
LOSSES = 4  # kinds of stages whose losses are drawn at once
MAIN = 12  # metrics that are drawn before the reader asks for the others


def curves(sources: list[Source]) -> dict[str, Any]:
    """The metrics of all stages: {metrics: [{name, title, unit, about, series: [{stage, x, y}]}], stages}."""
    columns: dict[str, list[dict[str, Any]]] = {}
    stages: list[str] = []
    merged: dict[str, int] = {}
    kinds: dict[str, str] = {}
    nothing: tuple[dict[str, Series], int] = ({}, 0)
    for source in sources:
        for name, reader in source.stages.items():
            path = reader.folder / "metrics.jsonl"
            if not path.exists():
                continue
            found, steps = source.attempt(f"{name}/metrics.jsonl", nothing, _columns, source, name, path)
            if not found:
                source.notes.append(f"{source.label(name)} has no metrics yet.")
                continue
            label = text_of(source.label(name))
            stages.append(label)
            kinds[label] = text_of(reader.config.kind if reader.config else "")
            if steps > POINTS:
                merged[label] = -(-steps // POINTS)
            for metric, (x, y) in found.items():
                columns.setdefault(metric, []).append({"stage": label, "x": x, "y": y})
    metrics = [m for name in sorted(columns, key=_order) for m in _metrics(name, columns[name], kinds)]
    shown = len([metric for metric in metrics if metric["name"] == "loss"])
    for place, one in enumerate(metrics):
        many = one["name"] == "loss" and shown > LOSSES
        one["main"] = not many and place < MAIN + shown and _order(one["name"])[0] < len(KNOWN)
    return {"metrics": metrics, "stages": stages, "merged": merged}


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


def _columns(source: Source, name: str, path: Path) -> tuple[dict[str, Series], int]:
    """Returns ({metric: (steps, values)}, number of steps); a metric that never changes its one value is kept."""
    rows, bad = [], 0
    for row, _ in json_lines(path):
        if row is None or number(row.get("step")) is None:
            bad += 1
        else:
            rows.append(row)
    if bad:
        many = f"{bad:,} lines of the metrics are" if bad > 1 else "one line of the metrics is"
        source.notes.append(f"{source.label(name)}: {many} incomplete or damaged and left out.")
    width = -(-len(rows) // POINTS) if len(rows) > POINTS else 1
    keys = dict.fromkeys(key for row in rows for key in row if key != "step")
    found = {key: series for key in keys if (series := _series(rows, key, width))}
    return found, len(rows)


def _series(rows: Sequence[Mapping[str, Any]], key: str, width: int) -> Series | None:
    known = [(number(row["step"]), number(row.get(key))) for row in rows]
    points = [(s, v) for s, v in known if s is not None and v is not None]
    if not points:
        return None
    binned = list(_bins(points, width)) if len(points) > POINTS else points
    return [rounded(s) for s, _ in binned], [rounded(v) for _, v in binned]


def _bins(points: list[tuple[float, float]], width: int) -> Iterator[tuple[float, float]]:
    for start in range(0, len(points), width):
        part = points[start : start + width]
        yield round(sum(s for s, _ in part) / len(part)), sum(v for _, v in part) / len(part)
