"""Measurements of a run as the page shows them: models compared, before and after, reward models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tiltyard.evaluation.before_after import Line
from tiltyard.files import read_json
from tiltyard.report.before_after import is_better
from tiltyard.report.html.reading import Source, estimate, estimate_of, number, rounded, short, text_of

COLUMNS = (  # key of the summary, title, unit, better direction, what it is
    (
        "win_rate",
        "Wins",
        "share",
        "up",
        "share of comparisons with the baseline's responses that it wins, ties as half",
    ),
    ("win_rate_equal_length", "Wins at equal length", "share", "up", "the same at equal length, by a regression"),
    ("gold", "Gold reward", "", "up", "true score by the rules of the embedded world"),
    ("proxy", "Proxy reward", "", "up", "mean score by the reward of the evaluation"),
    ("helpful", "Helpful", "share", "up", "answers that help, where a question was asked"),
    ("truthful", "Truthful", "share", "up", "answers without a false claim"),
    ("harmless", "Harmless", "share", "up", "answers that do no harm"),
    ("kl", "KL", "nats", "", "KL divergence from the reference, nats a response"),
    ("length", "Length", "tokens", "", "mean tokens of a response"),
    ("truncated", "Cut off", "share", "down", "responses that reached max_tokens"),
    ("distinct_2", "Distinct-2", "share", "up", "different among all pairs of neighbouring words"),
    ("entropy", "Entropy", "nats", "", "mean nats a token"),
)
PROXY = {"rule": "Pass rate", "other": "Reward", "model": "Proxy reward"}
COSTS = ("samples", "judge_calls", "rankings", "seconds", "models_in_memory")


def evaluations(sources: list[Source]) -> list[dict[str, Any]]:
    """Every `summary.json` of a stage that compared models, as a table of estimates."""
    found = []
    for source in sources:
        paths = [(name, reader.folder / "summary.json") for name, reader in source.stages.items()]
        present = [(name, path) for name, path in paths if path.exists()]
        if not present and (source.folder / "summary.json").exists():
            present = [("summary.json", source.folder / "summary.json")]
        for name, path in present:
            body = source.attempt(f"{name}/summary.json", None, read_json, path)
            if body is None:
                source.notes.append(f"{source.label(name)}/summary.json is damaged and left out.")
                continue
            table = source.attempt(f"{name}/summary.json", None, _evaluation, source, name, body)
            if table is not None:
                found.append(table)
    return found


def _evaluation(source: Source, name: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    models = {k: v for k, v in (body.get("models") or {}).items() if isinstance(v, Mapping)}
    if not models and (one := body.get("evaluation")) and one.get("benchmarks"):
        return None
    if not models:
        source.notes.append(f"{source.label(name)} compared no models.")
        return None
    first = next(iter(models.values()))
    extra = list(dict.fromkeys(str(key) for facts in models.values() for key in (facts.get("rewards") or {})))
    rows = [_row(model, facts, extra) for model, facts in models.items()]
    columns = [
        {"key": key, "title": title, "unit": unit, "better": better, "about": about}
        for key, title, unit, better, about in COLUMNS
    ] + [
        {"key": f"reward:{e}", "title": text_of(e), "unit": "", "better": "up", "about": "a further reward"}
        for e in extra
    ]
    kind = str(first.get("proxy_kind") or "model")
    for column in columns:
        if column["key"] == "proxy":
            column["title"] = PROXY.get(kind, "Proxy reward")
            column["unit"] = "share" if kind == "rule" else ""
    columns = [c for c in columns if any(row["cells"].get(c["key"]) for row in rows)]
    return {
        "title": text_of(source.label(name)),
        "run": text_of(source.name),
        "stage": text_of(name),
        "columns": columns,
        "rows": rows,
        "baseline": text_of(next((f.get("baseline") for f in models.values() if f.get("baseline")), "")),
        "by": text_of(first.get("win_by") or ""),
        "kind": kind,
        "judge": [text_of(line) for line in _judge_lines(models)],
        **_disclosed(body.get("evaluation")),
    }


def _disclosed(facts: Any) -> dict[str, Any]:
    """Alarms, null rows and the models that were looked at on the same prompts, of the evaluation as a whole."""
    facts = facts if isinstance(facts, Mapping) else {}
    selection = one if isinstance(one := facts.get("selection"), Mapping) else {}
    nulls = [row for row in facts.get("null_rows") or [] if isinstance(row, Mapping)]
    return {
        "alarms": [text_of(line).removeprefix("! alarm: ") for line in facts.get("alarms") or []],
        "looked_at": rounded(selection.get("models")) or 0,
        "part": text_of(facts.get("part")),
        "looks": len(selection.get("evaluations") or []),
        "nulls": [
            {"name": text_of(row.get("name")), **(estimate_of({**row, "value": row.get("win_rate")}) or {})}
            for row in nulls
        ],
    }


def _row(model: str, facts: Mapping[str, Any], extra: list[str]) -> dict[str, Any]:
    cells = {key: estimate(facts.get(key), facts.get(f"{key}_ci")) for key, *_ in COLUMNS}
    for name in extra:
        one = (facts.get("rewards") or {}).get(name)
        if isinstance(one, Mapping):
            cells[f"reward:{name}"] = estimate(one.get("value"), one.get("ci"), one.get("n"))
    return {
        "model": text_of(model),
        "prompts": rounded(facts.get("prompts")),
        "n": rounded(facts.get("n")),
        "unscored": rounded(facts.get("unscored")) or 0,
        "cells": {key: cell for key, cell in cells.items() if cell is not None},
        "tests": _tests(facts),
        "costs": {key: rounded(facts[key]) for key in COSTS if number(facts.get(key)) is not None},
    }


def _tests(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, p-values and smallest differences that would have shown, as far as the summary has them."""
    keys = ("wins", "ties", "losses", "undecided", "win_rate_p", "win_rate_q", "win_rate_mde")
    found: dict[str, Any] = {key: rounded(facts[key]) for key in keys if rounded(facts.get(key)) is not None}
    differences = facts.get("differences")
    rows = differences.items() if isinstance(differences, Mapping) else ()
    found["differences"] = {
        text_of(key): (estimate_of(row) or {}) | {k: rounded(row.get(k)) for k in ("p", "q", "mde")}
        for key, row in rows
        if isinstance(row, Mapping) and estimate_of(row)
    }
    return found


