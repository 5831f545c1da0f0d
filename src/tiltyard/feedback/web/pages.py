"""Pages from jinja2 templates: everything is escaped, words come from one table, static files carry their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from fastapi import Request
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from tiltyard.feedback.web.markdown import to_html
from tiltyard.feedback.web.sessions import session
from tiltyard.feedback.web.words import LANGUAGES, Words, chosen

# For the schema of routes that answer with pages: an error is a page, too.
REFUSED: dict[int | str, dict[str, Any]] = {
    code: {"description": "A page that says what is wrong", "content": {"text/html": {}}}
    for code in (403, 404, 409, 413, 422, 429, 503)
}


class Pages:
    """The templates and static files of some packages."""

    def __init__(self, packages: Sequence[str]):
        self.packages = tuple(packages)
        self._digests: dict[str, str] = {}

    @cached_property
    def environment(self) -> Environment:
        """The templates of all packages; those of later ones hide earlier ones of the same name."""
        loaders = [PackageLoader(name) for name in reversed(self.packages)]
        made = Environment(
            auto_reload=False,
            loader=ChoiceLoader(loaders),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        made.filters["markdown"] = to_html
        made.globals["static"] = self.static
        return made

    def static(self, path: str) -> str:
        """Returns the address of a static file (`web/base.css`) with a digest of its content, so that it is cached."""
        from tiltyard.feedback.web.site import folder_of

        if path not in self._digests:
            short, _, name = path.partition("/")
            package = next(one for one in self.packages if one.rpartition(".")[2] == short)
            content = (folder_of(package) / "static" / name).read_bytes()
            self._digests[path] = hashlib.sha256(content).hexdigest()[:12]
        return f"/static/{path}?v={self._digests[path]}"


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Returns a page in the visitor's language.

    Templates get `w` (`w("key", n=3)`), `lang`, `languages`, `visitor` (the session or None), `site` and `here`.
    """
    pages: Pages = request.app.state.pages
    lang = language(request)
    html = pages.environment.get_template(template).render(
        w=Words(lang),
        lang=lang,
        languages=LANGUAGES,
        visitor=_visitor(request),
        site=request.app.state.site,
        here=request.url.path,
        **values,
    )
    return HTMLResponse(html, status)


def language(request: Request) -> str:
    """Returns the visitor's choice, or the first language of the browser's list that the table has."""
    return chosen(request.cookies.get("tiltyard-lang", ""), request.headers.get("accept-language", ""))


def _visitor(request: Request) -> Any:
    """The session for the page's header; None also where the store does not answer: error pages must be shown."""
    try:
        return session(request)
    except Exception:
        return None
