"""The verbs of `tiltyard arena`: two anonymous models, a vote, a leaderboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tiltyard.cli.arguments import LARGEST
from tiltyard.cli.collect import needed, told
from tiltyard.errors import ConfigError

if TYPE_CHECKING:
    from tiltyard.types import Prompt

app = typer.Typer(
    help="Let visitors compare anonymous models, and rate the models by their votes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def arena() -> None:
    """Let visitors compare anonymous models, and rate the models by their votes."""


@app.command("serve")
def serve(
    store: Annotated[str, typer.Argument(help="The store: a file (arena.db), or postgresql://user@host/name.")],
    *,
    model: Annotated[
        list[str],
        typer.Option(metavar="NAME=SOURCE", help="A folder, or http://{HOST}:{PORT}/v1#MODEL; two or more."),
    ],
    key: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VARIABLE", help="The environment variable of an endpoint's key.")
    ] = None,
    prompts: Annotated[str, typer.Option(help="Prompts that visitors may draw: a file, folder or hub name.")] = "",
    pairing: Annotated[str, typer.Option(help="uniform, or fewer_seen: pairs that met less often first.")] = "uniform",
    system: Annotated[str, typer.Option(help="A system prompt for all models.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0, help="Of all models.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of all models.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Longest answer.")] = 512,
    at_once: Annotated[int, typer.Option(min=1, max=1000, help="Battles that are answered at the same time.")] = 2,
    device: Annotated[str, typer.Option(help="Of local models: auto, cpu, cuda, ...")] = "auto",
    host: Annotated[
        str, typer.Option(help="Address to serve at; other than loopback, others can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8078,
    url: Annotated[str, typer.Option(help="The address that people open, if it is another (a proxy, a name).")] = "",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST, help="Of pairs, sides, drawn prompts and answers.")] = 0,
) -> None:
    """Serve an arena until Ctrl-C.

    `tiltyard arena serve arena.db --model sft=runs/demo/sft --model ppo=runs/demo/ppo`
    """
    needed("sqlalchemy", "alembic", "fastapi", "uvicorn", "python_multipart", "markdown_it", "nh3")
    from tiltyard.cli.arguments import find_model
    from tiltyard.feedback.arena.app import PACKAGE, arena_app
    from tiltyard.feedback.arena.desk import ArenaSettings, Desk
    from tiltyard.feedback.arena.models import Decoding, Entry, opened
    from tiltyard.feedback.store.database import Database
    from tiltyard.feedback.web.server import address
    from tiltyard.feedback.web.server import serve as serve_app
    from tiltyard.feedback.web.site import Site

    entries = [Entry.of(text, _keys(key or [])) for text in model]
    if len(entries) < 2:
        raise ConfigError("an arena needs two models", where="--model", got=len(entries), expected="2 at least")
    decoding = Decoding(temperature, top_p, max_tokens, system=system)
    settings = ArenaSettings(pairing, seed, decoding, at_once)  # type: ignore[arg-type]
    drawn = _drawn(prompts)
    writers = []
    for entry in entries:
        source = entry if entry.served else entry.at(str(find_model(entry.source)))
        writers.append(opened(source, decoding, device=device))
    database = Database(store)
    site = Site("arena", database, address(host, port, url), (PACKAGE,))
    app = arena_app(site, Desk(database, writers, settings, drawn))
    told(f"models: {', '.join(entry.name for entry in entries)}; {pairing} pairing; votes go to {database.where}")
    serve_app(app, host, port, told=told)


def _keys(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, sign, variable = pair.partition("=")
        if not sign or not name or not variable.isidentifier():
            raise ConfigError(
                "not the variable of a key",
                where="--key",
                got=name,
                expected="NAME=VARIABLE, the name of an environment variable, never the key itself",
            )
        found[name] = variable
    return found


def _drawn(source: str) -> list[Prompt]:
    from tiltyard.data import BadRows, parsed_rows

    return [group.prompt for _, group in parsed_rows(source, "prompts", BadRows())] if source else []
