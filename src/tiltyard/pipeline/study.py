"""A study: one recipe under several seeds, and its measurements as means over seeds with intervals.

    runs/NAME/seed-0/, runs/NAME/seed-1/, ...    a run each
    runs/NAME/RECIPE.json                        the means; RECIPE is the file's name: recipes of one NAME share stages

Stages that are equal under all seeds (a setting `seed` of their own, and the same inputs) are computed once and copied.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tiltyard.errors import ConfigError
from tiltyard.files import read_json, write_json
from tiltyard.pipeline.recipe import Recipe, Step, check, find_recipe, read_recipe
from tiltyard.pipeline.run import run
from tiltyard.stats.seeds import at_equal, over_seeds
from tiltyard.yaml_values import split_assignment

METRICS = (
    "gold",
    "proxy",
    "kl",
    "win_rate",
    "win_rate_equal_length",
    "length",
    "helpful",
    "truthful",
    "harmless",
    "distinct_2",
    "entropy",
)
MEASURED = ("reward_eval", "reward_stability")  # kinds of stages whose results are measurements
STRENGTH = "@"  # FAMILY@STRENGTH: models of one method at several strengths
Table = dict[str, dict[str, float]]  # {model or stage: {metric: value}}


def run_study(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    seeds: int = 3,
    first: int = 0,
    at: Sequence[str] = (),
    dry_run: bool = False,
    runs_root: str | Path = "runs",
    jobs: int = 1,
    console: Console | None = None,
) -> dict[str, Any]:
    """Runs a recipe once with each seed and writes the means over seeds; finished stages are skipped.

    Args:
        path, overrides, dry_run, runs_root, jobs, console: as `run_recipe`; a dry run plans the first seed.
        seeds: their number; `first`, `first` + 1, ... go to every stage that has the setting and does not set it.
        at: `METRIC=VALUE`, such as `kl=0.5`: the families of models (FAMILY@STRENGTH) are compared at that value too.

    Returns:
        `name`, `folder`, `seeds`, and `tables`: {stage: {model: {metric: mean with interval}}}.

    Raises:
        ConfigError: a seed among the overrides, or an `at` that is no assignment of a number.
    """
    console = console or Console()
    levels = dict(map(_level, at))
    recipes = [_seeded(path, overrides, seed) for seed in range(first, first + seeds)]
    folder = Path(runs_root) / read_recipe(path, overrides).name
    if dry_run:
        return run(recipes[0], dry_run=True, runs_root=folder, jobs=jobs, console=console)
    for number, recipe in enumerate(recipes):
        console.print(f"[bold]seed {first + number}[/] ({number + 1} of {seeds})", highlight=False)
        if number:
            share(recipes[0], recipe, folder)
        run(recipe, runs_root=folder, jobs=jobs, console=console)
    result = {
        "name": folder.name,
        "recipe": Path(find_recipe(path)).stem,
        "folder": str(folder),
        "seeds": [first + number for number in range(seeds)],
        "tables": summarise(folder, recipes, levels),
    }
    write_json(folder / f"{result['recipe']}.json", result)
    return result


def _seeded(path: str | Path, overrides: Sequence[str], seed: int) -> Recipe:
    for text in overrides:
        if text.startswith("defaults.seed="):
            raise ConfigError("a study sets the seeds", where=text, fix="--first 7 --seeds 3 runs the seeds 7, 8 and 9")
    recipe = read_recipe(path, [*overrides, f"defaults.seed={seed}"])
    return replace(recipe, name=f"seed-{seed}")


def _level(text: str) -> tuple[str, float]:
    key, value = split_assignment(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError("--at needs a number", where=f"--at {text}", expected="METRIC=NUMBER, e.g. kl=0.5")
    return key, float(value)


def share(source: Recipe, recipe: Recipe, folder: Path) -> list[str]:
    """Copies the finished stages of one seed's run that another's would compute again alike; returns their names.

    A run decides by its fingerprints whether it skips a stage, so a copy that does not fit is run again.
    """
    steps = {step.name: step for step in check(source)}
    copied: list[str] = []
    for step in check(recipe):
        old, new = folder / source.name / step.name, folder / recipe.name / step.name
        if not _equal(steps[step.name], step) or not set(step.uses) <= set(copied):
            continue
        if (old / "done.json").exists():
            copied.append(step.name)
            if not new.exists():
                shutil.copytree(old, new, ignore=shutil.ignore_patterns("checkpoints"))
    return copied


def _equal(one: Step, other: Step) -> bool:
    return one.stage.name == other.stage.name and one.settings == other.settings and one.inputs == other.inputs


# ------------------------------------------------------------------------------------------------------------- means


def summarise(folder: Path, recipes: Sequence[Recipe], levels: Mapping[str, float]) -> dict[str, Any]:
    """Returns {stage: {model: {metric: facts}}} over the runs of the seeds.

    Facts: `value`, `low`, `high` and `n` over seeds, the `values`, `difference` from the baseline (the same, paired by
    seed) and `within`: half the mean width of the interval that a single run has.
    """
    measured: dict[str, list[Table]] = defaultdict(list)
    widths: dict[str, list[Table]] = defaultdict(list)
    baselines: dict[str, str] = {}
    for recipe in recipes:
        for step in check(recipe):
            place = folder / recipe.name / step.name
            if (found := read_json(place / "summary.json")) is not None:
                models = found["models"]
                measured[step.name].append({name: _metrics(facts) for name, facts in models.items()})
                widths[step.name].append({name: _widths(facts) for name, facts in models.items()})
                baselines[step.name] = next(iter(models.values()))["baseline"] or ""
            elif step.stage.name in MEASURED and (done := read_json(place / "done.json")):
                result = done["result"]
                rows = result.get("rows", {step.name: result})
                table = {name: {k: float(v) for k, v in row.items() if _number(v)} for name, row in rows.items()}
                measured[step.stage.name].append(table)
    merged = {kind: _by_stage(measured.pop(kind)) for kind in MEASURED if kind in measured}
    return {
        stage: _means([*_at_levels(tables, levels, baselines.get(stage, ""))], widths[stage], baselines.get(stage, ""))
        for stage, tables in {**measured, **merged}.items()
    }


def _by_stage(rows: Sequence[Table]) -> list[Table]:
    """One table a seed, of the stages' rows in their order: each stage occurs once a seed."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    seeds = max(map(len, columns.values()))
    return [{name: values[i] for name, values in columns.items() if i < len(values)} for i in range(seeds)]


