"""Opens a feedback store: SQLite (a file) by default, PostgreSQL by its URL; migrated to the newest schema."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from tiltyard.errors import ConfigError, DataError, MissingDependency, TiltyardError

BUSY_SECONDS = 30  # a writer waits for another process so long before it gives up
MIGRATIONS = Path(__file__).parent / "migrations"


class StoreUnusable(DataError):
    """The store does not answer, cannot be written, or is no store."""


class Database:
    """An open store. Reading transactions run side by side; writing ones one after the other.

    Args:
        url: `sqlite:///labels.db`, `postgresql://user@host/name`, or the path of an SQLite file.

    Raises:
        ConfigError: another kind of URL.
        MissingDependency: PostgreSQL without psycopg.
        StoreUnusable: the file is no store, or the server does not answer.
    """

    def __init__(self, url: str | Path):
        self.url = _url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._writing = threading.Lock()
        try:
            self._writer = _engine(self.url, self.is_sqlite, "BEGIN IMMEDIATE")
            # PostgreSQL's readers begin no transaction: each of its statements would see its own state in one, too
            self._reader = (
                _engine(self.url, True, "BEGIN")
                if self.is_sqlite
                else self._writer.execution_options(isolation_level="AUTOCOMMIT")
            )
        except ModuleNotFoundError as error:
            raise MissingDependency(
                "a store on PostgreSQL needs psycopg",
                where=self.where,
                got=str(error),
                fix="pip install 'tiltyard[postgres]'",
            ) from error
        try:
            migrate(self)
        except (SQLAlchemyError, OSError) as error:
            raise _unusable(self.where, error) from error

    @property
    def where(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def shown(self) -> str:
        """The file of an SQLite store, or the URL without its password: as a command names it."""
        return str(self.url.database) if self.is_sqlite else self.where

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._reader.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes: alone among those of this process, and on disk when it has been left.

        Raises:
            StoreUnusable: another process keeps the store locked for longer than `BUSY_SECONDS`, or the disk is full.
        """
        with self._writing:
            try:
                with self._writer.connect() as connection, connection.begin():
                    if not self.is_sqlite:
                        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7154120)")
                    yield connection
            except OperationalError as error:
                raise _unusable(self.where, error) from error

    def close(self) -> None:
        """Closes all connections."""
        self._reader.dispose()
        self._writer.dispose()


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def migrate(database: Database) -> None:
    """Brings the schema to this version's; does nothing where it is there already.

    Raises:
        DataError: the store was written by a later version of Tiltyard, or is a database of something else.
    """
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS))
    head = scripts.get_current_head()
    with database.writing() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        if found == head:
            return
        known = {script.revision for script in scripts.walk_revisions()}
        if found is not None and found not in known:
            raise DataError(
                "this store was written by a later version",
                where=database.where,
                got=f"schema {found}",
                expected=f"schema {head} or older",
                fix="install the newer Tiltyard, or open another store",
            )
        if found is None and (others := inspect(connection).get_table_names()):
            raise DataError(
                "this database belongs to something else",
                where=database.where,
                got=f"the tables {', '.join(sorted(others)[:5])}",
                expected="an empty database or a feedback store",
                fix="give the store a file or a database of its own",
            )
        _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _url(text: str | Path) -> URL:
    given = str(text)
    if "://" not in given:
        return URL.create("sqlite", database=str(Path(given).expanduser()))
    try:
        url = make_url(given)
    except ArgumentError as error:
        raise ConfigError("not a store's URL", where="store", got=given, expected=_EXPECTED) from error
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise ConfigError(
            "not a store's URL", where="store", got=url.render_as_string(hide_password=True), expected=_EXPECTED
        )
    return url


_EXPECTED = "a file (labels.db), sqlite:///labels.db or postgresql://user@host/name"


def _engine(url: URL, is_sqlite: bool, begin: str) -> Engine:
    if not is_sqlite:
        return create_engine(url, pool_size=20, max_overflow=30, pool_pre_ping=True, isolation_level="READ COMMITTED")
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # the driver begins no transactions of its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS}000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _unusable(where: str, error: Exception) -> TiltyardError:
    reason = str(getattr(error, "orig", error)).strip().splitlines()
    return StoreUnusable(
        "the feedback store cannot be used",
        where=where,
        got=reason[0] if reason else type(error).__name__,
        expected="a file that can be written, or a PostgreSQL server that answers",
        fix="check the path, the disk's space, or the server; nothing that was acknowledged is lost",
    )
