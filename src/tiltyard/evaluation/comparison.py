"""Two evaluated models of any two runs, compared on the same prompts: paired differences, and settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from tiltyard.errors import ConfigError, nearest
from tiltyard.evaluation.benchmark_pairs import BENCHMARKS, Measured, evaluated_lines, pairs_of, read_measured
from tiltyard.evaluation.outcomes import By, number, pair_outcomes, paired_means, win_facts
from tiltyard.evaluation.policies import EvaluatedResponse
from tiltyard.numerals import plural
from tiltyard.runs import RunReader, StageReader, find_run
from tiltyard.stats.intervals import rate_ci
from tiltyard.stats.paired import false_discovery

MEASUREMENTS = ("gold", "helpful", "truthful", "harmless", "proxy", "kl", "length")
KIND = "(kind of stage)"
_EVALUATED = "an evaluation leaves answers.jsonl or benchmarks.jsonl: tiltyard eval models=[...] prompts=FILE name=NAME"


class Evaluated(NamedTuple):
    """One model of an evaluation: its name, its responses, the evaluation's settings, and the run that it came from.

    `responses`: empty where the evaluation has benchmarks alone; `benchmarks`: by name, empty without any.
    """

    name: str
    responses: Sequence[EvaluatedResponse]
    stage: StageReader
    run: RunReader
    benchmarks: Mapping[str, Measured] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the evaluation."""
        return self.stage.config.settings if self.stage.config is not None else {}

    @property
    def trained(self) -> StageReader | None:
        """The stage that made the model, of this run or another; None where it is no stage's or not there any more."""
        models = self.settings.get("models") or []
        named = models if isinstance(models, Mapping) else {_last(text): text for text in models}
        text = str(named.get(self.name) or "")
        head = text.partition("/")[0]
        if head in self.run.stages:
            return self.run.stages[head]
        for folder in (Path(text), Path(text).parent):
            if text and (folder / "config.json").is_file() and (folder / "metrics.jsonl").exists():
                return StageReader(folder)
        return None


def _last(text: str) -> str:
    """The name that an evaluation gives a model that was not named: the last part of its path other than `model`."""
    return next((part for part in reversed(Path(text).parts) if part not in ("model", "/")), text)


def read_evaluated(name: str, runs: Path = Path("runs")) -> Evaluated:
    """Reads a model of a run's last evaluation that has it, RUN or RUN:MODEL, e.g. runs/demo or demo:ppo.

    Raises:
        ConfigError: no such run, no evaluation in it, no such model in its table, or several to choose from.
        DataError: a damaged file.
    """
    path, model = (name, "") if any(p.is_dir() for p in (Path(name), runs / name)) else _split(name)
    run = RunReader(find_run(path, runs))
    files = ("answers.jsonl", BENCHMARKS)
    stages = [stage for stage in run.stages.values() if any((stage.folder / file).exists() for file in files)]
    stages = [stage for stage in stages if stage.config is not None and stage.config.kind == "evaluate"]
    if not stages:
        got = " or ".join(files)
        raise ConfigError("the run has no finished evaluation", where=path, got=f"no {got}", fix=_EVALUATED)
    model = model or _only_model(path, stages[-1])
    for stage in reversed(stages):
        responses = _responses(stage)
        summary = RunReader(stage.folder).summary or {}
        settings = stage.config.settings if stage.config is not None else {}
        benchmarks = read_measured(stage.folder, summary, settings, model)
        if model in responses or benchmarks:
            return Evaluated(model, responses.get(model, []), stage, run, benchmarks)
    known = list(dict.fromkeys(name for stage in reversed(stages) for name in _models(stage)))
    raise ConfigError(f"the evaluation has no model '{model}'", where=str(stages[-1].folder), fix=nearest(model, known))


def _responses(stage: StageReader) -> dict[str, list[EvaluatedResponse]]:
    path = stage.folder / "answers.jsonl"
    return read_responses(path) if path.exists() else {}


def _models(stage: StageReader) -> list[str]:
    """The models of an evaluation, in the order of its table."""
    evaluation = (RunReader(stage.folder).summary or {}).get("evaluation") or {}
    return list(dict.fromkeys([*_responses(stage), *(evaluation.get("models") or {})]))


