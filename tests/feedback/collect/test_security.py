"""What a stranger, another annotator, another site and a hostile text cannot do."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence

import pytest
from fastapi.routing import APIRoute

from tiltyard.errors import ConfigError
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.people import add_annotator, add_guideline, new_link, set_active
from tiltyard.feedback.web.guard import POLICY
from tiltyard.feedback.web.limits import Bucket, Limits
from tiltyard.feedback.web.server import address, exposure
from tiltyard.feedback.web.site import MOST_BODY, Site
from tiltyard.types import Group, Message, Prompt, Response

from ..store.conftest import group
from .conftest import ADDRESS, Browser

# Published cases among them: label-studio CVE-2025-25296 (a label config in a URL), GHSA-2mq9-hm29-8qch (labelled
# content as HTML).
PAYLOADS = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    "[click](javascript:window.hacked=1)",
    "[click](data:text/html;base64,PHNjcmlwdD53aW5kb3cuaGFja2VkPTE8L3NjcmlwdD4=)",
    '![x](x" onerror="window.hacked=1)',
    "<a href='jav&#x09;ascript:window.hacked=1'>x</a>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    '<View><Text name="t" value="$x"/><Style>.x{background:url(javascript:hacked=1)}</Style></View>',
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=hacked=1&gt;">',
    "</textarea><script>window.hacked = 1</script>",
    '"><script>window.hacked = 1</script>',
    "{{ 7 * 7 }} {% raw %}",
    "<style>@import 'http://evil.example/x.css'; body { display: none }</style>",
    "<form action='http://evil.example'><button>send</button></form>",
    "```html\n<script>window.hacked = 1</script>\n```",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~\n<script>window.hacked = 1</script>",
)


def hostile_items(kind: str = "pair", count: int = 2, texts: Sequence[str] = PAYLOADS) -> list[Item]:
    """An item for each payload: in the prompt, a system message, every response and the names of the models."""
    made = []
    for k, text in enumerate(texts):
        prompt = Prompt(messages=(Message("system", text), Message("user", text)), id=f"{text[:20]}{k}")
        responses = tuple(
            Response(text=f"{text}\n\n{j}", meta={"policy": text[:150], "version": str(j)}) for j in range(count)
        )
        made.append(Item(Group(prompt, responses), kind=kind, source=text[:100]))
    return made


def test_every_answer_carries_the_headers(store, client):
    add_tasks(store, [Item(group(1))])
    ada = client()
    for path in ("/label", "/guidelines", "/nothing", "/api/task", "/static/web/base.css", "/in"):
        response = ada.get(path)
        assert response.headers["content-security-policy"] == POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert ("immutable" if "static" in path else "no-store") in response.headers["cache-control"]
    assert "unsafe" not in POLICY
    cookie = client("bob").http.cookies.jar
    (session,) = [one for one in cookie if one.name == "tiltyard-collect"]
    assert session.has_nonstandard_attr("HttpOnly")
    assert session.get_nonstandard_attr("SameSite").lower() == "lax"


def test_pages_have_no_inline_script_or_style(store, client):
    add_tasks(store, hostile_items())
    ada = client()
    for path in ("/label", "/guidelines", "/in", "/skip", "/flag", "/keys"):
        html = ada.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>", html)
        assert not re.search(r"<[^>]+\s(style|on\w+)=", re.sub(r"&[^;]+;", "", html))
        assert not re.search(r"https?://", html.replace("rel=", ""))


def test_nobody_gets_in_without_a_link(store, client):
    add_tasks(store, [Item(group(1))])
    stranger = Browser(client().http.app)
    for path in ("/label", "/guidelines", "/feedback/1", "/skip", "/admin"):
        assert stranger.get(path).url.path == "/in"
    assert stranger.get("/api/task").status_code == 401
    assert stranger.post("/in", {"token": "guessed"}).status_code == 403
    assert stranger.post("/in", {"token": "\u00e9" * 20}).status_code == 403


def test_opening_a_link_changes_nothing(store, client):
    """A preview or prefetch of a personal link (GET) signs nobody in and uses nothing up."""
    token = add_annotator(store, "eve")[1]
    browser = Browser(client().http.app)
    for _ in range(3):
        page = browser.get(f"/in#{token}")
        assert page.status_code == 200
        assert not browser.http.cookies
    assert browser.post("/in", {"token": f"{ADDRESS}/in#{token}"}).url.path == "/guidelines"


def test_every_change_needs_the_token_of_the_session(store, client):
    add_tasks(store, [Item(group(k)) for k in range(3)])
    ada, bob = client(), client("bob")
    app = ada.http.app
    changing = [
        (route.path, next(iter(route.methods - {"GET", "HEAD"})))
        for route in _routes(app)
        if route.methods - {"GET", "HEAD"} and route.path not in ("/in", "/language")
    ]
    assert len(changing) >= 10
    sent = ada.form("/label") | {"choice": "tie", "reason": "x", "version": "1", "verdict": {"choice": "tie"}}
    other = bob.form("/label")["csrf"]
    for path, method in changing:
        for csrf in ("", "x", other):
            form = {k: v for k, v in sent.items() if k != "verdict"} | {"csrf": csrf}
            if path.startswith("/api/"):
                answer = ada.http.request(method, path, json=sent, headers={"x-csrf-token": csrf})
            else:
                answer = ada.http.request(method, path, data=form)
            assert answer.status_code == 403, (path, csrf)
    assert list(groups(store)) == []


def _routes(app):
    found, waiting = [], list(app.routes)
    while waiting:
        route = waiting.pop()
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if isinstance(route, APIRoute):
            found.append(route)
        elif inner:
            waiting += list(inner)
    return found


def test_other_sites_and_other_hosts_are_refused(store, client):
    add_tasks(store, [Item(group(1))])
    ada = client()
    sent = ada.form("/label") | {"choice": "tie"}
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        assert ada.post("/label", sent, headers=headers).status_code == 403
    assert ada.get("/label", headers={"host": "evil.example"}).status_code == 400  # a name that was made to lead here
    assert ada.post("/label", sent, headers={"origin": ADDRESS, "sec-fetch-site": "same-origin"}).status_code == 200


def test_another_annotators_task_cannot_be_judged_skipped_or_seen(store, client):
    known = {"expected": {"choice": "second"}, "explanation": "Known."}
    add_tasks(store, [Item(group(0), stage="training", **known), *(Item(group(k)) for k in range(1, 4))])
    ada, bob = client(), client("bob")
    mine = ada.form("/label")["exposure"]
    seen = ada.submit("/label", choice="tie").url.path
    assert bob.submit("/label", choice="tie", exposure=mine).status_code == 409
    assert bob.submit("/label", "/skip", reason="x", exposure=mine).status_code == 409
    assert bob.submit("/label", "/flag", reason="x", exposure=mine).status_code == 409
    assert bob.get(seen).status_code == 404
    assert bob.get("/feedback/999999999999").status_code == 404


def test_roles(store, client):
    admin = client("root", role="admin")
    for path in ("/label", "/guidelines", "/api/task"):
        assert admin.get(path).status_code == 403
    assert client().get("/admin").status_code in (403, 404)


def test_annotators_see_no_models_and_no_sources(store, client):
    add_tasks(store, [Item(group(k), source="from-the-secret-run") for k in range(2)])
    ada = client()
    for text in (ada.get("/label").text, json.dumps(ada.get("/api/task").json())):
        assert "model-" not in text
        assert "secret-run" not in text


def test_shut_out_and_new_links_end_sessions(store, client):
    ada = client()
    set_active(store, "ada", False)
    assert ada.get("/label").url.path == "/in"
    set_active(store, "ada", True)
    fresh = Browser(ada.http.app)
    assert fresh.post("/in", {"token": ada.token}).url.path == "/label"
    newer = new_link(store, "ada")
    assert fresh.get("/label").url.path == "/in"
    assert fresh.post("/in", {"token": ada.token}).status_code == 403
    assert fresh.post("/in", {"token": newer}).url.path == "/label"


def test_signing_out_ends_the_session(store, client):
    add_tasks(store, [Item(group(1))])
    ada = client()
    cookie = ada.http.cookies["tiltyard-collect"]
    assert ada.submit("/label", "/out").url.path == "/in"
    ada.http.cookies.set("tiltyard-collect", cookie)
    assert ada.get("/label").url.path == "/in"


def test_bodies_have_a_limit(store, client):
    add_tasks(store, [Item(group(1))])
    ada = client()
    sent = ada.form("/label") | {"choice": "tie", "comment": "x" * (MOST_BODY + 1)}
    assert ada.post("/label", sent).status_code == 413
    chunks = (b"x" * 65536 for _ in range(10))  # no length announced
    answer = ada.http.post("/label", content=chunks, headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 413
    assert ada.post("/label", sent | {"comment": "x" * 10_001}).status_code == 422
    assert list(groups(store)) == []


def test_no_path_leads_out_of_the_static_folder(client):
    ada = client()
    for path in (
        "/static/web/../sessions.py",
        "/static/web/..%2fsessions.py",
        "/static/web/%2e%2e/sessions.py",
        "/static/web/....//sessions.py",
        "/static/web//etc/passwd",
        "/static/..%5c..%5cpeople.py",
        "/static/web/%00",
    ):
        assert ada.get(path).status_code in (400, 404), path


@pytest.mark.parametrize("bad", ["a\x00b", "\ud800"])
def test_characters_that_no_database_holds(store, client, bad):
    add_tasks(store, [Item(group(k)) for k in range(3)])
    ada = client()
    head = {"x-csrf-token": ada.get("/api/me").json()["csrf"], "content-type": "application/json"}
    exposure = ada.get("/api/task").json()["exposure"]
    sent = {"exposure": exposure, "key": "k", "verdict": {"choice": "tie"}, "comment": bad}
    assert ada.http.post("/api/judgements", content=json.dumps(sent), headers=head).status_code in (409, 422)
    sent = {"exposure": exposure, "reason": bad}
    for path in ("/api/skip", "/api/flag"):
        assert ada.http.post(path, content=json.dumps(sent), headers=head).status_code in (409, 422)


def test_hostile_texts_are_shown_and_not_run(store, client):
    """Every payload stands on the page as text: no tag, no address of it is in the HTML."""
    for kind in ("pair", "write", "rating"):
        add_tasks(store, hostile_items(kind))
    add_guideline(store, "\n\n".join(PAYLOADS))
    ada = client()
    pages = [ada.get("/guidelines").text]
    for k in range(3 * len(PAYLOADS)):
        html = ada.get("/label").text
        pages.append(html)
        kind = ada.form("/label")["kind"]
        sent = {"pair": {"choice": "tie"}, "write": {"text": PAYLOADS[k % len(PAYLOADS)]}}.get(
            kind, {"rating_0": 1, "rating_1": 2}
        )
        assert ada.submit("/label", comment=PAYLOADS[k % len(PAYLOADS)], **sent).status_code == 200
    assert any("{{ 7 * 7 }}" in html for html in pages)
    for html in pages:
        inside = html.partition("<main")[2]
        assert not re.search(r"<(script|img|iframe|math|style|meta|view)\b", inside, re.IGNORECASE)
        assert not re.search(r"<[^>]*\son\w+\s*=", inside)
        assert not re.search(r'(?:href|src|action)="\s*(?:javascript|data|http)', inside, re.IGNORECASE)


def test_requests_a_second_have_a_limit(store, page):
    clock = [0.0]
    limits = Limits(session=2, burst=5, address=1000, wrong=3, clock=lambda: clock[0])
    app = page(limits=limits)
    ada = Browser(app)
    ada.post("/in", {"token": add_annotator(store, "ada")[1]}, follow_redirects=False)
    codes = [ada.get("/guidelines").status_code for _ in range(8)]
    assert codes == [200] * 5 + [429] * 3
    assert int(ada.get("/guidelines").headers["retry-after"]) >= 1
    clock[0] += 1.0
    assert [ada.get("/guidelines").status_code for _ in range(3)] == [200, 200, 429]
    stranger = Browser(app)
    wrong = [stranger.post("/in", {"token": f"guess{k}"}).status_code for k in range(5)]
    assert wrong == [403] * 3 + [429] * 2


def test_a_bucket_keeps_few_keys():
    bucket = Bucket(1.0, 1.0, lambda: 0.0)
    for k in range(20_000):
        bucket.wait(str(k))
    assert len(bucket._held) <= 10_000


def test_no_secret_is_logged(store, client, caplog):
    caplog.set_level(logging.DEBUG)
    add_tasks(store, [Item(group(k)) for k in range(2)])
    ada = client()
    form = ada.form("/label")
    ada.submit("/label", choice="tie")
    ada.post("/label", {"csrf": form["csrf"], "exposure": "x"})
    text = caplog.text
    for secret in (ada.token, ada.http.cookies["tiltyard-collect"], form["csrf"]):
        assert secret not in text


def test_an_error_of_the_server_shows_nothing_of_it(store, client, monkeypatch):
    ada = client()
    ada.http = type(ada.http)(ada.http.app, base_url=ADDRESS, raise_server_exceptions=False, cookies=ada.http.cookies)

    def broken(*_args):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("tiltyard.feedback.collect.desk.Desk.next", broken)
    for path in ("/label", "/api/task"):
        answer = ada.get(path)
        assert answer.status_code == 500
        assert "secret detail" not in answer.text
        assert answer.headers["content-security-policy"] == POLICY


def test_who_can_reach_the_page_is_told(store):
    def told(host, url=""):
        return exposure(Site("collect", store, address(host, 8077, url)), host)

    assert "this machine alone" in told("127.0.0.1")[0]
    assert any("https" in line for line in told("192.168.1.5")[1:])
    assert "warning" not in " ".join(told("0.0.0.0", "https://labels.example.org"))
    with pytest.raises(ConfigError, match="need an address"):
        told("0.0.0.0")
    with pytest.raises(ConfigError, match="not the address"):
        Site("collect", store, "ftp://x")
    secure = Site("collect", store, "https://labels.example.org")
    assert secure.cookie.startswith("__Host-")
