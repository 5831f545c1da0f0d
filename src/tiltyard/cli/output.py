"""Output of the verbs: JSON, results of stages, tables."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tiltyard.types import Group, Prompt


def console_for(json_output: bool) -> Console:
    """The console for progress: standard error if standard output is reserved for JSON."""
    return Console(stderr=json_output)


def show_with_escapes() -> None:
    """Lets a terminal that cannot show a character (ASCII, Latin-1) show its escape, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def emit(value: Any) -> None:
    """Prints JSON; in escapes where standard output is not in UTF-8, so that it stays JSON."""
    from tiltyard.files import jsonable

    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    typer.echo(json.dumps(jsonable(value), indent=2, ensure_ascii=not unicode))


def show_result(outcome: dict[str, Any], kind: str) -> None:
    """Prints the numbers that a stage returned and the folder of its files; on the main process only."""
    from tiltyard.distributed.processes import is_main

    if not is_main():
        return
    console = console_for(False)
    print_alarms(outcome, console)
    stage = kind.rpartition(":")[2]  # a method of a user's file has its function's name
    for key, value in outcome["stages"][stage]["result"].items():
        if not isinstance(value, dict | list):
            console.print(f"  {key}: {value}", markup=False, highlight=False)
    console.print(f"everything is in {outcome['stages'][stage]['folder']}", highlight=False, soft_wrap=True)


def print_alarms(outcome: Mapping[str, Any], console: Console) -> None:
    """Prints the alarms that the training of a run's stages raised, those of finished stages too."""
    from tiltyard.report.text import plain

    for name, stage in outcome["stages"].items():
        for alarm in (stage.get("result") or {}).get("alarms") or ():
            line = plain(f"! alarm, {name} step {alarm['step']:,}: {alarm['text']}")
            console.print(line, style="bold yellow", markup=False, highlight=False, soft_wrap=True)


def print_responses(prompts: Sequence[Prompt], groups: Sequence[Group], console: Console) -> None:
    """Prints each prompt, of a conversation all turns, and its responses below it."""
    from tiltyard.report.responses import is_question
    from tiltyard.report.text import plain

    for prompt, group in zip(prompts, groups, strict=True):
        turns = prompt.messages or ()
        lines = [turns[0].content] if is_question(prompt) else [f"{turn.role}: {turn.content}" for turn in turns]
        for line in lines:
            console.print(f"[bold]{escape(plain(line))}[/]", highlight=False)
        for response in group.responses:
            cut = " [dim](cut)[/]" if response.finish == "length" else ""
            console.print(f"  {escape(plain(response.text))}{cut}", highlight=False, soft_wrap=True)


def summaries_table(summaries: Mapping[str, str]) -> Table:
    """Names in bold, each with its summary."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, summary in summaries.items():
        table.add_row(f"[bold]{name}[/]", escape(summary))
    return table


def bench_table(report: Mapping[str, Any]) -> Table:
    """The parts of a step of `bench.measure`: seconds, share, arithmetic, share of the machine's peak."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("part")
    for title in ("s a step", "share", "GFLOP", "of the peak"):
        table.add_column(title, justify="right")
    rows = [(name, part) for name, part in report["parts"].items() if part["seconds"]]
    step = {"share": 1.0, **{key: report[key] for key in ("seconds", "gflop", "share_of_peak")}}
    for name, part in [*rows, ("[bold]step[/]", step)]:
        speed = f"{part['share_of_peak']:.0%}" if part["gflop"] else ""
        gflop = f"{part['gflop']:,.1f}" if part["gflop"] else ""
        table.add_row(name, f"{part['seconds']:.4f}", f"{part['share']:.0%}", gflop, speed)
        for inner, seconds in report["within"].items():
            if inner.startswith(f"{name}/"):
                table.add_row(f"  [dim]{inner.partition('/')[2]}[/]", f"[dim]{seconds:.4f}[/]")
    return table


def print_bench(report: Mapping[str, Any], console: Console) -> None:
    """Prints the report of `bench.measure` as a table and three lines."""
    console.print(bench_table(report))
    speed = report["tokens_per_second"]
    sampled = f", {speed['sampled']:,.0f} sampled" if speed["sampled"] else ""
    console.print(
        f"tokens a second: {speed['trained']:,.0f} trained{sampled}\n"
        f"peak: {report['peak_gflops']:,.0f} GFLOP/s ({report['dtype']}, {report['device']}, {report['threads']} "
        f"threads), {report['share_of_peak']:.0%} of it used\n"
        f"memory: {report['peak_memory_mib']:,.0f} MiB at most, {report['models_in_memory']} models of "
        f"{report['parameters'] / 1e6:.1f}M parameters",
        highlight=False,
    )
