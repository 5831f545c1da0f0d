"""The report in Chromium: no error, no request, every picture drawn, filters, differences, hostile texts, axe-core.

`TILTYARD_REPORT_RUNS=runs/a:runs/b` opens those runs too, e.g. a tournament on a real model.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from axe_playwright_python.sync_playwright import Axe
from benchmarks.pages.serving import browser, chromium

from tiltyard.report.html import write_report

from .made import HOSTILE, stage, whole_run
from .made_tournament import METHODS, sampled, study, tournament

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.skipif(not chromium(), reason="Chromium is missing")]

REAL = [path for path in os.environ.get("TILTYARD_REPORT_RUNS", "").split(":") if path]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def chrome():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a run whose responses, prompts and a model's name are hostile."""
    folder = tmp_path_factory.mktemp("report")
    run = whole_run(folder, text=lambda model, i: f"{model} {i} {HOSTILE[i % len(HOSTILE)]}")
    body = (run / "evaluate/answers.jsonl").read_text()
    (run / "evaluate/answers.jsonl").write_text(
        body.replace('"model": "dpo"', '"model": "<img src=x onerror=alert(1)>"')
    )
    return write_report([run], folder / "report.html", version="0.1.0")[0]


class Opened:
    """The page with what Chromium had to say about it."""

    def __init__(self, chrome, path, size="desktop", scheme="light"):
        width, height = SIZES[size]
        self.context = chrome.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.set_default_timeout(30_000)  # a busy machine
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"file://{path}")
        self.page.wait_for_selector("html[data-ready=yes]")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def count(self) -> str:
        return self.page.locator("#samples [role=status]").inner_text()


