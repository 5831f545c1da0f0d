"""Protection of every request: headers, a limit of their number, and none that another site sends."""

from __future__ import annotations

import hashlib
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiltyard.feedback.web.limits import Limits

# Scripts and styles come from this server's files alone: a text of a model cannot run or load anything.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
SECURE = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # "no-referrer" would make the Origin of forms "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Adds the headers, refuses requests that another site sends, and limits requests a second."""

    def __init__(self, app: ASGIApp, limits: Limits, cookie: str, encrypted: bool):
        self.app, self.limits, self.cookie = app, limits, cookie
        self.secure = SECURE | ({"strict-transport-security": "max-age=31536000"} if encrypted else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        cached = scope["path"].startswith("/static/")

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.secure)
                headers["cache-control"] = "public, max-age=31536000, immutable" if cached else "no-store"
            await send(message)

        headers = Headers(scope=scope)
        address = (scope.get("client") or ("unknown", 0))[0]
        wait = 0.0 if cached else self.limits.wait(address, digest_of_cookie(headers, self.cookie))
        if wait > 0:
            retry = {"retry-after": str(int(wait) + 1)}
            await PlainTextResponse("Too many requests; try again in a moment.", 429, retry)(scope, receive, guarded)
        elif scope["method"] not in SAFE and _from_elsewhere(headers):
            await PlainTextResponse("This request came from another site.", 403)(scope, receive, guarded)
        else:
            await self.app(scope, receive, guarded)


def digest_of_cookie(headers: Headers, name: str) -> str:
    """Returns a short digest of the session's cookie, "" without one: nothing keeps the cookie itself."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if found is None else hashlib.sha256(found.value.encode(errors="replace")).hexdigest()[:16]


def _from_elsewhere(headers: Headers) -> bool:
    """A browser's own word on where a request comes from; clients that are no browsers send none of these."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
