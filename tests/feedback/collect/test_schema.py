"""Requests made from the page's own OpenAPI schema, right ones and wrong ones: none is an error of the server."""

from __future__ import annotations

import pytest

pytest.importorskip("schemathesis", reason="schemathesis is not installed (pip install schemathesis)")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies

from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.web.limits import Limits

from ..store.conftest import group
from .conftest import ADDRESS, Browser

EXAMPLES = 14  # of each operation


def asked(operation, address: str = ADDRESS, **sent) -> set[int]:
    """The codes of the answers to requests that its schema allows or does not allow."""
    codes = set()

    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case):
        answer = case.call(base_url=address, allow_redirects=False, **sent)
        codes.add(answer.status_code)
        assert answer.status_code < 500, (case.as_curl_command(), answer.status_code)

    ask()
    return codes


@pytest.mark.slow
@pytest.mark.parametrize("role", ["annotator", "admin", "nobody"])
def test_no_request_is_an_error_of_the_server(store, page, client, role):
    add_tasks(store, [Item(group(k, 2 + k % 3), kind=("pair", "ranking", "rating")[k % 3]) for k in range(60)])
    app = page(Limits(session=1e6, burst=1e6, address=1e6, wrong=1e6))
    browser = Browser(app) if role == "nobody" else client("ada", role, app=app)
    cookies = dict(browser.http.cookies)
    headers = {}
    if role == "annotator":
        headers["x-csrf-token"] = browser.get("/api/me").json()["csrf"]
    schema = schemathesis.openapi.from_dict(browser.get("/openapi.json").json())
    schema.app = app
    operations = [one.ok() for one in schema.get_all_operations()]
    assert len(operations) >= 18
    seen = {one.label: asked(one, headers=headers, cookies=cookies) for one in operations}
    if role == "annotator":
        assert any(200 in codes for codes in seen.values())
        assert all(codes <= {200, 303, 403, 404, 409, 422} for codes in seen.values()), seen
    elif role == "nobody":
        assert all(codes <= {303, 401, 422, 404} for codes in seen.values()), seen


@pytest.mark.slow
def test_no_sign_in_is_an_error_of_the_server(page):
    """The forms that are no part of the schema."""
    browser = Browser(page(Limits(session=1e6, burst=1e6, address=1e6, wrong=1e6)))
    words = strategies.text(max_size=450) | strategies.sampled_from(["/", "//x", "/label?a=b", "en", "zz", "\x00", "#"])

    @given(data=strategies.dictionaries(strategies.sampled_from(["token", "lang", "back", "csrf"]), words))
    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    def sent(data):
        for path in ("/in", "/language", "/out"):
            answer = browser.post(path, data, follow_redirects=False)
            assert answer.status_code in (303, 403, 422), (path, data)
            assert answer.headers.get("location", "/").startswith("/")
            assert not answer.headers.get("location", "/").startswith(("//", "/\\"))

    sent()