def barriers(page) -> list[str]:
    """What axe-core finds, with the first place of each."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0].get('failureSummary')}" for one in found]


@pytest.fixture(scope="module")
def reports(tmp_path_factory, report):
    """Pages by name: of a run with everything, of a tournament, of both, and of the runs that the environment names."""
    folder = tmp_path_factory.mktemp("reports")
    big = tournament(folder)
    sampled(big)
    found = {"made": report}
    shown = {"tournament": [big], "both": [big, whole_run(folder), study(folder)]}
    for name, runs in {**shown, **{run: [run] for run in REAL}}.items():
        found[name] = write_report(runs, folder / f"{Path(name).name}.html", version="0.1.0")[0]
    return found


VIEWS = [("desktop", "light"), ("desktop", "dark"), ("phone", "light")]
OPENED = [("made", *view) for view in VIEWS] + [("tournament", *view) for view in VIEWS[1:]]
OPENED += [(name, "phone", "light") for name in ("both", *REAL)] + [(name, "desktop", "light") for name in REAL]


@pytest.mark.parametrize(("name", "size", "scheme"), OPENED)
def test_it_opens_without_an_error_a_request_or_a_barrier(chrome, reports, name, size, scheme):
    report = reports[name]
    with Opened(chrome, report, size, scheme) as opened:
        page = opened.page
        assert page.title().endswith(" – Tiltyard report")
        assert page.evaluate("window.hacked") is None
        boxes = page.evaluate(
            "() => [...document.querySelectorAll('figure .draw')]"
            ".map(e => e.querySelector('svg')?.getBoundingClientRect())"
        )
        assert all(box and box["width"] > 100 and box["height"] > 20 for box in boxes)
        assert len(boxes) >= (10 if name not in REAL else 1)
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]  # only tables scroll sideways
        assert barriers(page) == []
        assert opened.requests == [f"file://{report}"]
        assert opened.problems == []


def test_words_in_backticks_are_code(chrome, tmp_path):
    run = tmp_path / "`odd` run"
    run.mkdir()
    stage(run, "ppo", "ppo", settings={"steps": 5})
    with Opened(chrome, write_report([run], tmp_path / "report.html")[0]) as opened:
        notes = opened.page.locator("#summary .notes")
        assert notes.locator("code").all_inner_texts() == ["evaluate", "tiltyard eval"]
        assert "`" not in notes.inner_text()
        assert opened.problems == []


def test_filters_differences_and_colours(chrome, report):
    with Opened(chrome, report) as opened:
        page = opened.page
        samples = page.locator("#samples")
        assert opened.count() == "40 prompts of 40"
        samples.get_by_label("Search").fill("question 12?")
        assert opened.count() == "1 prompt of 40"
        samples.get_by_label("Search").fill("")
        page.get_by_label("from reward").fill("1.5")
        few = int(opened.count().split()[0])
        assert 0 < few < 40
        page.get_by_label("from reward").fill("")
        page.get_by_label("to tokens").fill("8")
        assert 0 < int(opened.count().split()[0]) < 40
        page.get_by_label("to tokens").fill("")
        page.get_by_label("only where measures disagree").check()
        assert 0 < int(opened.count().split()[0]) < 40
        page.get_by_label("only where measures disagree").uncheck()

        assert samples.locator("article").first.locator(".answer").count() == 3
        samples.get_by_role("button", name="ppo", exact=True).click()
        assert samples.locator("article").first.locator(".answer").count() == 2
        samples.get_by_role("button", name="ppo", exact=True).click()
        samples.get_by_label("Order").select_option("best")
        rewards = samples.locator("article").first.inner_text()
        assert "highest reward" in rewards

        page.get_by_label("Differences to").select_option("start")
        assert (
            "ppo"
            in samples.locator("article ins").first.inner_text() + samples.locator("article ins").nth(1).inner_text()
        )
        page.get_by_label("Differences to").select_option("")
        samples.get_by_label("Order").select_option("")
        samples.get_by_label("Search").fill("question 3?")
        page.get_by_label("Colour tokens by").select_option("lr")
        tokens = samples.locator(".token")
        assert tokens.all_inner_texts()[:3] == ["one ", "two ", "<b>three</b>"]
        colours = [tokens.nth(i).evaluate("e => e.style.backgroundColor") for i in range(3)]
        assert colours[0] == "rgba(0, 114, 178, 0.12)" or "var(--up) / 0.1" in colours[0]  # 1 nat likelier
        assert "down" in colours[2] or "213" in colours[2]  # 1.5 nats less likely
        samples.get_by_label("Search").fill("")
        samples.get_by_role("combobox", name="From").select_option("ppo")
        assert "step" in samples.locator("article").first.inner_text()
        assert opened.problems == []


def test_a_tournament_s_models_are_found_beside_each_other(chrome, reports):
    """Models chosen by name, words found in them, the alarms and the distance to the optimum."""
    with Opened(chrome, reports["tournament"]) as opened:
        page = opened.page
        samples = page.locator("#samples")
        assert opened.count() == "30 prompts of 30"
        chips = samples.locator(".chips button")
        assert chips.count() == len(METHODS)
        assert samples.locator("article").first.locator(".answer").count() == 4
        samples.get_by_role("button", name="ppo", exact=True).click()
        assert samples.locator("article").first.locator(".answer").count() == 5
        samples.get_by_label("Search").fill("ppo answers 12:")
        assert opened.count() == "1 prompt of 30"
        samples.get_by_role("combobox", name="From").select_option("ppo")
        samples.get_by_label("Search").fill("")
        assert "step" in samples.locator("article").first.inner_text()
        assert page.locator("#training .notes li").count() == 2
        assert page.locator("#training line.alarm").count() > 2
        page.locator("#training .notes summary").first.click()
        page.locator("#training .notes dd", has_text="long words").wait_for()
        assert "refused" in page.locator("#results table", has_text="KL to the optimum").first.inner_text()
        assert page.locator("#summary", has_text="Alarm in ppo at step 12").count() == 1
        assert opened.problems == []


def test_training_against_gold_samplers_and_studies_are_drawn(chrome, reports):
    with Opened(chrome, reports["both"]) as opened:
        page = opened.page
        fits = page.locator("#results table", has_text="gold peaks at d =").inner_text()
        assert "0.900 to 1.1" in " ".join(fits.split()) or "0.9 to 1.1" in " ".join(fits.split())
        assert "not known there" in fits
        for title in ("Gold reward, with fits", "Self-BLEU", "coverage"):
            page.locator("#results figure", has_text=title).locator("svg").first.wait_for()
        sampler = page.locator("#results table", has_text="Effective number").inner_text()
        assert "importance" in sampler
        assert "pessimism" in sampler
        studies = page.locator("#studies")
        assert "compared, all at kl = 0.3" in studies.inner_text()
        assert "1 of 3 seeds" in studies.inner_text()
        studies.locator("summary", has_text="Differences from the baseline").first.click()
        studies.locator("table", has_text="<b>rl</b>@1: Gold reward").wait_for()
        assert barriers(page) == []
        assert opened.problems == []


def test_stages_can_be_hidden_and_every_picture_has_its_table(chrome, report):
    with Opened(chrome, report) as opened:
        page = opened.page
        before = page.locator("#training figure").count()
        page.locator("#training").get_by_role("button", name="ppo").click()
        assert page.locator("#training figure").count() < before
        page.locator("#training").get_by_role("button", name="ppo").click()
        for summary in page.locator("figure > details > summary, #results details > summary").all():
            summary.click()
            # what is opened is drawn by a later event and moves what stands below it: wait before the next click
            summary.locator("xpath=following-sibling::*").first.wait_for(state="attached")
        page.locator("#results", has_text="Benjamini-Hochberg").wait_for()
        page.wait_for_function(
            "() => document.querySelectorAll('figure table').length >= document.querySelectorAll('figure').length"
        )
        page.locator("#settings summary").first.click()
        page.locator("#settings details[open] table").first.wait_for()  # it is drawn when it is opened
        assert "setting" in page.locator("#settings details").first.inner_text()
        assert barriers(page) == []
        assert opened.problems == []


def test_it_prints(chrome, report, tmp_path):
    with Opened(chrome, report, scheme="dark") as opened:
        opened.page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
        assert (tmp_path / "report.pdf").stat().st_size > 50_000
        opened.page.emulate_media(media="print")
        assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not opened.page.locator(".controls").first.is_visible()
        assert opened.page.locator("#training .legend").is_visible()  # the colours of the curves


@pytest.mark.parametrize("name", ["tournament", "both", *REAL])
def test_no_table_runs_off_the_printed_page(chrome, reports, name):
    """A4 with margins of a centimetre; on paper nothing scrolls."""
    with Opened(chrome, reports[name]) as opened:
        opened.page.emulate_media(media="print")
        opened.page.set_viewport_size({"width": 718, "height": 1040})
        wide = opened.page.evaluate(
            "() => [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            ".map(e => `${e.getAttribute('aria-label')}: ${e.scrollWidth} of ${e.clientWidth}`)"
        )
        assert wide == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 718
