"""The verbs of `tiltyard collect`: a store with tasks and people, its labelling page, and what came of it."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiltyard.cli.arguments import COMMAND_LINE, LARGEST, Json
from tiltyard.cli.output import console_for, emit
from tiltyard.errors import ConfigError, DataError, MissingDependency, nearest
from tiltyard.numerals import plural, verb

if TYPE_CHECKING:
    from tiltyard.feedback.store.database import Database

app = typer.Typer(
    help="Collect judgements of people: a store, its labelling page, and labels for training.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
HOST, PORT = "127.0.0.1", 8077
Store = Annotated[str, typer.Argument(help="The store: a file (labels.db) or postgresql://user@host/name.")]


@app.command("add")
def add(
    store: Store,
    file: Annotated[str, typer.Argument(help="Rows or groups with responses, a stage that sampled, or prompts.")],
    *,
    kind: Annotated[str, typer.Option(help="pair, ranking, best_worst, rating or write.")] = "pair",
    stage: Annotated[str, typer.Option(help="real, training, gold or attention; of these the file is right.")] = "real",
    overlap: Annotated[int, typer.Option(min=1, max=1000, help="People who judge each task.")] = 1,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs drawn of each prompt with more responses; 0: all.")] = 1,
    source: Annotated[str, typer.Option(help="Name under which tasks are mixed; else the rows' or the file's.")] = "",
    policy: Annotated[str, typer.Option(help="Who wrote the responses, where the file does not say it.")] = "",
    split: Annotated[str, typer.Option(help="Split of a folder or hub data set.")] = "",
    limit: Annotated[int, typer.Option(min=0, max=LARGEST, help="Rows to read; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST, help="Of drawn pairs and the order of tasks.")] = 0,
    json_output: Json = False,
) -> None:
    """Add tasks to a store, which is made if it is not there.

    `tiltyard collect add labels.db pairs.jsonl --overlap 2`
    """
    from tiltyard.feedback.collect.load import Wanted, read_items
    from tiltyard.feedback.store.items import STAGES, add_tasks

    known = [name for name in STAGES if name != "adjudication"]
    if stage not in known:
        raise ConfigError("unknown stage of tasks", where="--stage", got=stage, fix=nearest(stage, known))
    wanted = Wanted(kind, stage, overlap, pairs, source, policy, seed)
    items, dropped = read_items(file, wanted, split=split, limit=limit or None)
    database = opened(store, create=True)
    ids = add_tasks(database, items, seed=seed)
    if json_output:
        emit({"store": database.shown, "tasks": len(ids), "kind": kind, "stage": stage, "dropped": dict(dropped)})
        return
    told(
        f"{plural(len(ids), 'task')} added ({kind}, {stage}), each for {overlap} "
        f"{'person' if overlap == 1 else 'people'}"
    )
    for reason, count in dropped.items():
        told(f"left out {count:,}: {reason}")


@app.command("import")
def import_(
    store: Store,
    file: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Judgements in any form that `tiltyard rate` reads.")
    ],
    *,
    annotator: Annotated[str, typer.Option(help="Who gave judgements that name no one; else imported:FILE.")] = "",
    judge: Annotated[
        list[str] | None, typer.Option("--judge", metavar="NAME", help="An annotator that is an AI judge.")
    ] = None,
    source: Annotated[str, typer.Option(help="Source of the tasks; else the rows' or the file's name.")] = "",
    split: Annotated[str, typer.Option(help="Split of a folder or hub data set.")] = "",
    bad_rows: Annotated[
        str, typer.Option("--bad-rows", help="error, or drop: leave out what cannot be used.")
    ] = "error",
    json_output: Json = False,
) -> None:
    """Add judgements of other tools to a store, which is made if it is not there. The same file twice adds nothing.

    Argilla records, Label Studio tasks, chatbot-arena battles, HH transcripts, UltraFeedback, our own rows.

    `tiltyard collect import labels.db records.json`
    """
    from tiltyard.data import BadRows
    from tiltyard.feedback.store.imports import import_judgements
    from tiltyard.inputs.judgements import judged

    if bad_rows not in ("error", "drop"):
        raise ConfigError("unknown choice", where="--bad-rows", got=bad_rows, fix=nearest(bad_rows, ("error", "drop")))
    read = [(name, judged(name, split=split, bad_rows=bad_rows)) for name in file]  # type: ignore[arg-type]
    database = opened(store, create=True)
    report: dict[str, Any] = {}
    for name, found in read:
        short, bad = Path(name).name, BadRows(bad_rows)  # type: ignore[arg-type]
        added = import_judgements(
            database,
            found.groups,
            bad,
            annotator=annotator or f"imported:{short}",
            source=source or short,
            judges=tuple(judge or ()),
        )
        notes = [*found.notes, *bad.lines()]
        report[name] = {**asdict(added), "notes": notes}
        if not json_output:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in added.kinds.items())
            count = f"{sum(added.kinds.values()):,} judgements{f' ({kinds})' if kinds else ''}"
            by = f"{plural(added.tasks, 'new item')} by {plural(len(added.annotators), 'annotator')}"
            told(f"{name}: {count} of {by}; {added.known:,} {verb(added.known, 'was', 'were')} there")
            for line in notes:
                told(line)
    if json_output:
        emit(report)


@app.command("guidelines")
def guidelines(
    store: Store,
    file: Annotated[Path | None, typer.Argument(help="Markdown; without it the newest version is printed.")] = None,
) -> None:
    """Add a version of the guidelines, which every annotator must read and accept, or print the newest."""
    from tiltyard.feedback.store.people import add_guideline, guideline
    from tiltyard.files import read_text

    text = "" if file is None else read_text(file)  # before a store is made for it
    database = opened(store, create=file is not None)
    if file is None:
        newest = guideline(database)
        told("there are no guidelines yet" if newest is None else f"version {newest[0]}\n\n{newest[1]}")
        return
    told(f"version {add_guideline(database, text)} of the guidelines")


@app.command("people")
def people(
    store: Store,
    names: Annotated[list[str] | None, typer.Argument(help="People to add; without any, all are listed.")] = None,
    *,
    role: Annotated[str, typer.Option(help="annotator, admin or simulated.")] = "annotator",
    url: Annotated[str, typer.Option(help="The page's address, for the links; else that of `serve`.")] = "",
    new_link: Annotated[bool, typer.Option("--new-link", help="New links for people who are there.")] = False,
    shut: Annotated[bool, typer.Option("--shut", help="Let these people in no more; their labels stay.")] = False,
    readmit: Annotated[bool, typer.Option("--readmit", help="Let them in again.")] = False,
    json_output: Json = False,
) -> None:
    """Add people and print their personal links, once; or list them, replace a link, shut someone out.

    `tiltyard collect people labels.db ada bob`, `tiltyard collect people labels.db boss --role admin`
    """
    from tiltyard.feedback.store import people as stored
    from tiltyard.feedback.web.server import address
    from tiltyard.feedback.web.sign_in import link

    if sum((new_link, shut, readmit)) > 1:
        raise ConfigError("these options exclude each other", where="--new-link, --shut, --readmit", fix="give one")
    roles = ("annotator", "admin", "simulated")
    if role not in roles:
        raise ConfigError("unknown role", where="--role", got=role, fix=nearest(role, roles))
    database = opened(store, create=bool(names) and not (new_link or shut or readmit))
    if not names:
        _list(database, json_output)
        return
    if shut or readmit:
        for name in names:
            stored.set_active(database, name, readmit)
        return
    links = {}
    for name in names:
        added = None if new_link else stored.add_annotator(database, name, role)  # type: ignore[arg-type]
        token = stored.new_link(database, name) if added is None else added[1]
        links[name] = link(address(HOST, PORT, url).rstrip("/"), token)
    if json_output:
        emit(links)
        return
    for name, personal in links.items():
        told(f"{name}  {personal}")
    told("Each link lets its owner in; it is stored as a hash and cannot be shown again (--new-link makes another).")


def _list(database: Database, json_output: bool) -> None:
    from tiltyard.feedback.store.people import annotators
    from tiltyard.feedback.store.progress import progress

    rows = [
        {"name": one.name, "role": one.role, "active": one.active, "judged": progress(database, one.id).judged}
        for one in annotators(database)
    ]
    if json_output:
        emit(rows)
    for row in [] if json_output else rows:
        told(f"{row['name']}  {row['role']}{'' if row['active'] else ' (shut out)'}  {row['judged']} judged")


@app.command("serve")
def serve(
    store: Store,
    *,
    host: Annotated[str, typer.Option(help="Address to serve at; other than loopback, others can reach it.")] = HOST,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = PORT,
    url: Annotated[str, typer.Option(help="The address that people open, if it is another (a proxy, a name).")] = "",
    gold_every: Annotated[int, typer.Option(min=0, help="A gold item after this number of tasks; 0: none.")] = 10,
    lease: Annotated[float, typer.Option(min=0.5, help="Minutes after which an open task goes to others.")] = 20.0,
    strength: Annotated[bool, typer.Option(help="Ask how much better the better answer of a pair is.")] = True,
    adjudicate: Annotated[bool, typer.Option(help="A third person decides where two differ.")] = True,
    pairing: Annotated[
        str, typer.Option(help="Which pair comes next: random, or active (by what it would tell; docs/ratings.md).")
    ] = "random",
    stop_flagged: Annotated[
        int, typer.Option(min=0, help="People whose flags stop a prompt: it is given to no one any more; 0: never.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST, help="Of the order of answers.")] = 0,
) -> None:
    """Serve the labelling page until Ctrl-C.

    `tiltyard collect serve labels.db`
    """
    from tiltyard.feedback.collect.app import PACKAGE, collect_app
    from tiltyard.feedback.collect.desk import Settings
    from tiltyard.feedback.store.people import annotators, guideline
    from tiltyard.feedback.web.server import address
    from tiltyard.feedback.web.server import serve as serve_app
    from tiltyard.feedback.web.site import Site

    database = opened(store)
    if guideline(database) is None:
        raise DataError(
            "there are no guidelines yet",
            where=database.where,
            expected="a text that annotators read and accept first",
            fix=f"tiltyard collect guidelines {database.shown} guidelines.md",
        )
    if not annotators(database):
        told(f"no one can sign in yet: tiltyard collect people {database.shown} NAME")
    site = Site("collect", database, address(host, port, url), (PACKAGE,))
    settings = Settings(gold_every, lease, strength, adjudicate, seed, pairing, stop_flagged)  # type: ignore[arg-type]
    serve_app(collect_app(site, settings), host, port, told=told)


def opened(store: str, *, create: bool = False) -> Database:
    """Opens a store.

    Raises:
        ConfigError: an SQLite file that is not there, unless it may be made.
    """
    needed("sqlalchemy", "alembic", "fastapi", "uvicorn", "python_multipart", "markdown_it", "nh3")
    from tiltyard.feedback.store.database import Database
    from tiltyard.runs import existing_path

    missing = "://" not in store and ((path := existing_path(store)) is None or not path.is_file())
    if missing and not create:
        raise ConfigError(
            "there is no such store",
            where=store,
            expected="a file that `tiltyard collect add` made",
            fix=f"tiltyard collect add {store} pairs.jsonl",
        )
    if missing:
        typer.echo(f"a new store: {store}", err=True)  # a misspelt name of one that is there would be seen
    return Database(store)


def needed(*modules: str) -> None:
    """Checks that optional packages are installed.

    Raises:
        MissingDependency: one is not.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            "the pages for people need more packages",
            where=COMMAND_LINE,
            got=f"no {', '.join(missing)}",
            fix="pip install 'tiltyard[people]'",
        )


def told(line: str) -> None:
    """Prints a line for a person; what a store holds is shown literally."""
    from tiltyard.report.text import plain

    console_for(False).print(plain(line), markup=False, highlight=False, soft_wrap=True)
