"""A labelling page with people who are signed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tiltyard.feedback.collect.app import PACKAGE, collect_app
from tiltyard.feedback.collect.desk import Settings
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.people import add_annotator, add_guideline
from tiltyard.feedback.web.limits import Limits
from tiltyard.feedback.web.site import Site

ADDRESS = "http://127.0.0.1:8077"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    """An open store with guidelines."""
    database = Database(tmp_path / "labels.db")
    add_guideline(database, "# Be fair\n\nPrefer the answer that **helps**.")
    yield database
    database.close()


@pytest.fixture
def page(store: Database) -> Callable[..., Any]:
    """Makes the application, with settings."""

    def make(limits: Any = None, **settings: Any) -> Any:
        return collect_app(Site("collect", store, ADDRESS, (PACKAGE,), limits), Settings(**settings))

    return make


@pytest.fixture
def client(store: Database, page: Callable[..., Any]) -> Callable[..., Browser]:
    """Makes a browser without scripts: signed in as a new person who has accepted the guidelines, or not."""
    app = page(Limits(session=1e6, burst=1e6, address=1e6, wrong=1e6))

    def make(name: str = "ada", role: str = "annotator", accept: bool = True, app: Any = app) -> Browser:
        browser = Browser(app)
        browser.token = add_annotator(store, name, role)[1]
        browser.post("/in", {"token": browser.token})
        if accept and role == "annotator":
            browser.submit("/guidelines")
        return browser

    return make


class Browser:
    """Follows redirects, keeps cookies, and sends a page's own form with some fields changed."""

    token = ""

    def __init__(self, app: Any):
        self.http = TestClient(app, base_url=ADDRESS, raise_server_exceptions=True)

    def get(self, path: str, **kw: Any) -> Any:
        return self.http.get(path, **kw)

    def post(self, path: str, data: dict[str, Any], **kw: Any) -> Any:
        return self.http.post(path, data=data, **kw)

    def form(self, page: str, action: str | None = None) -> dict[str, Any]:
        """The fields of the form on a page that goes to `action` (the page itself)."""
        response = self.get(page)
        assert response.status_code == 200, response.text
        return fields(response.text, action or page)

    def submit(self, page: str, action: str | None = None, **changes: Any) -> Any:
        """Sends a form of a page with its hidden fields."""
        values = {**self.form(page, action), **changes}
        return self.post(action or page, {key: value for key, value in values.items() if value is not None})


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: dict[str, dict[str, Any]] = {}
        self.open: dict[str, Any] | None = None

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        named = dict(attrs)
        if tag == "form":
            self.open = self.forms.setdefault(named.get("action", ""), {})
        elif tag == "input" and self.open is not None and named.get("type") == "hidden":
            self.open[named["name"]] = named.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.open = None


def fields(html: str, action: str) -> dict[str, Any]:
    """The hidden fields of a page's form."""
    parser = _Forms()
    parser.feed(html)
    assert action in parser.forms, f"no form goes to {action}"
    return dict(parser.forms[action])
