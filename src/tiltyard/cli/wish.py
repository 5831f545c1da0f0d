"""The verbs `init` and `align`: from a model, data and a wish to a recipe, or to an evaluated model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiltyard.cli.arguments import DryRun, Json, Runs
from tiltyard.cli.output import console_for, emit
from tiltyard.errors import ConfigError

if TYPE_CHECKING:
    from tiltyard.advice import Request

Want = Annotated[
    str, typer.Option(help="imitate, prefer, reward or judge; empty: what the data are for.", metavar="WISH")
]
RewardOption = Annotated[
    str, typer.Option(help="Reward model, FILE.py:FUNCTION, or a rule in YAML: '{from: rule, max_words: 40}'.")
]
JudgeOption = Annotated[str, typer.Option(help="An AI judge in YAML: '{kind: model, model: FOLDER}'.")]
Minutes = Annotated[float, typer.Option(help="The time that everything may take; 0: as long as all rows take.")]
LoraOption = Annotated[bool, typer.Option("--lora", help="Train adapters.")]
FullOption = Annotated[bool, typer.Option("--full", help="Train all weights.")]
Name = Annotated[str, typer.Option(help="The run's name; empty: made of the model's and the data's.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all random choices.")]
Split = Annotated[str, typer.Option(help="Split of a folder or hub data set; else train, or the only one.")]
Template = Annotated[
    bool, typer.Option("--default-template", help="Give a model without a chat template the plain default one.")
]
NoClean = Annotated[
    bool, typer.Option("--no-clean", help="Keep repeated rows, and answers that are given to everything.")
]


def init(
    *,
    model: Annotated[str, typer.Option(help="A model folder, RUN/STAGE, or a hub name.")] = "",
    data: Annotated[str, typer.Option(help="A file, folder or hub name.")] = "",
    want: Want = "",
    reward: RewardOption = "",
    judge: JudgeOption = "",
    minutes: Minutes = 30.0,
    lora: LoraOption = False,
    full: FullOption = False,
    name: Name = "",
    seed: Seed = 0,
    split: Split = "",
    default_template: Template = False,
    no_clean: NoClean = False,
    out: Annotated[Path, typer.Option(help="The recipe that is written.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the recipe if it is there.")] = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Write a commented recipe for a model, data and a wish, and estimate its time and memory.

    Asks for what is missing, in a terminal. `tiltyard run FILE` runs the recipe.
    """
    if not (model and data):
        model, data, want, reward = _asked(model, data, want, reward)
    request = _request(
        model,
        data,
        runs,
        lora,
        full,
        want=want,
        reward=reward,
        judge=judge,
        minutes=minutes,
        name=name,
        seed=seed,
        split=split,
        default_template=default_template,
        clean=not no_clean,
    )
    _check_new(out, force)
    from tiltyard.advice import advise
    from tiltyard.advice.align import say
    from tiltyard.files import write_atomic

    console = console_for(json_output)
    advice = advise(request, lambda line: say(console, line))
    text = advice.recipe()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text.encode())
    if json_output:
        emit({**advice.to_dict(), "recipe": str(out), "text": text})
        return
    for line in [*advice.facts(), *advice.estimate()]:
        say(console, line)
    say(console, f"written: {out}; run it with: tiltyard run {out}")


def align(
    model: Annotated[str, typer.Argument(help="A model folder, RUN/STAGE, or a hub name.")],
    data: Annotated[str, typer.Argument(help="A file, folder or hub name.")],
    *,
    want: Want = "",
    reward: RewardOption = "",
    judge: JudgeOption = "",
    minutes: Minutes = 30.0,
    lora: LoraOption = False,
    full: FullOption = False,
    name: Name = "",
    seed: Seed = 0,
    split: Split = "",
    default_template: Template = False,
    no_clean: NoClean = False,
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Align a model on data in one go: check, hold out, train, and compare before with after.

    Run it again to resume it. The recipe lies in the run's folder.
    """
    request = _request(
        model,
        data,
        runs,
        lora,
        full,
        want=want,
        reward=reward,
        judge=judge,
        minutes=minutes,
        name=name,
        seed=seed,
        split=split,
        default_template=default_template,
        clean=not no_clean,
    )
    from tiltyard.advice.align import align as go
    from tiltyard.advice.align import next_steps, say

    console = console_for(json_output)
    outcome = go(request, runs_root=runs, console=console, dry_run=dry_run)
    if json_output:
        emit(outcome)
    elif not dry_run:
        for line in next_steps(outcome):
            say(console, line)


def _check_new(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise ConfigError(
            "there is such a file",
            where="--out",
            got=str(out),
            expected="the name of a new file",
            fix="--out OTHER.yaml, or --force to replace it",
        )


def _request(model: str, data: str, runs: Path, lora: bool, full: bool, **values: Any) -> Request:
    """The request of the options; `values` are its other fields."""
    from tiltyard.advice import Request
    from tiltyard.cli.arguments import find_model

    if lora and full:
        raise ConfigError(
            "adapters or all weights?", where="--lora", got="--lora and --full", expected="one", fix="leave one out"
        )
    size: Any = "lora" if lora else "full" if full else "auto"
    return Request(model=str(find_model(model, runs)), data=data, size=size, **values)


def _asked(model: str, data: str, want: str, reward: str) -> tuple[str, str, str, str]:
    """Asks for what is missing.

    Raises:
        ConfigError: there is no terminal to ask in.
    """
    if not sys.stdin.isatty():
        missing = " and ".join(name for name, value in (("--model", model), ("--data", data)) if not value)
        raise ConfigError(
            "something is missing, and there is no terminal to ask in",
            where="init",
            got=f"no {missing}",
            expected="--model MODEL --data DATA",
            fix="tiltyard init --model FOLDER --data pairs.jsonl --want prefer",
        )
    model = model or typer.prompt("Model (a folder or hub name)")
    data = data or typer.prompt("Data (a file, folder or hub name)")
    if not want:
        typer.echo("What do you want? imitate: answer like the data's answers. prefer: like the better ones.")
        typer.echo("reward: raise a number of your own. judge: please an AI judge. Empty: what the data are for.")
        want = typer.prompt("Wish", default="", show_default=False)
    if want == "reward" and not reward:
        reward = typer.prompt("Reward (a model, FILE.py:FUNCTION, or a rule: {from: rule, max_words: 40})")
    return model, data, want, reward
