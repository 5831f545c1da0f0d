"""The verbs, from `run` to `doctor`. Heavy imports happen inside the verbs."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tiltyard.allocator import tune
from tiltyard.errors import (
    CompositionError,
    ConfigError,
    DataError,
    MissingDependency,
    ModelError,
    TiltyardError,
)
from tiltyard.verbs import (
    bench_values,
    console_for,
    emit,
    eval_words,
    find_model,
    one_stage,
    replay_words,
    sampled,
    show_result,
)

WRONG_INPUT = (ConfigError, DataError, ModelError, CompositionError, MissingDependency)

app = typer.Typer(
    help="Align language models with preferences. Start with `tiltyard doctor`, then `tiltyard run demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output; progress goes to standard error.")]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that holds the runs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")]
Pairs = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings.")]


def _version(value: bool) -> None:
    if value:
        from tiltyard.pipeline.state import package_version

        typer.echo(f"tiltyard {package_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    no_tune: Annotated[bool, typer.Option("--no-tune", help="Leave the memory allocator as it is.")] = False,
) -> None:
    """Options that hold for every verb; `main` reads them wherever they stand."""


# ------------------------------------------------------------------------------------------------- run, train, eval


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe of the package, e.g. demo.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="STAGE.KEY=VALUE", help="Also defaults.KEY=VALUE, name=NAME.")
    ] = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
    jobs: Annotated[int, typer.Option(min=1, help="Stages at a time, where they do not need each other.")] = 1,
) -> None:
    """Run a recipe; run it again to go on where it stopped."""
    from tiltyard.pipeline import run_recipe
    from tiltyard.pipeline.ranks import is_main

    console = console_for(json_output)
    outcome = run_recipe(recipe, overrides or [], dry_run=dry_run, runs_root=runs, jobs=jobs, console=console)
    if json_output:
        emit(outcome)
    elif not dry_run and is_main():
        console.print(f"everything is in {outcome['folder']}", highlight=False, soft_wrap=True)


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="A kind of stage: `tiltyard stages` lists them.")],
    settings: Pairs = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Run one method by itself.

    `tiltyard train sft model=M data=F name=NAME` writes runs/NAME/sft; without name= the run is called sft.
    """
    outcome = one_stage(method, settings, dry_run=dry_run, json_output=json_output, runs=runs)
    if json_output:
        emit(outcome)
    elif not dry_run:
        show_result(outcome, method)


@app.command("eval")
def evaluate(
    settings: Annotated[list[str] | None, typer.Argument(metavar="[DATA] KEY=VALUE", help="Settings.")] = None,
    reward: Annotated[str, typer.Option(metavar="MODEL", help="A reward model to judge on the labelled DATA.")] = "",
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Measure models, or a reward model.

    `tiltyard eval models=[runs/demo/sft,runs/demo/ppo] prompts=F`, `tiltyard eval --reward runs/demo/reward F`
    """
    kind, words = eval_words(reward, settings, runs)
    outcome = one_stage(kind, words, dry_run=dry_run, json_output=json_output, runs=runs)
    if json_output:
        emit(outcome)
    elif not dry_run:
        show_result(outcome, kind)


@app.command()
def replay(
    stage: Annotated[Path, typer.Argument(help="The folder of a stage that sampled, e.g. runs/demo/ppo.")],
    settings: Pairs = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train a stage again on the answers and scores that it stored.

    `tiltyard replay runs/demo/ppo lr=1e-4 name=slower`
    """
    kind, words = replay_words(stage, settings)
    outcome = one_stage(kind, words, dry_run=dry_run, json_output=json_output, runs=runs)
    if json_output:
        emit(outcome)
    elif not dry_run:
        show_result(outcome, kind)


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="A file, folder or hub name.")],
    *,
    held_out: Annotated[str, typer.Option(help="A second file that should share nothing with the first.")] = "",
    kind: Annotated[str, typer.Option(help="demonstrations, comparisons, prompts or text.")] = "comparisons",
    json_output: Json = False,
) -> None:
    """Look at data before training on them: duplicates, ties, contradictions, empty answers, length bias."""
    from tiltyard.stages.data import check_files

    found = check_files(data, held_out, kind)
    if json_output:
        emit(found.to_dict())
        return
    for line in found.lines():
        console_for(False).print(line, markup=False, highlight=False)


# ---------------------------------------------------------------------------------------------------- sample, chat

