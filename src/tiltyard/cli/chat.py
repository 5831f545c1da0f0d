"""`tiltyard sample` and `tiltyard chat`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from tiltyard.cli.arguments import LARGEST, Json, Model, Runs, find_model
from tiltyard.cli.output import console_for, emit, print_responses, responses_as_json
from tiltyard.cli.prompts import prompts_given

Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this total probability.")]
TopK = Annotated[int, typer.Option(min=0, max=LARGEST, help="Keep this many tokens; 0 keeps all.")]
MaxTokens = Annotated[int, typer.Option(min=1, max=LARGEST, help="Maximum tokens of a response.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends a response too; may be repeated.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST, help="The same seed gives the same responses.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DType = Annotated[Literal["float32", "bfloat16", "float64"], typer.Option(help="Arithmetic.")]
System = Annotated[str, typer.Option(help="A system message.")]


def sample(
    model: Model,
    *,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="May be repeated.")] = None,
    file: Annotated[str, typer.Option(help="Prompts: rows of a .jsonl, .json or .parquet, else one a line.")] = "",
    system: System = "",
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=LARGEST, help="Responses to each prompt.")] = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_tokens: MaxTokens = 128,
    stop: Stop = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DType = "float32",
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Sample responses to prompts and conversations.

    Prompts come from --prompt, --file or standard input: one a line, or rows of JSON with `messages` or `prompt`.
    """
    placed = prompts_given(prompt or (), file, system)
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
        dtype=dtype,
    )
    prompts = [asked for _, asked in placed]
    if json_output:
        emit([responses_as_json(asked, group) for asked, group in zip(prompts, groups, strict=True)])
    else:
        print_responses(prompts, groups, console_for(False))


def chat(
    model: Model,
    *,
    system: System = "",
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_tokens: MaxTokens = 256,
    stop: Stop = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DType = "float32",
    runs: Runs = Path("runs"),
) -> None:
    """Chat with a model in the terminal; an empty line ends it. Responses are shown while they are sampled."""
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
        dtype=dtype,
        console=console_for(False),
    )
