"""A store on each of the two databases: an SQLite file, and a PostgreSQL server that the tests start themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from benchmarks.pages.postgres import binary, new_database, postgres_server

from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.items import Item
from tiltyard.feedback.store.people import add_guideline
from tiltyard.types import Group, Message, Prompt, Response


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server of this test session, without a database; nothing of it outlives the session."""
    pytest.importorskip("psycopg")
    if not binary("initdb"):
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'labels.db'}"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def store(url: str) -> Iterator[Database]:
    """An open store with guidelines."""
    database = Database(url)
    add_guideline(database, "Prefer the answer that helps.")
    yield database
    database.close()


def group(k: int, count: int = 2) -> Group:
    """A prompt with `count` responses of as many models."""
    prompt = Prompt(messages=(Message("user", f"Question {k}?"),), id=f"q{k}", meta={"source": "own"})
    texts = tuple(Response(text=f"answer {k}-{j}", meta={"policy": f"model-{j}", "version": "1"}) for j in range(count))
    return Group(prompt, texts)


@pytest.fixture
def items() -> Callable[..., list[Item]]:
    """Makes `n` items of a kind."""

    def make(n: int, *, count: int = 2, **settings: object) -> list[Item]:
        return [Item(group(k, count), **settings) for k in range(n)]  # type: ignore[arg-type]

    return make


def undo_migrations_to_0003(connection: sa.Connection) -> None:
    """Leaves a store as version 0003 made it."""
    for table in ("leases", "draws", "imports"):
        connection.exec_driver_sql(f"DROP TABLE {table}")
    for index in ("task_state_queue", "tasks_parent_id"):
        connection.exec_driver_sql(f"DROP INDEX ix_{index}")
    for column in ("stage", "begun", "place"):
        connection.exec_driver_sql(f"ALTER TABLE task_state DROP COLUMN {column}")
    connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0003'")