def _metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """Gold, proxy, the recipe's own monitors, then the rest: a table has few columns."""
    rewards = {name: one.get("value") for name, one in (facts.get("rewards") or {}).items()}
    known = {**{key: facts.get(key) for key in METRICS[:2]}, **rewards, **{key: facts.get(key) for key in METRICS[2:]}}
    return {name: float(value) for name, value in known.items() if _number(value)}


def _widths(facts: Mapping[str, Any]) -> dict[str, float]:
    pairs = {key: facts.get(f"{key}_ci") for key in METRICS}
    return {key: (ci[1] - ci[0]) / 2 for key, ci in pairs.items() if ci and None not in ci}


def _at_levels(tables: Sequence[Table], levels: Mapping[str, float], baseline: str) -> Iterator[Table]:
    """Each seed's table with a row `FAMILY at KEY=VALUE` for every family that reaches that value."""
    for table in tables:
        families: dict[str, list[dict[str, float]]] = defaultdict(list)
        for name, row in table.items():
            if STRENGTH in name:
                families[name.partition(STRENGTH)[0]].append(row)
        added: Table = {}
        for key, level in levels.items():
            for family, rows in families.items():
                known = [row for row in [*rows, *([table[baseline]] if baseline in table else [])] if key in row]
                values = {m: at_equal([(row[key], row[m]) for row in known if m in row], level) for m in _keys(known)}
                if reached := {metric: value for metric, value in values.items() if value is not None}:
                    added[f"{family} at {key}={level:g}"] = reached
        yield {**table, **added}


def _keys(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _means(tables: Sequence[Table], widths: Sequence[Table], baseline: str) -> dict[str, dict[str, Any]]:
    names = list(dict.fromkeys(name for table in tables for name in table))
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        rows = [table[name] for table in tables if name in table]
        found[name] = {}
        for metric in _keys(rows):
            values = [row[metric] for row in rows if metric in row]
            facts: dict[str, Any] = {**over_seeds(values)._asdict(), "values": values}
            pairs = [(t[name][metric], t[baseline][metric]) for t in tables
                     if baseline in t and metric in t.get(name, {}) and metric in t[baseline]]  # fmt: skip
            if pairs and name != baseline:
                facts["difference"] = over_seeds([a - b for a, b in pairs])._asdict()
            if inner := [w[name][metric] for w in widths if metric in w.get(name, {})]:
                facts["within"] = statistics.fmean(inner)
            found[name][metric] = facts
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
