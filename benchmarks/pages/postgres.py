"""A PostgreSQL server of Debian's packages in a folder of its own, for tests and measurements; nothing of it stays."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def binary(name: str) -> str:
    """The path of one of PostgreSQL's programs, of the newest version that is installed; "" without one."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / name).exists():
            return str(folder / name)
    return shutil.which(name) or ""


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[str]:
    """Runs a server on a free port of loopback; yields its URL without a database.

    Args:
        durable: what is committed is flushed to disk; without it a crash of the machine, not of a program, may lose it.
    """
    base = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    as_user = []
    if os.getuid() == 0:  # the server refuses to run as root
        user = next((u for u in ("postgres", "nobody") if any(p.pw_name == u for p in pwd.getpwall())), "nobody")
        shutil.chown(base, user)
        as_user = ["runuser", "-u", user, "--"]
    data = base / "data"
    subprocess.run(
        [*as_user, binary("initdb"), "-D", str(data), "-U", "tiltyard", "-A", "trust", "--no-sync"],
        check=True, capture_output=True, cwd=base,
    )  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"-p {port} -k {base} -c listen_addresses=127.0.0.1 -c max_connections=200 "
        f"-c fsync={'on' if durable else 'off'} -c shared_buffers=32MB"
    )
    control = [*as_user, binary("pg_ctl"), "-D", str(data)]
    subprocess.run(
        [*control, "-w", "-o", options, "-l", str(base / "log"), "start"], check=True, capture_output=True, cwd=base
    )
    try:
        yield f"postgresql://tiltyard@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, check=False, cwd=base)
        shutil.rmtree(base, ignore_errors=True)


def new_database(server: str) -> str:
    """Makes an empty database on a server; returns its URL."""
    import psycopg

    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"
