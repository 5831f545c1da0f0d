"""Serves a page with uvicorn, on loopback by default; a page that others can reach is announced as one."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi import FastAPI

from tiltyard.errors import ConfigError
from tiltyard.feedback.web.site import LOOPBACK, Site


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


def serve(app: FastAPI, host: str, port: int, *, told: Callable[[str], None], log_level: str = "warning") -> None:
    """Serves until it is stopped (Ctrl-C, SIGTERM); requests in flight are answered.

    Raises:
        ConfigError: the port is taken.
    """
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        raise ConfigError(
            "this address cannot be served",
            where=f"{host}:{port}",
            got=error.strerror,
            fix="stop what uses the port, or take another with --port",
        ) from error
    for line in exposure(app.state.site, host):
        told(line)
    config = uvicorn.Config(app, log_level=log_level, server_header=False, timeout_graceful_shutdown=10)
    uvicorn.Server(config).run(sockets=[bound])
