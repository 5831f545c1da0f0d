"""The page of one or more runs: a single HTML file with its data, script and style inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tiltyard.errors import ConfigError
from tiltyard.files import write_atomic
from tiltyard.report.html.alarms import alarms
from tiltyard.report.html.benchmarks import benchmarks
from tiltyard.report.html.cost import cost_of
from tiltyard.report.html.curves import curves
from tiltyard.report.html.data import data_facts
from tiltyard.report.html.frontier import frontier
from tiltyard.report.html.gaps import gaps
from tiltyard.report.html.infers import infers
from tiltyard.report.html.island import island, source_hash
from tiltyard.report.html.pairs import comparisons
from tiltyard.report.html.pipeline import Defaults, stage_facts, wall_time, within
from tiltyard.report.html.reading import Source, open_runs, text_of
from tiltyard.report.html.results import before_after, evaluations, reward_models
from tiltyard.report.html.samples import samples
from tiltyard.report.html.sentences import summary_of, trains_policies
from tiltyard.report.html.studies import studies

LARGEST = 4_900_000  # bytes of the page
SHARES = (0.5, 0.2, 0.05, 0.0)  # of the usual number of samples, until the page is small enough
SCRIPTS = tuple(
    f"{name}.js" for name in ("dom", "charts", "tables", "along", "pipeline", "curves", "diff", "samples", "page")
)


def write_report(
    runs: Sequence[str | Path],
    path: str | Path,
    *,
    defaults: Defaults | None = None,
    watts: float | None = None,
    price: float | None = None,
    version: str = "",
) -> tuple[Path, list[str]]:
    """Writes the report of the runs; returns its path and the notes about what is missing.

    Args:
        runs: folders of runs. defaults: kind of a stage -> its default settings. version: of the package.
        watts, price: as `cost_of`.

    Raises:
        ConfigError: no run, or a folder that does not exist.
    """
    if not runs:
        raise ConfigError("there is no run to report", expected="one folder or more, like runs/NAME")
    path = Path(path)
    page = page_data(runs, defaults=defaults, watts=watts, price=price, version=version)
    text = render(page)
    for share in SHARES:
        if len(text.encode()) <= LARGEST:
            break
        found = samples(open_runs([Path(run) for run in runs]), share=share)
        text = render(page | {"samples": found["items"], "sample_notes": found["notes"]})
    write_atomic(path, text.encode())
    return path, page["notes"]


def page_data(
    runs: Sequence[str | Path],
    *,
    defaults: Defaults | None = None,
    watts: float | None = None,
    price: float | None = None,
    version: str = "",
) -> dict[str, Any]:
    """All that the page shows, as JSON-ready values. Arguments as those of `write_report`."""
    sources = open_runs([Path(run) for run in runs])
    shown, cut = within([_run(source, defaults, watts, price) for source in sources])
    tables = evaluations(sources)
    found = samples(sources)
    page: dict[str, Any] = {
        "title": text_of(", ".join(source.name for source in sources)),
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "version": version,
        "runs": shown,
        "evaluations": tables,
        "before_after": before_after(sources),
        "reward_models": reward_models(sources),
        "gaps": gaps(sources),
        "infers": infers(sources),
        "studies": studies(sources),
        "benchmarks": benchmarks(sources),
        "comparisons": comparisons(sources, {table["title"]: table["baseline"] for table in tables}),
        "frontier": frontier(sources),
        "curves": curves(sources),
        "alarms": alarms(sources),
        "data": data_facts(sources),
        "samples": found["items"],
        "sample_notes": found["notes"],
    }
    page["notes"] = [
        *_missing(sources, page),
        *found["apart"],
        *cut,
        *dict.fromkeys(note for s in sources for note in s.notes),
    ]
    page["summary"] = summary_of(page)
    return page


def render(page: Mapping[str, Any]) -> str:
    """The page as HTML. All of its data are in the JSON island; the rest is equal for every run."""
    from jinja2 import Environment

    script, style = "\n".join(_static(name) for name in SCRIPTS), _static("report.css")
    template = Environment(autoescape=True).from_string(_text("templates", "report.html"))
    return template.render(
        script=script, style=style, script_hash=source_hash(script), style_hash=source_hash(style), data=island(page)
    )


def _run(source: Source, defaults: Defaults | None, watts: float | None, price: float | None) -> dict[str, Any]:
    stages = stage_facts(source, defaults)
    return {
        "name": text_of(source.name),
        "stages": stages,
        "cost": cost_of(stages, watts, price),
        "wall": wall_time(stages),
    }


def _missing(sources: Sequence[Source], page: Mapping[str, Any]) -> list[str]:
    """Notes about what a reader may expect and these runs do not have."""
    of_studies = {study["run"] for study in page["studies"]}
    empty = [source.name for source in sources if not source.stages and text_of(source.name) not in of_studies]
    found = [f"{name} has no stage that was started." for name in empty]
    kinds = {stage.get("kind") for run in page["runs"] for stage in run["stages"]}
    compared = page["evaluations"] or page["before_after"] or page["gaps"] or page["benchmarks"]
    if not compared and (trains_policies(page["runs"]) or not page["reward_models"]) and kinds:
        if kinds & {"evaluate", "before_after", "gap"}:
            found.append("No comparison of models could be read.")
        else:
            found.append("There is no evaluation: add a stage `evaluate` to the recipe, or run `tiltyard eval`.")
    found += [line for source in sources for line in _lost(source)]
    if not page["samples"] and any(source.stages for source in sources):
        found.append("No stage of these runs keeps responses, so there are no samples.")
    return found


def _lost(source: Source) -> Iterator[str]:
    """Notes about stages that others read and whose folders are gone."""
    readers: dict[str, list[str]] = {}
    for name, reader in source.stages.items():
        inputs = reader.config.inputs if reader.config is not None else {}
        for gone in inputs if isinstance(inputs, Mapping) else ():
            if gone not in source.stages:
                readers.setdefault(str(gone), []).append(name)
    for gone, names in readers.items():
        yield text_of(f"The stage {source.label(gone)}, which {', '.join(names)} read, is not there any more.")


def _static(name: str) -> str:
    return _text("static", name)


@cache
def _text(folder: str, name: str) -> str:
    return (files("tiltyard.report.html") / folder / name).read_text(encoding="utf-8")
