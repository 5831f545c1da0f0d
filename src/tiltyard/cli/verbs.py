"""The verbs of the command line except `sample` and `chat`. Heavy packages are imported inside the verbs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from tiltyard.cli.arguments import (
    LARGEST,
    DryRun,
    Json,
    Model,
    Pairs,
    Runs,
    Shard,
    bench_settings,
    eval_arguments,
    find_model,
    replay_arguments,
    run_one_stage,
)
from tiltyard.cli.output import console_for, emit, print_alarms, print_bench, show_result, summaries_table
from tiltyard.errors import ConfigError, nearest


def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe of the package, e.g. demo.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="STAGE.KEY=VALUE", help="Also defaults.KEY=VALUE, name=NAME.")
    ] = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
    jobs: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Stages at a time, where they do not need each other.")
    ] = 1,
    shard: Shard = False,
) -> None:
    """Run a recipe; run it again to resume it."""
    from tiltyard.distributed.processes import is_main
    from tiltyard.pipeline import run_recipe

    console = console_for(json_output)
    overrides = [*(overrides or ()), *(["defaults.shard=true"] if shard else [])]
    outcome = run_recipe(recipe, overrides, dry_run=dry_run, runs_root=runs, jobs=jobs, console=console)
    if json_output:
        emit(outcome)
    elif not dry_run and is_main():
        print_alarms(outcome, console)
        console.print(f"everything is in {outcome['folder']}", highlight=False, soft_wrap=True)


def train(
    method: Annotated[str, typer.Argument(help="A kind of stage: `tiltyard stages` lists them.")],
    settings: Pairs = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
    shard: Shard = False,
) -> None:
    """Run one method by itself.

    `tiltyard train sft model=M data=F name=NAME` writes runs/NAME/sft; without name= the run is called sft.
    """
    settings = [*(settings or ()), *(["shard=true"] if shard else [])]
    outcome = run_one_stage(method, settings, dry_run=dry_run, json_output=json_output, runs=runs)
    if json_output:
        emit(outcome)
    elif not dry_run:
        show_result(outcome, method)


def evaluate(
    settings: Annotated[list[str] | None, typer.Argument(metavar="[DATA] KEY=VALUE", help="Settings.")] = None,
    reward: Annotated[str, typer.Option(metavar="MODEL", help="A reward model to evaluate on the labelled DATA.")] = "",
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Measure models, or a reward model.

    `tiltyard eval models=[runs/demo/sft,runs/demo/ppo] prompts=F`, `tiltyard eval --reward runs/demo/reward F`
    """
    kind, pairs = eval_arguments(reward, settings, runs)
    outcome = run_one_stage(kind, pairs, dry_run=dry_run, json_output=json_output, runs=runs)
    if json_output:
        emit(outcome)
    elif not dry_run:
        show_result(outcome, kind)


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN[:MODEL]", help="An evaluated run, e.g. runs/a or runs/a:ppo.")],
    second: Annotated[str, typer.Argument(metavar="RUN[:MODEL]", help="Another, on the same prompts.")],
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Compare two evaluated models on the same prompts: paired differences with intervals, settings that differ.

    `tiltyard compare runs/a runs/b`, `tiltyard compare demo:dpo demo:ppo`
    """
    comparison = importlib.import_module("tiltyard.evaluation.comparison")
    found = comparison.compare(comparison.read_evaluated(first, runs), comparison.read_evaluated(second, runs))
    if json_output:
        emit(found)
    else:
        importlib.import_module("tiltyard.report.run_comparison").print_comparison(found, console_for(False))


def replay(
    stage: Annotated[Path, typer.Argument(help="The folder of a stage that samples, e.g. runs/demo/ppo.")],
    settings: Pairs = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train a stage again on its stored responses and scores.

    `tiltyard replay runs/demo/ppo lr=1e-4 name=slower`
    """
    from tiltyard.runs import existing_path

    found = existing_path(str(stage)) or existing_path(str(runs / stage)) or stage  # RUN/STAGE, as everywhere
    kind, pairs = replay_arguments(found, settings)
    outcome = run_one_stage(kind, pairs, dry_run=dry_run, json_output=json_output, runs=runs)
    if json_output:
        emit(outcome)
    elif not dry_run:
        show_result(outcome, kind)


