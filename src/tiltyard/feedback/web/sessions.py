"""The visitor of a request: the session of its cookie, its role, and the token that forms must bring back."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from tiltyard.feedback.store.people import Role, Session, session_of

FIELD, HEADER = "csrf", "x-csrf-token"


class NotSignedIn(Exception):
    """A page that needs a session was opened without one."""


def session(request: Request) -> Session | None:
    """Returns the session of a request, read once."""
    if not hasattr(request.state, "session"):
        site = request.app.state.site
        cookie = request.cookies.get(site.cookie, "")
        request.state.session = session_of(site.database, cookie) if cookie else None
    return request.state.session


def needs(*roles: Role) -> Callable[[Request], Coroutine[Any, Any, Session]]:
    """Returns a dependency that gives the session of someone with one of the roles.

    Raises (in it):
        NotSignedIn: without a session. HTTPException: 403 for another role.
    """

    async def dependency(request: Request) -> Session:
        found = await _current(request)
        if found is None:
            raise NotSignedIn
        if found.annotator.role not in roles:
            raise HTTPException(403, "this page is for another role")
        return found

    return dependency


async def protected(request: Request) -> None:
    """A dependency of every route that changes something: the session's token must come with the form or the header.

    Raises:
        NotSignedIn: without a session. HTTPException: 403 without the right token.
    """
    found = await _current(request)
    if found is None:
        raise NotSignedIn
    await check_token(request, found.csrf)


async def _current(request: Request) -> Session | None:
    """The session of a request: read in a thread, or known from another dependency of the same request."""
    known = hasattr(request.state, "session")
    return session(request) if known else await run_in_threadpool(session, request)


async def check_token(request: Request, expected: str) -> None:
    """Compares the token of a form or header with the expected one.

    Raises:
        HTTPException: 403, it is missing or another.
    """
    sent: Any = request.headers.get(HEADER)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent is None and kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        sent = (await request.form()).get(FIELD)
    if not sent or isinstance(sent, UploadFile) or not secrets.compare_digest(sent.encode(), expected.encode()):
        raise HTTPException(403, "the form is not of this session; open the page again")


def csrf_of(cookie: str) -> str:
    """Returns the token of forms for a visitor who has a random cookie and no session in the store.

    Only the holder of the cookie (256 random bits, out of reach of scripts) can compute it.
    """
    return hashlib.sha256(f"csrf of {cookie}".encode()).hexdigest()
