"""The report's data and its file: figures, sentences, what is missing, sizes, and a data island that nothing leaves."""

from __future__ import annotations

import json
import random
import re
import shutil
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.cli import main
from tiltyard.errors import ConfigError
from tiltyard.report.html import page_data, render, write_report
from tiltyard.report.html.island import island, source_hash
from tiltyard.report.html.samples import disagreement
from tiltyard.report.html.tokens import pieces_of

from .made import HOSTILE, answers, dump, lines, metrics, stage, summary, whole_run
from .made_tournament import tournament


class Page(HTMLParser):
    """Tags, and the texts of scripts and styles, as a browser would find them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag in ("script", "style")
        if self._inside:
            self.texts.append("")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.texts[-1] += data


def said(page) -> list[str]:
    return ["".join(p if isinstance(p, str) else p["b"] for p in one["parts"]) for one in page["summary"]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("runs"))


# ------------------------------------------------------------------------------------------------------------- figures


def test_the_page_has_the_summary_s_figures_and_says_them(run):
    page = page_data([run])
    facts = json.loads((run / "evaluate/summary.json").read_text())["models"]["ppo"]
    row = next(row for row in page["evaluations"][0]["rows"] if row["model"] == "ppo")
    assert row["cells"]["win_rate"] == {"v": 0.62, "lo": 0.58, "hi": 0.66}
    assert row["cells"]["gold"]["v"] == pytest.approx(facts["gold"], rel=1e-4)
    assert row["cells"]["reward:concise"]["n"] == 40
    sentences = said(page)
    assert sentences[0] == (
        "ppo is better than start: it wins 62.0% of comparisons (95% interval 58.0% to 66.0%) on 40 prompts, "
        "by the gold reward."
    )
    assert any("40 prompts: only a large difference" in line for line in sentences)
    assert page["notes"] == []
    assert row["tests"]["win_rate_q"] == 0.02
    assert row["tests"]["differences"]["gold"] == {
        "v": 0.3,
        "lo": 0.1,
        "hi": 0.5,
        "n": 40,
        "p": 0.01,
        "q": 0.03,
        "mde": 0.2,
    }


def test_alarms_and_the_number_of_models_that_were_looked_at_are_said(tmp_path):
    run = tmp_path / "alarmed"
    run.mkdir()
    rows = [{"name": "constant", "win_rate": 0.7, "low": 0.6, "high": 0.8, "n": 40, "alarm": True}, {"name": "prompt"}]
    facts = {"alarms": ["! alarm: the judge prefers the same words"], "null_rows": rows}
    facts["selection"] = {"evaluations": ["a/evaluate", "b/evaluate"], "models": 9}
    body = summary(list(answers(40))) | {"evaluation": facts}
    dump(stage(run, "evaluate", "evaluate", done={}) / "summary.json", body)
    page = page_data([run])
    assert "Alarm: the judge prefers the same words." in said(page)
    assert any(line.startswith("9 models were looked at on these prompts, in 2 evaluations") for line in said(page))
    assert page["evaluations"][0]["nulls"][0] == {"name": "constant", "v": 0.7, "lo": 0.6, "hi": 0.8, "n": 40}


def test_what_was_not_shown_is_said_with_what_would_have_shown(tmp_path):
    run = tmp_path / "even"
    run.mkdir()
    body = summary(list(answers(40, ("start", "dpo", "a", "b", "c"))))
    for name, facts in body["models"].items():
        facts |= {"win_rate_ci": [0.45, 0.65], "win_rate_q": 0.01 if name == "a" else 0.4}
    dump(stage(run, "evaluate", "evaluate", done={}) / "summary.json", body)
    sentences = said(page_data([run]))
    assert sentences[0] == (
        "Of 4 models, compared by the gold reward, 1 is better than start, 0 worse, and 3 cannot be told apart from "
        "it, adjusted for their number (Benjamini-Hochberg, 5%)."
    )
    assert sentences[1].startswith("a is better than start: it wins 55.0% of comparisons")
    body["models"]["a"]["win_rate_q"] = 0.4
    dump(run / "evaluate/summary.json", body)
    sentences = said(page_data([run]))
    assert "none is shown to be better than start, none worse, and 4 cannot be told apart" in sentences[0]
    assert sentences[1].startswith("The highest of the 4: dpo wins 55.0% of comparisons with start")
    assert "This set of prompts would show 11 points (80% power)." in sentences[1]


def test_the_pipeline_has_what_each_stage_read_and_made(run):
    stages = {one["name"]: one for one in page_data([run])["runs"][0]["stages"]}
    assert stages["reward"]["reads"] == [{"stage": "clean", "what": "rows.jsonl", "key": "data", "sha": ""}]
    assert {"stage": "reward", "what": "", "key": "reward", "sha": ""} in stages["ppo"]["reads"]
    assert stages["ppo"]["made"] == ["120 responses"]
    assert stages["reward"]["made"] == ["a model"]
    assert (stages["ppo"]["steps"], stages["ppo"]["of"]) == (20, 20)


def test_a_setting_of_a_stage_s_name_is_no_input(tmp_path):
    run = tmp_path / "names"
    run.mkdir()
    stage(run, "dpo", "dpo", done={})
    stage(run, "online", "online_dpo", number=1, done={}, settings={"loss": "dpo"})
    assert page_data([run])["runs"][0]["stages"][1]["reads"] == []


def test_the_matrix_is_antisymmetric_and_by_the_same_prompts(run):
    one = page_data([run])["comparisons"][0]
    assert one["by"] == "gold reward"
    for i, row in enumerate(one["matrix"]):
        for j, cell in enumerate(row):
            if i == j:
                assert cell is None
            else:
                assert cell["v"] + one["matrix"][j][i]["v"] == pytest.approx(1, abs=1e-4)
                assert cell["lo"] <= cell["v"] <= cell["hi"]
                assert cell["n"] == 40
    rated = {row["model"]: row for row in one["ratings"]}
    assert rated["start"]["v"] == pytest.approx(1000)
    assert rated["dpo"]["v"] > 1000


def test_hacking_is_said(tmp_path):
    run = tmp_path / "hacked"
    run.mkdir()
    rows = list(answers(200, ("start", "ppo")))
    rows = [
        row | {"gold": row["gold"] - (row["model"] == "ppo"), "proxy": row["proxy"] + (row["model"] == "ppo")}
        for row in rows
    ]
    dump(stage(run, "evaluate", "evaluate", done={}) / "summary.json", summary(rows))
    page = page_data([run])
    assert any("the reward was hacked" in line for line in said(page))
    assert any(one["tone"] == "bad" for one in page["summary"])


def test_disagreement_is_of_the_order_of_two_measures():
    a, b = {"s": 1.0, "g": 0.0}, {"s": 0.0, "g": 1.0}
    assert disagreement([a, b]) == 1
    assert disagreement([a, {"s": 0.0, "g": -1.0}]) == 0
    assert disagreement([{"s": 1.0}, {"s": 0.0}]) is None
    assert disagreement([a, a]) == 0


def test_token_pieces_join_to_the_text():
    from tiltyard.data.tokenizer import train_tokenizer

    text = "A stone, naïve 日本語 🙂🙂 and é."
    tokenizer = train_tokenizer([text], 262)
    ids = tokenizer.encode(text)
    pieces = pieces_of(tokenizer.backend_tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert "" in pieces  # a byte within a character


# ------------------------------------------------------------------------------------------ what is missing


def test_a_run_without_evaluation_shows_the_rest(tmp_path):
    run = tmp_path / "open"
    run.mkdir()
    lines(stage(run, "ppo", "ppo", settings={"steps": 50}) / "metrics.jsonl", metrics(10))
    page = page_data([run])
    assert "The trained models were not compared yet" in said(page)[0]
    assert any("There is no evaluation" in note for note in page["notes"])
    assert page["runs"][0]["stages"][0]["status"] == "unfinished"
    assert [m["name"] for m in page["curves"]["metrics"]][:2] == ["loss", "score"]


def test_stages_that_are_gone_are_named(tmp_path):
    run = whole_run(tmp_path)
    for name in ("reward", "evaluate"):
        shutil.rmtree(run / name)
    (run / "summary.json").unlink()
    notes = page_data([run])["notes"]
    assert "The stage reward, which ppo, reward_dev read, is not there any more." in notes
    assert any("There is no evaluation" in note for note in notes)
    dump(stage(run, "evaluate", "evaluate", number=9) / "summary.json", [])
    assert "No comparison of models could be read." in page_data([run])["notes"]


def test_half_written_files_are_left_out_and_named(tmp_path):
    run = whole_run(tmp_path)
    with (run / "ppo/metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss"')
    (run / "evaluate/summary.json").write_text('{"models": {"a"')
    (run / "reward/done.json").write_text("[")
    (run / "broken").mkdir()
    (run / "broken/config.json").write_text('{"schema": 1, "run"')
    with (run / "evaluate/answers.jsonl").open("a") as file:
        file.write('{"model": "ppo", "text": "half')
    page = page_data([run])
    notes = "\n".join(page["notes"])
    for file in (
        "ppo: one line of the metrics is",
        "evaluate/summary.json is damaged",
        "reward/done.json",
        "broken/config.json",
    ):
        assert file in notes
    assert "evaluate/answers.jsonl: 1 damaged line" in notes
    loss = next(m for m in page["curves"]["metrics"] if m["name"] == "loss" and m["series"][0]["stage"] == "ppo")
    assert len(loss["series"][0]["y"]) == len(page["curves"]["steps"]["ppo"]) == 20
    assert page["samples"]


def test_an_empty_run_and_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    page = page_data([tmp_path / "empty"])
    assert page["notes"] == ["empty has no stage that was started."]
    render(page)
    with pytest.raises(ConfigError, match="no such run"):
        page_data([tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="no run to report"):
        write_report([], tmp_path / "x.html")


def test_runs_of_other_prompts_are_shown_apart_and_it_says_so(tmp_path):
    first, second = whole_run(tmp_path, name="first"), whole_run(tmp_path, name="second")
    rows = [row | {"prompt_key": f"other{row['prompt_key']}"} for row in answers(40)]
    lines(second / "evaluate/answers.jsonl", rows)
    page = page_data([first, second])
    assert {row["model"] for row in page["evaluations"][1]["rows"]} >= {"ppo"}
    assert {item["src"] for item in page["samples"]} >= {"first/evaluate", "second/evaluate"}
    assert any("no prompt in common" in note for note in page["notes"])
    lines(second / "evaluate/answers.jsonl", answers(40))
    page = page_data([first, second])
    shared = next(item for item in page["samples"] if item["p"] == "Question 3?")
    assert {r["m"] for r in shared["rs"]} == {
        f"{run}/{m}" for run in ("first", "second") for m in ("start", "ppo", "dpo")
    }


def test_a_tournament_s_alarms_and_distances_to_the_optimum_are_said(tmp_path):
    run = tournament(tmp_path)
    page = page_data([run])
    text = " ".join(said(page))
    assert "Alarm in ppo at step 12: answers are twice as long as at the start <b>." in text
    assert "Alarm in ppo at step 14: the reward rises" in text
    assert page["alarms"][0]["samples"] == [{"p": "Say <b>", "t": "long words", "s": 0.5}]
    assert "ppo is 0.7 nats (95% interval 0.5 to 0.9) from the best that its reward allows at beta 0.5" in text
    assert "the prior is 1.2 nats" in text
    assert "The distance of dpo to the optimum is not known" in text
    assert "On hhh (evaluate) dpo is better than the baseline: better one likelier 70.0% (95% interval" in text
    hhh = page["benchmarks"][0]
    assert [row["cells"]["better one likelier"]["verdict"] for row in hhh["rows"]] == ["", "better", ""]
    assert len(hhh["subsets"]) == 3
    assert [(one["stage"], one["step"], one["kind"]) for one in page["alarms"]] == [
        ("ppo", 12, "length"), ("ppo", 14, "proxy")
    ]  # fmt: skip
    measured = json.loads((run / "gap/gap.json").read_text())
    measured["models"]["prior"]["estimates"]["gap"]["value"] = 0.1
    (run / "gap/gap.json").write_text(json.dumps(measured))
    assert "; the prior is nearer: 0.1 nats" in " ".join(said(page_data([run])))
    gap = page["gaps"][0]
    assert [row["cells"].get("gap") for row in gap["rows"]][2] is None
    assert len(gap["curve"]) == 12
    (run / "gap/gap.json").write_text("{")
    (run / "ppo/alarms.jsonl").write_text('{"step": 1, "text": "half')
    page = page_data([run])
    assert page["gaps"] == []
    assert {"gap/gap.json is damaged and left out.", "ppo/alarms.jsonl: 1 damaged line left out."} <= set(page["notes"])


def test_curves_and_settings_of_many_stages_stay_under_five_megabytes(tmp_path):
    """Fewer points first, then fewer charts and settings; each is said."""
    run = tmp_path / "many"
    run.mkdir()
    names = [f"metric_{i}" for i in range(60)]
    draw = random.Random(0)
    rows = [{"step": i, "loss": draw.random(), **{name: draw.random() for name in names}} for i in range(1, 601)]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    values = {f"setting_{i}": "some value " * 30 for i in range(90)}
    for number in range(40):
        folder = stage(run, f"stage{number}", "dpo", number=number, done={"steps": 1000}, settings=values)
        (folder / "metrics.jsonl").write_text(body)
        if number > 12:
            (folder / "metrics.jsonl").write_text(body[: len(body) // 40])
    page = page_data([run])
    assert len(render(page).encode()) < 4_900_000
    assert page["curves"]["merged"]["stage0"] > 5
    assert len(page["curves"]["steps"]["stage0"]) >= 12
    assert any("settings" in note for note in page["notes"])
    assert "charts of metrics are left out" in " ".join(page["curves"]["notes"]) or len(page["curves"]["metrics"]) == 61


@pytest.mark.slow
def test_a_hundred_thousand_samples_stay_under_five_megabytes(tmp_path):
    run = whole_run(tmp_path)
    text = "word " * 60
    lines(run / "evaluate/answers.jsonl", answers(33_400, text=lambda model, i: f"{text}{model} {i}"))
    page = page_data([run])
    assert len(render(page).encode()) < 5_000_000
    evaluated = [item for item in page["samples"] if item["src"] == "evaluate"]
    assert len(evaluated) > 500
    assert all(len(item["rs"]) == 3 for item in evaluated)  # all models' responses to a prompt
    assert any("of 33,400 prompts" in note for note in page["sample_notes"])
    assert page["comparisons"][0]["matrix"][0][1]["n"] == 33_400  # figures are of all of them


def test_texts_that_grow_when_they_are_escaped_stay_under_five_megabytes(tmp_path):
    run = whole_run(tmp_path, prompts=400, text=lambda _model, _i: "<" * 5000)
    path, _ = write_report([run], tmp_path / "wide.html")
    assert path.stat().st_size < 5_000_000


# ------------------------------------------------------------------------------------------ the data island

TEXTS = st.text() | st.sampled_from(HOSTILE) | st.text(alphabet="<>/!-script&\u2028\"'\\ ")
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(-9, 9),
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(VALUES)
def test_no_text_leaves_the_island(value):
    text = island(value)
    assert not set(text) & set("<>&\u2028\u2029")
    page = Page(f'<script type="application/json" id="data">{text}</script><p>')
    assert [tag for tag, _ in page.tags] == ["script", "p"]
    # `json.dumps` writes a lone surrogate as it is, and the encoder replaces it
    assert json.loads(text) == json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode())


def test_a_page_of_hostile_texts_has_the_same_markup_as_any_other(tmp_path):
    plain = Page(render(page_data([whole_run(tmp_path, name="plain")])))
    hostile = whole_run(tmp_path, name="hostile", text=lambda _model, i: HOSTILE[i % len(HOSTILE)])
    body = json.loads((hostile / "evaluate/summary.json").read_text())
    body["models"][HOSTILE[2]] = body["models"].pop("dpo")
    dump(hostile / "evaluate/summary.json", body)
    page = Page(render(page_data([hostile])))
    assert page.tags == plain.tags
    assert [t for t in page.texts if not t.startswith("{")] == [t for t in plain.texts if not t.startswith("{")]


def test_the_policy_allows_the_page_s_own_script_and_style_alone(run):
    page = Page(render(page_data([run])))
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    style, data, script = page.texts
    assert policy == (
        f"default-src 'none'; script-src {source_hash(script)}; style-src {source_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    assert json.loads(data)["title"] == "made"
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
        assert word not in script
    assert not [
        attrs for _, attrs in page.tags if "src" in attrs or "style" in attrs or (attrs.get("href") or "#")[0] != "#"
    ]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", script + style)


# ------------------------------------------------------------------------------------------------------------- the verb


def test_the_verb(run, tmp_path, capsys):
    out = tmp_path / "a" / "report.html"
    assert main(["report", str(run), "-o", str(out), "--watts", "100", "--price", "2"]) == 0
    assert f"the report is {out}" in " ".join(capsys.readouterr().out.split())
    page = json.loads(Page(out.read_text()).texts[1])
    cost = page["runs"][0]["cost"]
    assert cost["watt_hours"] == pytest.approx(5 * 60 * 100 / 3600, rel=1e-3)
    assert cost["money"] == pytest.approx(5 * 60 / 3600 * 2, rel=1e-3)
    assert "as given" in cost["how"]
    changed = {row[0]: row for row in page["runs"][0]["stages"][2]["settings"]}
    assert changed["beta"][2] not in (None, "0.1")  # beside its default
    assert main(["report", "mad", "--runs", str(run.parent)]) == 2
    assert "did you mean 'made'" in capsys.readouterr().err
    assert main(["report", str(run), "-o", str(tmp_path)]) == 2
    assert main(["report", "made", "--runs", str(run.parent), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
