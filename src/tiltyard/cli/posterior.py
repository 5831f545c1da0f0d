"""`tiltyard gap`: the distance of models to the posterior."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tiltyard.cli.arguments import DryRun, Json, Runs, find_model, find_reward, run_one_stage
from tiltyard.cli.output import emit, show_result
from tiltyard.errors import ConfigError


def gap(
    words: Annotated[
        list[str], typer.Argument(metavar="MODEL... PROMPTS [KEY=VALUE]", help="Models, a file of prompts, settings.")
    ],
    prior: Annotated[str, typer.Option(metavar="REF", help="The model that KL is measured to.")],
    reward: Annotated[str, typer.Option(metavar="RM", help="A reward model, function, address or rule.")],
    beta: Annotated[float, typer.Option(help="Of the target prior * exp(reward / beta), in units of the reward.")],
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Measure how far models are from the optimum of E[r] - beta KL, the posterior pi* = prior exp(r/beta)/Z.

    `tiltyard gap runs/demo/ppo --prior runs/demo/sft --reward runs/demo/reward --beta 0.2 prompts.jsonl`
    """
    pairs = gap_arguments(words, prior, reward, beta, runs)
    outcome = run_one_stage("gap", pairs, dry_run=dry_run, json_output=json_output, runs=runs)
    if json_output:
        folder = Path(outcome["stages"]["gap"]["folder"])
        emit(json.loads((folder / "gap.json").read_text(encoding="utf-8")) if not dry_run else outcome)
    elif not dry_run:
        show_result(outcome, "gap")


def gap_arguments(words: Sequence[str], prior: str, reward: str, beta: float, runs: Path) -> list[str]:
    """The settings of the stage as `KEY=VALUE`.

    Raises:
        ConfigError: no model, or no prompts. ModelError: a model that is not there.
    """
    plain = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    keys = {word.partition("=")[0] for word in settings}
    if "prompts" not in keys:
        if len(plain) < 2:
            raise ConfigError(
                "gap needs a model and prompts",
                where="gap",
                got=" ".join(plain) or "nothing",
                expected="tiltyard gap MODEL --prior REF --reward RM --beta B PROMPTS",
            )
        settings.append(f"prompts={plain.pop()}")
    if plain:
        settings.append(f"models={json.dumps([str(find_model(word, runs)) for word in plain])}")
    return [f"prior={find_model(prior, runs)}", f"reward={find_reward(reward, runs)}", f"beta={beta}", *settings]
