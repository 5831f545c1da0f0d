"""Makes the application of a page: protected, with sign-in, static files, and errors that a person can read."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.store.database import Database, StoreUnusable
from tiltyard.feedback.web import sign_in
from tiltyard.feedback.web.guard import SECURE, Guard
from tiltyard.feedback.web.limits import Limits
from tiltyard.feedback.web.pages import Pages, render
from tiltyard.feedback.web.sessions import NotSignedIn

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BODY = 256 * 1024  # bytes of a request
API = "/api/"  # below it answers and errors are JSON

log = logging.getLogger("tiltyard.web")


@dataclass(frozen=True)
class Site:
    """A page and its address.

    Args:
        name: of the page (`collect`, `arena`); it names the cookie, so that two pages on one host do not share one.
        database: the feedback store.
        url: the address that people open, without a path: it decides which Host headers are answered, and whether
            cookies are for https alone.
        packages: modules whose folders `templates` and `static` are added to those of this one.
        limits: of requests for each visitor.
    """

    name: str
    database: Database
    url: str
    packages: tuple[str, ...] = ()
    limits: Limits | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ConfigError(
                "not the address of a page",
                where="--url",
                got=self.url,
                expected="http or https with a host, and without a path",
            )

    @property
    def origin(self) -> str:
        """The address without a slash at its end."""
        return self.url.rstrip("/")

    @property
    def encrypted(self) -> bool:
        """True if people reach it by https."""
        return self.url.startswith("https:")

    @property
    def cookie(self) -> str:
        """The name of the session's cookie; browsers bind a name with `__Host-` to https and this host."""
        return f"__Host-tiltyard-{self.name}" if self.encrypted else f"tiltyard-{self.name}"


def new_app(site: Site, title: str) -> FastAPI:
    """Returns an application with sign-in, sign-out, choice of the language, static files, limits and error pages."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None)
    app.state.site = site
    app.state.pages = Pages(("tiltyard.feedback.web", *site.packages))
    app.state.limits = site.limits or Limits()
    for package in ("tiltyard.feedback.web", *site.packages):
        folder = folder_of(package) / "static"
        if folder.is_dir():
            app.mount(f"/static/{package.rpartition('.')[2]}", StaticFiles(directory=folder))
    app.include_router(sign_in.router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(NotSignedIn, _sent_to_sign_in)
    app.add_exception_handler(DataError, _conflict)
    app.add_exception_handler(Exception, _failed)
    hosts = [*LOOPBACK, str(urlsplit(site.url).hostname)]
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MOST_BODY)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    app.add_middleware(Guard, limits=app.state.limits, cookie=site.cookie, encrypted=site.encrypted)
    return app


def folder_of(package: str) -> Path:
    """Returns the folder of a package of Python."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.url.path.startswith(API):
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    page = render(request, "error.html", status=error.status_code, code=error.status_code, detail="")
    page.headers.update(error.headers or {})
    return page


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    places = sorted({".".join(str(part) for part in one["loc"]) + ": " + one["msg"] for one in error.errors()})[:20]
    if request.url.path.startswith(API):
        return JSONResponse({"detail": places}, 422)
    return render(request, "error.html", status=422, code=422, detail="; ".join(places))


def _sent_to_sign_in(request: Request, _error: Exception) -> Response:
    if request.url.path.startswith(API):
        return JSONResponse({"detail": "not signed in"}, 401)
    had_one = request.app.state.site.cookie in request.cookies
    return RedirectResponse("/in?ended=1" if had_one else "/in", 303)


def _conflict(request: Request, error: Exception) -> Response:
    """An error of the store: a lease that another person has, a task judged already, a malformed verdict."""
    assert isinstance(error, DataError)
    status = 503 if isinstance(error, StoreUnusable) else 409
    if status == 503:
        log.error("%s", error)
    if request.url.path.startswith(API):
        return JSONResponse({"detail": error.what, "expected": error.expected}, status)
    detail = "" if status == 503 else error.what + (f" ({error.expected})" if error.expected else "")
    return render(request, "error.html", status=status, code=status, detail=detail)


def _failed(request: Request, error: Exception) -> Response:
    log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    if request.url.path.startswith(API):
        return JSONResponse({"detail": "internal error"}, 500, SECURE)
    page = render(request, "error.html", status=500, code=500, detail="")
    page.headers.update(SECURE)
    return page