def _only_model(path: str, stage: StageReader) -> str:
    """The one model beside the baselines."""
    summary, models = RunReader(stage.folder).summary or {}, _models(stage)
    baselines = {facts.get("baseline") for facts in summary.get("models", {}).values()}
    baselines.add((summary.get("evaluation") or {}).get("baseline"))
    others = [key for key in models if key not in baselines] or models
    if len(others) > 1:
        raise ConfigError(
            "the evaluation has several models: name one",
            where=path,
            got=", ".join(others),
            fix=f"write {path}:{others[-1]}",
        )
    return others[0]


def _split(name: str) -> tuple[str, str]:
    path, _, model = name.rpartition(":")
    return (path, model) if path else (name, "")


def read_responses(path: str | Path) -> dict[str, list[EvaluatedResponse]]:
    """Reads the responses that an evaluation wrote, by model in the order of its table; unknown fields are left out.

    Raises:
        DataError: a line that is no evaluated response, with its `file:line`.
    """
    known = {field.name for field in fields(EvaluatedResponse)}
    found: dict[str, list[EvaluatedResponse]] = {}

    def read(row: dict[str, Any]) -> tuple[str, EvaluatedResponse]:
        return row["model"], EvaluatedResponse(**{key: value for key, value in row.items() if key in known})

    for model, response in evaluated_lines(Path(path), "evaluated response", read):
        found.setdefault(model, []).append(response)
    return found