def _judge_lines(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, facts in models.items():
        one = facts.get("judge")
        if isinstance(one, Mapping):
            known = [f"{key.replace('_', ' ')}: {value:g}" for key, value in one.items() if number(value) is not None]
            yield f"{name}: {', '.join(known)}"


def before_after(sources: list[Source]) -> list[dict[str, Any]]:
    """Every `before_after.json`: lines with before, after and the paired change."""
    found, no_lines = [], list[dict[str, Any]]()
    for source, name, body in _files(sources, "before_after.json"):
        lines = source.attempt(f"{name}/before_after.json", no_lines, _lines, body)
        if lines:
            note = body.get("note") or body.get("notes") or ""
            note = " ".join(map(str, note)) if isinstance(note, list) else str(note)
            found.append({"title": text_of(source.label(name)), "lines": lines, "note": text_of(note, 600)})
    return found


def _lines(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_line(row) for row in body["lines"]]


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    line = Line.from_dict(row)
    better = is_better(line)
    return {
        "name": text_of(line.name.strip()),
        "inner": line.name.startswith(" "),
        "unit": line.unit,
        "before": estimate_of(row.get("before")),
        "after": estimate_of(row.get("after")),
        "change": estimate_of(row.get("change")),
        "about": text_of(line.means),
        "verdict": "" if better is None else "better" if better else "worse",
        "higher": line.higher,
    }


def reward_models(sources: list[Source]) -> list[dict[str, Any]]:
    """Every `reward_report.json`: what a reward model gets right on labelled pairs."""
    found = []
    for source, name, body in _files(sources, "reward_report.json"):
        table = source.attempt(f"{name}/reward_report.json", None, _reward, source, name, body)
        if table is not None:
            found.append(table)
    return found


def _reward(source: Source, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    def rows(key: str) -> list[dict[str, Any]]:
        return [
            {"label": text_of(row.get("label")), "accuracy": estimate_of(row.get("accuracy"))}
            for row in body.get(key) or []
            if isinstance(row, Mapping)
        ]

    bins = [
        {"predicted": rounded(row.get("predicted")), "observed": estimate_of(row.get("observed"))}
        for row in body.get("reliability") or []
        if isinstance(row, Mapping)
    ]
    return {
        "title": text_of(source.label(name)),
        "model": text_of(short(str(body.get("model") or ""))),
        "data": text_of(short(str(body.get("data") or ""))),
        "pairs": rounded(body.get("pairs")),
        "prompts": rounded(body.get("prompts")),
        "findings": [text_of(line) for line in body.get("findings") or []],
        "accuracy": estimate_of(body.get("accuracy")),
        "longer_wins": estimate_of(body.get("longer_wins")),
        "picks_longer": estimate_of(body.get("picks_longer")),
        "above_rule": estimate_of(body.get("above_rule")),
        "log_loss": estimate_of(body.get("log_loss")),
        "ece": rounded(body.get("ece")),
        "spearman": rounded(body.get("length_spearman")),
        "by_length": rows("by_length"),
        "bins": bins,
    }


def _files(sources: list[Source], file: str) -> Iterator[tuple[Source, str, dict[str, Any]]]:
    for source in sources:
        for name, reader in source.stages.items():
            path = reader.folder / file
            if not path.exists():
                continue
            body = read_json(path)
            if body is None:
                source.notes.append(f"{source.label(name)}/{file} is damaged and left out.")
            else:
                yield source, name, body
