"""The arena's pages: a prompt, two answers as they are written, the vote, the names; the leaderboard."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Generator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form, Path, Request
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from tiltyard.errors import DataError
from tiltyard.feedback.arena.desk import MOST_PROMPT, Busy, Desk
from tiltyard.feedback.arena.ranking import Leaderboard, bars
from tiltyard.feedback.web.limits import Bucket
from tiltyard.feedback.web.pages import REFUSED, render
from tiltyard.feedback.web.sessions import check_token, csrf_of
from tiltyard.feedback.web.site import Site, new_app
from tiltyard.files import jsonable

PACKAGE = "tiltyard.feedback.arena"
YEAR = 365 * 24 * 3600
COOKIE_BYTES = 32
router = APIRouter(default_response_class=HTMLResponse, responses=REFUSED)
Exposure = Annotated[int, Path(ge=1, le=2**31 - 1)]
Name = Annotated[str, Path(min_length=8, max_length=64, pattern=r"^[\w-]+$")]


def arena_app(site: Site, desk: Desk) -> FastAPI:
    """Returns the application of an arena."""
    app = new_app(site, "Tiltyard arena")
    app.state.desk = desk
    app.state.board = Leaderboard(site.database)
    app.state.battles = Bucket(1 / 4, 6)  # of one visitor: six at once, then one in four seconds
    app.state.newcomers = Bucket(1.0, 60)  # battles of one address, whatever its cookies
    app.include_router(router)
    return app


def cookie_of(request: Request) -> str:
    """Returns the visitor's cookie; "" without one that this page made."""
    found = request.cookies.get(request.app.state.site.cookie, "")
    return found if 30 <= len(found) <= 64 and found.isascii() else ""


def _visitor(request: Request) -> int:
    cookie = cookie_of(request)
    if not cookie:
        raise HTTPException(403, "open the start page first; the arena needs its cookie")
    return int(request.app.state.desk.visitor(cookie))


async def _protected(request: Request) -> None:
    cookie = cookie_of(request)
    if not cookie:
        raise HTTPException(403, "open the start page first; the arena needs its cookie")
    await check_token(request, csrf_of(cookie))


def _shown(request: Request, template: str, **values: Any) -> Response:
    """A page with the visitor's token; a visitor without a cookie gets one."""
    site, cookie = request.app.state.site, cookie_of(request)
    fresh = cookie or secrets.token_urlsafe(COOKIE_BYTES)
    page = render(request, template, csrf=csrf_of(fresh), **values)
    if not cookie:
        page.set_cookie(site.cookie, fresh, max_age=YEAR, httponly=True, samesite="lax", secure=site.encrypted)
    return page


@router.get("/")
def start(request: Request) -> Response:
    """The form for a prompt."""
    desk: Desk = request.app.state.desk
    return _shown(request, "ask.html", most=MOST_PROMPT, drawn=bool(desk.drawn), models=len(desk.writers))


@router.post("/battle", dependencies=[Depends(_protected)])
def begin(
    request: Request,
    prompt: Annotated[str, Form(max_length=4 * MOST_PROMPT)] = "",
    draw: Annotated[str, Form(max_length=10)] = "",
) -> Response:
    """Begins a battle with the prompt, or with a drawn one."""
    state = request.app.state
    address = request.client.host if request.client else "unknown"
    wait = max(state.battles.wait(cookie_of(request)), state.newcomers.wait(address))
    if wait:
        raise HTTPException(429, "too many battles", {"retry-after": str(int(wait) + 1)})
    if not draw and not prompt.strip():
        raise HTTPException(422, "the prompt is empty")
    name = state.desk.begin(_visitor(request), "" if draw else prompt)
    return RedirectResponse(f"/writing/{name}", 303)


@router.get("/writing/{name}")
def writing(request: Request, name: Name) -> Response:
    """The page on which the answers appear."""
    desk: Desk = request.app.state.desk
    opened = desk.opened(name, _visitor(request))
    if opened is None or opened.taken:
        raise HTTPException(404)
    turns = opened.prompt.messages or ()
    words = "\n\n".join(turn.content for turn in turns)
    return _shown(request, "writing.html", prompt=words, name=name)


@router.get("/api/answers/{name}")
def answers(request: Request, name: Name) -> Response:
    """Both answers as they are written: one JSON object a line."""
    desk: Desk = request.app.state.desk
    visitor = _visitor(request)
    if desk.opened(name, visitor) is None:
        return JSONResponse({"detail": "there is no such battle"}, 404)
    return StreamingResponse(_lines(desk, name, visitor), media_type="application/x-ndjson")


async def _lines(desk: Desk, name: str, visitor: int) -> AsyncIterator[str]:
    """Streams the events; the writers stop when the visitor leaves."""
    events = _events(desk, name, visitor)
    try:
        async for event in iterate_in_threadpool(events):
            yield json.dumps(event, ensure_ascii=True) + "\n"
    finally:
        await asyncio.to_thread(events.close)


def _events(desk: Desk, name: str, visitor: int) -> Generator[dict[str, Any], None, None]:
    try:
        yield from desk.answers(name, visitor)
    except Busy:
        yield {"error": "busy"}
    except DataError:
        yield {"error": "gone"}


@router.get("/battle/{exposure}")
def battle(request: Request, exposure: Exposure) -> Response:
    """Both answers with the buttons to vote; after the vote the names."""
    found = request.app.state.desk.battle(exposure, _visitor(request))
    if found is None:
        raise HTTPException(404)
    return _shown(request, "battle.html", battle=found, key=secrets.token_urlsafe(16))


@router.post("/battle/{exposure}/vote", dependencies=[Depends(_protected)])
def vote(
    request: Request,
    exposure: Exposure,
    choice: Annotated[str, Form(max_length=20)],
    key: Annotated[str, Form(min_length=8, max_length=64)],
) -> Response:
    """Stores the vote and shows the names."""
    request.app.state.desk.vote(exposure, _visitor(request), choice, key)
    return RedirectResponse(f"/battle/{exposure}", 303)


@router.post("/battle/{exposure}/reveal", dependencies=[Depends(_protected)])
def reveal(request: Request, exposure: Exposure) -> Response:
    """Shows the names without a vote; none counts after that."""
    request.app.state.desk.reveal(exposure, _visitor(request))
    return RedirectResponse(f"/battle/{exposure}", 303)


@router.get("/board")
def board(request: Request) -> Response:
    """The leaderboard."""
    ranking = request.app.state.board.ranking()
    lines, marks = bars(ranking.board) if ranking.board is not None else ([], [])
    return _shown(request, "board.html", ranking=ranking, lines=lines, marks=marks)


@router.get("/api/board")
def board_json(request: Request) -> Response:
    """The leaderboard as `tiltyard rate --json` writes it."""
    ranking = request.app.state.board.ranking()
    found = None if ranking.board is None else ranking.board.to_dict()
    values = {
        "votes": ranking.votes,
        "visitors": ranking.visitors,
        "named": ranking.named,
        "models": list(ranking.models),
        "board": found,
    }
    return JSONResponse(jsonable(values))
