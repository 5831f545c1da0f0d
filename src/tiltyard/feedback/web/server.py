"""Serves a page with uvicorn, on loopback by default; a page that others can reach is announced as one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import FastAPI

from tiltyard.errors import ConfigError
from tiltyard.feedback.web.site import LOOPBACK, Site

if TYPE_CHECKING:
    import uvicorn


def address(host: str, port: int, url: str) -> str:
    """Returns the address that people open: `url`, or one made of host and port.

    Raises:
        ConfigError: a host that people cannot open (0.0.0.0) without a URL.
    """
    if url:
        return url
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        raise ConfigError(
            "people need an address to open",
            where="--host",
            got=host,
            expected="--url with the name and port, or the https address of a proxy that encrypts",
            fix="add --url; personal links and the check of the Host header use it",
        )
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def exposure(site: Site, host: str) -> list[str]:
    """Returns sentences on the people who can reach the page."""
    if host in LOOPBACK:
        return [f"{site.origin} (this machine alone)"]
    lines = [f"{site.origin} (everyone who can reach {host})"]
    if not site.encrypted:
        lines.append(
            "warning: without https everyone on the way can read links and labels; put a proxy with TLS before it"
        )
    elif urlsplit(site.url).hostname not in LOOPBACK:
        lines.append("cookies are sent by https alone")
    return lines


def bound(host: str, port: int) -> socket.socket:
    """Returns a socket at an address; port 0: a free one.

    Raises:
        ConfigError: the port is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it a page's body waits 40 ms for an ACK
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        raise ConfigError(
            "this address cannot be served",
            where=f"{host}:{port}",
            got=error.strerror,
            fix="stop what uses the port, or take another one",
        ) from error
    return made


def serve(app: FastAPI, host: str, port: int, *, told: Callable[[str], None], log_level: str = "warning") -> None:
    """Serves until it is stopped (Ctrl-C, SIGTERM); requests in flight are answered.

    Raises:
        ConfigError: the port is taken.
    """
    listening = bound(host, port)
    for line in exposure(app.state.site, host):
        told(line)
    _server(app, log_level).run(sockets=[listening])


@contextmanager
def in_background(app: FastAPI, listening: socket.socket, *, log_level: str = "warning") -> Iterator[None]:
    """Serves in a thread of this process, and stops when the block ends; requests in flight are answered."""
    server = _server(app, log_level)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(20)


def _server(app: FastAPI, log_level: str) -> uvicorn.Server:
    import uvicorn

    config = uvicorn.Config(app, log_level=log_level, server_header=False, timeout_graceful_shutdown=10)
    return uvicorn.Server(config)
