"""Signing in by a personal link, signing out, and the language of the page.

The link's token stands behind `#`, which no browser sends anywhere: no log, proxy or preview of the link gets it, and
opening the link changes nothing. The page puts it into a form, and the form's button signs in.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from tiltyard.feedback.store.people import SESSION_HOURS, sign_in, sign_out
from tiltyard.feedback.web.pages import language, render
from tiltyard.feedback.web.sessions import protected, session
from tiltyard.feedback.web.words import LANGUAGES

router = APIRouter()
YEAR = 365 * 24 * 3600


def link(origin: str, token: str) -> str:
    """Returns the personal link of a token."""
    return f"{origin}/in#{token}"


@router.get("/in", include_in_schema=False)
def form(request: Request, ended: Annotated[str, Query(max_length=1)] = "") -> Response:
    """Shows the form into which the page puts the link's token; `ended`: why someone who was signed in is here."""
    if session(request) is not None:
        return RedirectResponse("/", 303)
    return render(request, "in.html", wrong=False, ended=bool(ended))


@router.post("/in", include_in_schema=False)
def enter(request: Request, token: Annotated[str, Form(max_length=400)] = "") -> Response:
    """Signs in with a token, or with the whole link that someone pasted."""
    site, limits = request.app.state.site, request.app.state.limits
    address = request.client.host if request.client else "unknown"
    entered = sign_in(site.database, token.strip().rpartition("#")[2]) if token.isascii() else None
    if entered is None:
        wait = limits.wrong_links.wait(address)
        status = 429 if wait else 403
        page = render(request, "in.html", status=status, wrong=True, ended=False)
        if wait:
            page.headers["retry-after"] = str(int(wait) + 1)
        return page
    response = RedirectResponse("/", 303)
    response.set_cookie(
        site.cookie,
        entered[0],
        max_age=SESSION_HOURS * 3600,
        httponly=True,
        samesite="lax",
        secure=site.encrypted,
    )
    return response


@router.post("/out", include_in_schema=False, dependencies=[Depends(protected)])
def leave(request: Request) -> Response:
    """Ends the session."""
    site = request.app.state.site
    sign_out(site.database, request.cookies[site.cookie])
    response = RedirectResponse("/in?out=1", 303)
    response.delete_cookie(site.cookie, secure=site.encrypted, httponly=True, samesite="lax")
    return response


@router.post("/language", include_in_schema=False)
def choose_language(
    request: Request, lang: Annotated[str, Form(max_length=10)] = "", back: Annotated[str, Form(max_length=400)] = "/"
) -> Response:
    """Keeps the language of the page in a cookie and goes back to the page."""
    inside = re.fullmatch(r"/(?![/\\])[\w/.?=&-]*", back) is not None  # no other site
    response = RedirectResponse(back if inside else "/", 303)
    chosen = lang if lang in LANGUAGES else language(request)
    secure = request.app.state.site.encrypted
    response.set_cookie("tiltyard-lang", chosen, max_age=YEAR, httponly=True, samesite="lax", secure=secure)
    return response
