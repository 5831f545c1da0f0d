"""`tiltyard sample` and `tiltyard chat`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tiltyard.cli.arguments import LARGEST, Json, Model, Runs, find_model, find_reward
from tiltyard.cli.output import console_for, emit, print_responses
from tiltyard.cli.prompts import prompts_given
from tiltyard.errors import ConfigError

if TYPE_CHECKING:
    from tiltyard.types import Prompt

Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this total probability.")]
TopK = Annotated[int, typer.Option(min=0, max=LARGEST, help="Keep this many tokens; 0 keeps all.")]
MaxTokens = Annotated[int, typer.Option(min=1, max=LARGEST, help="Maximum tokens of a response.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends a response too; may be repeated.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST, help="The same seed gives the same responses.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DType = Annotated[Literal["float32", "bfloat16", "float64"], typer.Option(help="Arithmetic.")]
System = Annotated[str, typer.Option(help="A system message.")]
Infer = Annotated[str, typer.Option(metavar="SAMPLER", help="Sample prior * exp(reward / beta): docs/infer.md.")]
RewardOption = Annotated[str, typer.Option(help="With --infer: a reward model, gold, file.py:function, a rule.")]
Beta = Annotated[float | None, typer.Option(help="With --infer: strength of the pull to the model.")]
Bound = Annotated[
    float | None, typer.Option(help="With --infer: the highest possible reward, if the reward declares none.")
]
Candidates = Annotated[int | None, typer.Option(min=1, max=LARGEST, help="With --infer: sampled for each response.")]
Most = Annotated[int | None, typer.Option(min=1, max=LARGEST, help="With --infer: candidates to a prompt at most.")]
Number = Annotated[int | None, typer.Option(min=1, max=LARGEST, help="With --infer: particles of SMC to a prompt.")]
Every = Annotated[int | None, typer.Option(min=0, max=LARGEST, help="With --infer smc: tokens between two scorings.")]
TwistOption = Annotated[
    str, typer.Option(metavar="VALUE", help="With --infer twisted_smc: a PPO run's value model, or learn.")
]
Out = Annotated[str, typer.Option(metavar="FILE", help="With --infer: rows as they finish; resumes from it.")]


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
    infer: Infer = "",
    reward: RewardOption = "",
    beta: Beta = None,
    score_bound: Bound = None,
    candidates: Candidates = None,
    most: Most = None,
    particles: Number = None,
    every: Every = None,
    twist: TwistOption = "",
    out: Out = "",
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Sample responses to prompts and conversations; with --infer those of the optimum for a reward.

    Prompts come from --prompt, --file or standard input: one a line, or rows of JSON with `messages` or `prompt`.
    """
    settings: dict[str, Any] = {
        "score_bound": score_bound,
        "candidates": candidates,
        "most": most,
        "particles": particles,
    }
    settings |= {"every": every, "twist": twist}
    target: dict[str, Any] = {"reward": reward, "beta": beta}
    _check_infer(infer, {**target, **settings, "out": out})
    placed = prompts_given(prompt or (), file, system)
    path = find_model(model, runs)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    sampling |= {"max_tokens": max_tokens, "stop": tuple(stop or ())}
    options: dict[str, Any] = {"n": n, "seed": seed, "device": device, "dtype": dtype}
    if infer:
        target["reward"] = find_reward(reward, runs)
        options["out"] = Path(out) if out else None
        _infer(path, placed, json_output, name=infer, **target, settings=settings, sampling=sampling, **options)
        return
    groups = importlib.import_module("tiltyard.cli.conversation").sample(path, placed, **options, **sampling)
    prompts = [asked for _, asked in placed]
    if json_output:
        responses_as_json = importlib.import_module("tiltyard.report.responses").responses_as_json
        emit([responses_as_json(asked, group) for asked, group in zip(prompts, groups, strict=True)])
    else:
        print_responses(prompts, groups, console_for(False))


def _check_infer(infer: str, given: Mapping[str, Any]) -> None:
    """Refuses options of --infer without it."""
    names = [key for key, value in given.items() if value not in (None, "")]
    if names and not infer:
        raise ConfigError(
            "this option belongs to --infer",
            where="sample",
            got=", ".join("--" + name.replace("_", "-") for name in names),
            fix="add --infer best_of_n, or another sampler of docs/infer.md",
        )


def _infer(
    path: Path, placed: Sequence[tuple[str, Prompt]], json_output: bool, *, sampling: Mapping[str, Any], **options: Any
) -> None:
    """Runs `--infer` and prints the responses and the report."""
    inference = importlib.import_module("tiltyard.cli.inference")
    rows, report = inference.infer(path, placed, sampling=inference.SampleSettings(**sampling), **options)
    if json_output:
        emit({"report": report.to_dict(), "prompts": rows})
    else:
        print_responses([asked for _, asked in placed], inference.groups_of(rows), console_for(False))
        importlib.import_module("tiltyard.report.infer_tables").print_report(report, console_for(False))
    if report.given < report.wanted:
        raise typer.Exit(1)


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
