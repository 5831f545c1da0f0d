"""`tiltyard sample` and `tiltyard chat`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tiltyard.cli.arguments import LARGEST, Json, Model, Runs, find_model, prompts_of_stdin
from tiltyard.cli.output import console_for, emit, responses_as_json
from tiltyard.errors import ConfigError

Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this total probability.")]
TopK = Annotated[int, typer.Option(min=0, max=LARGEST, help="Keep this many tokens; 0 keeps all.")]
MaxTokens = Annotated[int, typer.Option(min=1, max=LARGEST, help="Maximum tokens of a response.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends a response too; may be repeated.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST, help="The same seed gives the same responses.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


def sample(
    model: Model,
    *,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="May be repeated; else stdin.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=LARGEST, help="Responses to each prompt.")] = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_tokens: MaxTokens = 128,
    stop: Stop = None,
    seed: Seed = 0,
    device: Device = "auto",
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Sample responses to prompts.

    Prompts come from --prompt, or from standard input, one a line.
    """
    from tiltyard.report.text import plain

    placed = [("--prompt", text) for text in prompt or ()]
    if not placed and not sys.stdin.isatty():
        placed = prompts_of_stdin()
    if not placed:
        raise ConfigError("no prompt was given", where="sample", fix='--prompt "...", or lines on stdin')
    path = find_model(model, runs)
    conversation = importlib.import_module("tiltyard.cli.conversation")
    groups = conversation.sample(
        path,
        placed,
        n=n,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        seed=seed,
        device=device,
    )
    if json_output:
        emit([responses_as_json(text, group) for (_, text), group in zip(placed, groups, strict=True)])
        return
    console = console_for(False)
    for (_, text), group in zip(placed, groups, strict=True):
        console.print(f"[bold]{escape(plain(text))}[/]", highlight=False)
        for response in group.responses:
            cut = " [dim](cut)[/]" if response.finish == "length" else ""
            console.print(f"  {escape(plain(response.text))}{cut}", highlight=False, soft_wrap=True)


def chat(
    model: Model,
    *,
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_tokens: MaxTokens = 256,
    stop: Stop = None,
    seed: Seed = 0,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Chat with a model in the terminal; an empty line ends it."""
    path = find_model(model, runs)
    conversation = importlib.import_module("tiltyard.cli.conversation")
    conversation.chat(
        path,
        system=system,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        seed=seed,
        device=device,
        console=console_for(False),
    )