Model = Annotated[str, typer.Argument(help="A model folder, RUN/STAGE (runs/demo/sft or demo/sft), or a hub name.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this total probability.")]
TopK = Annotated[int, typer.Option(min=0, help="Keep this many tokens; 0 keeps all.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens an answer may have.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same answers.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


@app.command()
def sample(
    model: Model,
    *,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="May be repeated; else stdin.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Answers to each prompt.")] = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_tokens: MaxTokens = 128,
    seed: Seed = 0,
    device: Device = "auto",
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Sample answers to prompts.

    Prompts come from --prompt, or from standard input, one a line.
    """
    prompts = list(prompt or ())
    if not prompts and not sys.stdin.isatty():
        prompts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not prompts:
        raise ConfigError("there is nothing to answer", where="sample", fix='--prompt "...", or lines on stdin')
    path = find_model(model, runs)
    talk = importlib.import_module("tiltyard.stages.talk")
    groups = talk.sample(
        path,
        prompts,
        n=n,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
    )
    if json_output:
        emit([sampled(text, group) for text, group in zip(prompts, groups, strict=True)])
        return
    console = console_for(False)
    for text, group in zip(prompts, groups, strict=True):
        console.print(f"[bold]{escape(text)}[/]", highlight=False)
        for response in group.responses:
            cut = " [dim](cut)[/]" if response.finish == "length" else ""
            console.print(f"  {escape(response.text)}{cut}", highlight=False, soft_wrap=True)


@app.command()
def chat(
    model: Model,
    *,
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_tokens: MaxTokens = 256,
    seed: Seed = 0,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Talk with a model; an empty line ends it."""
    path = find_model(model, runs)
    talk = importlib.import_module("tiltyard.stages.talk")
    talk.chat(
        path,
        system=system,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        console=console_for(False),
    )


# ------------------------------------------------------------------------------------ bench, stages, show, doctor


@app.command()
def bench(
    model: Model,
    settings: Pairs = None,
    *,
    method: Annotated[str, typer.Option(help="A training method: `tiltyard methods` lists them.")] = "sft",
    data: Annotated[str, typer.Option(help="What it learns from: a file, folder or hub name.")] = "",
    prompts: Annotated[str, typer.Option(help="Prompts, for a method that samples.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Steps before them that are not.")] = 2,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Say where the time of a method goes on a model and data.

    `tiltyard bench runs/demo/sft --method dpo --data pairs.jsonl batch=8`; nothing is written.
    """
    path = find_model(model, runs)
    values = bench_values(method, path, data, prompts, settings)
    measuring = importlib.import_module("tiltyard.bench")
    found = measuring.measure(method, values, steps=steps, warmup=warmup)
    emit(found) if json_output else measuring.show(found, console_for(False))


@app.command()
def stages(json_output: Json = False) -> None:
    """List the stages that recipes and `train` may name."""
    from tiltyard.stages.base import load_all

    known = load_all()
    if json_output:
        emit({name: stage.summary for name, stage in known.items()})
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, stage in known.items():
        table.add_row(f"[bold]{name}[/]", escape(stage.summary))
    console_for(False).print(table)


@app.command()
def show(kind: Annotated[str, typer.Argument(help="A kind of stage.")], json_output: Json = False) -> None:
    """Print a stage's settings, defaults and meaning; of a method also its pieces, models, formula and optimum."""
    from tiltyard.stages.methods import expand, print_stage

    found = expand(kind)
    emit(found) if json_output else print_stage(found, console_for(False))


@app.command()
def methods(
    family: Annotated[str, typer.Option(help="Only this family, e.g. offline.")] = "", json_output: Json = False
) -> None:
    """Compare the methods: data, labels, sampling, feedback, models in memory."""
    from tiltyard.stages.methods import compare, print_comparison

    rows = compare(family)
    emit(rows) if json_output else print_comparison(rows, console_for(False))


@app.command()
def doctor(json_output: Json = False) -> None:
    """Say what is installed, missing, and how to get it."""
    from tiltyard.doctor import examine, show_checks

    checks = examine()
    if json_output:
        emit([check._asdict() for check in checks])
    else:
        show_checks(checks, console_for(False))
    if any(check.status == "bad" for check in checks):
        raise typer.Exit(1)


# ---------------------------------------------------------------------------------------------------------- errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. 0: done; 1: it failed while running; 2: wrong input; 130: interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if argv is None and "--no-tune" not in words:  # a process of our own
        tune()
    try:
        app(args=[word for word in words if word not in ("--debug", "--no-tune")], prog_name="tiltyard")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif isinstance(error, TiltyardError):
            typer.echo(f"error: {error}", err=True)
        else:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename}:{last.lineno}"
            typer.echo(f"error: {type(error).__name__}: {error}\n  at:       {where} (--debug shows the way)", err=True)
        return 2 if isinstance(error, WRONG_INPUT) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