def compare(first: Evaluated, second: Evaluated, *, rounds: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Computes the paired differences, second less first, of what was measured of both on the same prompts and files.

    Where the evaluations had other prompts or items too, those in common are compared, and `left_out` says how many
    they are.

    Returns:
        JSON-ready: `prompts`; `rows`, each with name, first, second, difference, low, high, p, q (adjusted for all
        rows, those of benchmarks too), mde, test; `benchmarks`: the same of each measure on a benchmark file, with
        benchmark, measure, unit, better; `wins` of the second over the first by gold, else by proxy, or None;
        `settings` that differ, as `settings_that_differ`; `left_out`: sentences about what cannot be compared.

    Raises:
        ConfigError: they have no prompt and no item of a benchmark in common.
    """
    how: dict[str, Any] = {"rounds": rounds, "seed": seed}
    same = {key: first.settings.get(key) == second.settings.get(key) for key in ("reward", "ref", "monitors", "judge")}
    scorers = all(same[key] for key in ("reward", "monitors", "judge"))
    pairs, notes = pairs_of(first.benchmarks, second.benchmarks, same_scorers=scorers, **how)
    one, other, left_out = _common(first, second)
    if not one.responses and not pairs:
        raise _nothing_in_common(first, second, notes)
    if one.responses and not same["reward"]:
        left_out.append("proxy: the two evaluations have other rewards, whose scores are not comparable")
    measured = [name for name in MEASUREMENTS if name != "proxy" or same["reward"]]
    rows = list(_rows(one, other, measured, how)) if one.responses else []
    benchmarks = [pair.to_dict() for pair in pairs]
    p_values = [row["p"] for row in rows] + [pair.difference.p for pair in pairs]
    for row, q in zip([*rows, *benchmarks], false_discovery(p_values), strict=True):
        row["q"] = number(q)
    by: By | None = next((b for b in ("gold", "proxy") if any(r["name"] == b for r in rows)), None)
    return {
        "first": first.name,
        "second": second.name,
        "prompts": len({response.key for response in one.responses}),
        "rows": [{k: number(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
        "benchmarks": benchmarks,
        "wins": None if by is None else _wins(one, other, by, how),
        **settings_that_differ(first, second),
        "left_out": [*left_out, *notes],
    }


def _common(first: Evaluated, second: Evaluated) -> tuple[Evaluated, Evaluated, list[str]]:
    """Both with the responses to the prompts that they have in common, and a sentence about the others."""
    keys = [{response.key for response in one.responses} for one in (first, second)]
    common = keys[0] & keys[1]
    kept = [one._replace(responses=[r for r in one.responses if r.key in common]) for one in (first, second)]
    if not any(keys) or keys[0] == keys[1]:
        return kept[0], kept[1], []
    if not common:
        line = (
            f"prompts: {plural(len(keys[0]), 'prompt')} and {plural(len(keys[1]), 'prompt')}, none in common: "
            "rewards, wins and lengths are not compared"
        )
    else:
        more = [len(one) - len(common) for one in keys]
        line = (
            f"other prompts: only the {len(common):,} in common are compared; {more[0]:,} of {first.name} and "
            f"{more[1]:,} of {second.name} are left out"
        )
    return kept[0], kept[1], [line]


def _nothing_in_common(first: Evaluated, second: Evaluated, notes: Sequence[str]) -> ConfigError:
    counts = [plural(len({response.key for response in one.responses}), "prompt") for one in (first, second)]
    return ConfigError(
        "the two models were evaluated on different prompts, so no difference of theirs is one of the models",
        where=f"{first.run.folder}, {second.run.folder}",
        got="; ".join([f"{counts[0]} and {counts[1]}, none in common", *notes]),
        expected="the same prompts, or the same benchmark files, for both",
        fix="evaluate both with the same prompts, limit and seed, or in one evaluation: tiltyard eval models=[...]",
    )


def _rows(
    first: Evaluated, second: Evaluated, measured: Sequence[str], how: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for name in measured:
        found = paired_means(second.responses, first.responses, name, **how)
        if found is not None:
            after, before, d = found
            yield {"name": name, "first": before, "second": after, "difference": d.value, **_without_value(d.to_dict())}


def _without_value(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "value"}


def _wins(first: Evaluated, second: Evaluated, by: By, how: Mapping[str, Any]) -> dict[str, Any] | None:
    pairs = pair_outcomes(second.responses, first.responses, by)
    known = [(pair.key, pair.outcome) for pair in pairs if pair.outcome is not None]
    if not known:
        return None
    rate = rate_ci([outcome for _, outcome in known], [key for key, _ in known], **how)
    return {
        "by": by,
        "win_rate": rate.value,
        "low": number(rate.low),
        "high": number(rate.high),
        **win_facts(pairs, **how),
    }


def settings_that_differ(first: Evaluated, second: Evaluated) -> dict[str, Any]:
    """Compares the stages that made the two models, and of two runs also their other stages of one name.

    Returns:
        `settings`: [stage, key, value in the first, value in the second] of every setting that differs, None where
        there is none; `of_one`: the same of those that only one of two methods has; `compared`: the stages that were
        looked at; `stages`: the names of both models' stages, None of a model that no stage made.
    """
    own = (first.trained, second.trained)
    names = [None if one is None else one.folder.name for one in own]
    found: dict[str, list[Any]] = {"settings": [], "of_one": [], "stages": names, "compared": []}
    apart = first.run.folder.resolve() != second.run.folder.resolve()
    if own[0] is not None and own[1] is not None:
        label = names[0] if names[0] == names[1] else f"{names[0]}|{names[1]}"
        one_kind = own[0].config is None or own[1].config is None or own[0].config.kind == own[1].config.kind
        found["compared"].append(label)
        for row in _differ(str(label), own[0], own[1]):
            found["settings" if one_kind or None not in row[2:] else "of_one"].append(row)
    sides = [{name: stage for name, stage in one.run.stages.items() if name not in names} for one in (first, second)]
    for name in dict.fromkeys([*sides[0], *sides[1]]) if apart else ():
        found["compared"].append(name)
        found["settings"] += _differ(name, sides[0].get(name), sides[1].get(name))
    return found


def _differ(label: str, first: StageReader | None, second: StageReader | None) -> Iterator[list[Any]]:
    """Yields the settings that differ; of a stage that only one run has its kind alone."""
    sides = [dict(_flat_settings(stage)) for stage in (first, second)]
    if not all(sides):
        sides = [{key: side[key] for key in (KIND,) if key in side} for side in sides]
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        if sides[0].get(key) != sides[1].get(key) or (key in sides[0]) != (key in sides[1]):
            yield [label, key, sides[0].get(key), sides[1].get(key)]


def _flat_settings(stage: StageReader | None) -> Iterator[tuple[str, Any]]:
    if stage is not None and stage.config is not None:
        yield KIND, stage.config.kind
        yield from _flat(stage.config.settings)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
