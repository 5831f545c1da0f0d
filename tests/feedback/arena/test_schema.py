"""Requests made from the arena's own OpenAPI schema, right ones and wrong ones: none is an error of the server."""

from __future__ import annotations

import pytest

pytest.importorskip("schemathesis", reason="schemathesis is not installed (pip install schemathesis)")

import schemathesis
from fastapi.testclient import TestClient

from ..collect.test_schema import asked
from .test_pages import URL, Visitor
from .test_security import app  # noqa: F401 - a fixture


@pytest.mark.slow
@pytest.mark.parametrize("role", ["visitor", "nobody"])
def test_no_request_is_an_error_of_the_server(app, role) -> None:  # noqa: F811
    visitor = Visitor(app)
    for _ in range(3):
        visitor.fight()
    cookies = dict(visitor.http.cookies) if role == "visitor" else {}
    headers = {"x-csrf-token": visitor.csrf} if role == "visitor" else {}
    schema = schemathesis.openapi.from_dict(TestClient(app, base_url=URL).get("/openapi.json").json())
    schema.app = app
    operations = [one.ok() for one in schema.get_all_operations()]
    assert len(operations) == 9
    seen = {one.label: asked(one, URL, headers=headers, cookies=cookies) for one in operations}
    assert all(codes <= {200, 303, 403, 404, 409, 422} for codes in seen.values()), seen
    if role == "visitor":
        assert 409 in seen["POST /battle/{exposure}/vote"], "no request came as far as the store"
    else:
        changing = {code for label, codes in seen.items() if label.startswith("POST") for code in codes}
        assert changing <= {403, 422}, seen
