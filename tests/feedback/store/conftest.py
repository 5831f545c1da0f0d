"""A store on each of the two databases: an SQLite file, and a PostgreSQL server that the tests start themselves."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.items import Item
from tiltyard.feedback.store.people import add_guideline
from tiltyard.types import Group, Message, Prompt, Response


def _binary(name: str) -> str:
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / name).exists():
            return str(folder / name)
    return shutil.which(name) or ""


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server of this test session, without a database; nothing of it outlives the session."""
    pytest.importorskip("psycopg")
    if not _binary("initdb"):
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    base = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    as_user = []
    if os.getuid() == 0:  # the server refuses to run as root
        user = next((u for u in ("postgres", "nobody") if any(p.pw_name == u for p in pwd.getpwall())), "nobody")
        shutil.chown(base, user)
        as_user = ["runuser", "-u", user, "--"]
    data = base / "data"
    subprocess.run(
        [*as_user, _binary("initdb"), "-D", str(data), "-U", "tiltyard", "-A", "trust", "--no-sync"],
        check=True, capture_output=True, cwd=base,
    )  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"-p {port} -k {base} -c listen_addresses=127.0.0.1 -c max_connections=200 -c fsync=off -c shared_buffers=32MB"
    )
    control = [*as_user, _binary("pg_ctl"), "-D", str(data)]
    subprocess.run(
        [*control, "-w", "-o", options, "-l", str(base / "log"), "start"], check=True, capture_output=True, cwd=base
    )
    yield f"postgresql://tiltyard@127.0.0.1:{port}"
    subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, check=False, cwd=base)
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'labels.db'}"
    import psycopg

    server = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


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
