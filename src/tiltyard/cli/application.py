"""The Typer application, its global options, and exit statuses."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from tiltyard.allocator import keep_freed_memory
from tiltyard.cli import arena, chat, collect, judge, people, posterior, report, study, verbs, wish
from tiltyard.cli.arguments import check_extra, check_words
from tiltyard.cli.output import show_with_escapes
from tiltyard.cli.usage import UsageError, explained_disk, explained_usage
from tiltyard.errors import WRONG_INPUT, TiltyardError
from tiltyard.stopping import Stopped

app = typer.Typer(
    help="Align language models with preferences. Start with `tiltyard doctor`, then `tiltyard run demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


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
    """Options of every verb; `main` accepts them at any position."""


VERBS: dict[str, Callable[..., None]] = {
    "init": wish.init,
    "align": wish.align,
    "run": verbs.run,
    "study": study.study,
    "train": verbs.train,
    "eval": verbs.evaluate,
    "gap": posterior.gap,
    "compare": verbs.compare,
    "judge": judge.judge,
    "report": report.report,
    "watch": report.watch,
    "replay": verbs.replay,
    "check": verbs.check,
    "sample": chat.sample,
    "chat": chat.chat,
    "rate": people.rate,
    "agreement": people.agreement,
    "export": people.export,
    "merge": verbs.merge,
    "bench": verbs.bench,
    "stages": verbs.stages,
    "show": verbs.show,
    "methods": verbs.methods,
    "doctor": verbs.doctor,
}
GROUPS: dict[str, typer.Typer] = {"collect": collect.app, "arena": arena.app}  # verbs that have verbs of their own
for name, verb in VERBS.items():
    app.command(name)(verb)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. 0: done; 1: failed while running; 2: wrong input; 130, 143: stopped by Ctrl-C, SIGTERM."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if argv is None:  # this process belongs to the command line
        show_with_escapes()
        if "--no-tune" not in words:
            keep_freed_memory()
    try:
        check_words(words)
        own = [word for word in words if word not in ("--debug", "--no-tune")]
        command = typer.main.get_command(app)
        if own and own[0] in VERBS and not {"--help", "-h"} & set(own):
            check_extra(own[0], own[1:], command.commands[own[0]].params)  # type: ignore[attr-defined]
        return int(command(args=own, prog_name="tiltyard", standalone_mode=False) or 0)
    except Stopped as end:
        typer.echo(str(end), err=True)
        return end.status
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (KeyboardInterrupt, typer.Abort):  # Abort: in the answer to a question
        typer.echo("interrupted", err=True)
        return 130
    except UsageError as error:
        _print_error(explained_usage(error, words), debug=False)
        return 2
    except Exception as error:
        _print_error(error, debug)
        return 2 if isinstance(error, WRONG_INPUT) else 1


def _print_error(error: Exception | None, debug: bool) -> None:
    from tiltyard.report.text import plain

    if debug:
        traceback.print_exc()
    elif isinstance(error, TiltyardError):
        typer.echo(plain(f"error: {error}"), err=True)
    elif isinstance(error, OSError) and (told := explained_disk(error)) is not None:
        typer.echo(plain(f"error: {told}"), err=True)
    elif error is not None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}:{last.lineno}"
        message = f"error: {type(error).__name__}: {error}\n  at:       {where} (--debug prints the traceback)"
        typer.echo(plain(message), err=True)