def check(
    data: Annotated[str, typer.Argument(help="A file, folder or hub name.")],
    *,
    held_out: Annotated[str, typer.Option(help="A second file that should share nothing with the first.")] = "",
    kind: Annotated[str, typer.Option(help="comparisons, demonstrations, labelled, prompts or text.")] = "comparisons",
    split: Annotated[str, typer.Option(help="Split of a folder or hub data set; else train, or the only one.")] = "",
    json_output: Json = False,
) -> None:
    """Check data before training on them: duplicates, ties, contradictions, empty responses, length bias.

    Lists every row that cannot be used; the exit status is then 2.
    """
    from tiltyard.inputs.files import check_files
    from tiltyard.report.text import plain

    report = check_files(data, held_out, kind, split)
    if json_output:
        emit(report.to_dict())
    else:
        for line in report.lines():
            console_for(False).print(plain(line), markup=False, highlight=False, soft_wrap=True)
    if not report.complete:
        raise typer.Exit(2)


def bench(
    model: Model,
    settings: Pairs = None,
    *,
    method: Annotated[str, typer.Option(help="A training method: `tiltyard methods` lists them.")] = "sft",
    data: Annotated[str, typer.Option(help="Its training data: a file, folder or hub name.")] = "",
    prompts: Annotated[str, typer.Option(help="Prompts, for a method that samples.")] = "",
    steps: Annotated[int, typer.Option(min=1, max=LARGEST, help="Timed steps.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, max=LARGEST, help="Steps before the timed ones.")] = 2,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Measure where the time of a method goes, on a model and data.

    `tiltyard bench runs/demo/sft --method dpo --data pairs.jsonl prompts_per_step=8`; nothing is written.
    """
    path = find_model(model, runs)
    values = bench_settings(method, path, data, prompts, settings)
    report = importlib.import_module("tiltyard.cli.bench").measure(method, values, steps=steps, warmup=warmup)
    emit(report) if json_output else print_bench(report, console_for(False))


def merge(
    adapter: Annotated[str, typer.Argument(help="An adapter's folder, or a stage or run that was trained with lora.")],
    *,
    into: Annotated[str, typer.Option(help="The folder to write; ADAPTER-merged without it.")] = "",
    dtype: Annotated[str, typer.Option(help="Width of the weights: source, float32, bfloat16, float16.")] = "source",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    json_output: Json = False,
) -> None:
    """Merge an adapter into its model and write an ordinary model folder.

    `tiltyard merge runs/demo/lora --into merged`
    """
    widths = ("source", "float32", "bfloat16", "float16")
    if dtype not in widths:
        raise ConfigError("unknown width", where="--dtype", got=dtype, fix=nearest(dtype, widths))
    outcome = importlib.import_module("tiltyard.models.merging").merge(adapter, into, dtype=dtype, device=device)
    if json_output:
        emit(outcome)
    else:
        line = f"{outcome['adapter']} over {outcome['base']}: the merged model is in {outcome['model']}"
        console_for(False).print(line, markup=False, highlight=False, soft_wrap=True)


def stages(json_output: Json = False) -> None:
    """List the stages that recipes and `train` may name."""
    from tiltyard.stages.base import load_all

    summaries = {name: stage.summary for name, stage in load_all().items()}
    emit(summaries) if json_output else console_for(False).print(summaries_table(summaries))


def show(kind: Annotated[str, typer.Argument(help="A kind of stage.")], json_output: Json = False) -> None:
    """Print a stage's settings, defaults and meaning; of a method also its pieces, models, formula and optimum."""
    from tiltyard.cli.method_tables import print_stage
    from tiltyard.stages.methods import expand

    stage = expand(kind)
    emit(stage) if json_output else print_stage(stage, console_for(False))


def methods(
    family: Annotated[str, typer.Option(help="Only this family, e.g. offline.")] = "", json_output: Json = False
) -> None:
    """Compare the methods: data, labels, sampling, feedback, models in memory."""
    from tiltyard.cli.method_tables import print_comparison
    from tiltyard.stages.methods import compare

    rows = compare(family)
    emit(rows) if json_output else print_comparison(rows, console_for(False))


def doctor(json_output: Json = False) -> None:
    """Check the installation: what is there, what is missing and how to get it."""
    from tiltyard.cli.doctor import examine, show_checks

    checks = examine()
    if json_output:
        emit([check._asdict() for check in checks])
    else:
        show_checks(checks, console_for(False))
    if any(check.status == "bad" for check in checks):
        raise typer.Exit(1)
