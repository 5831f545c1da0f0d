"""The stage `ai_label`: what it keeps, what it measures, that a kill changes nothing and asks nothing twice."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.chance import share, shifted
from tests.stages.planted import Place, after, half_row, killed

from tiltyard.data import load_groups, read_groups, write_groups
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback import Debiased, JudgeError, SimulatedJudge
from tiltyard.feedback.verdicts import sigmoid
from tiltyard.models.load import save_model
from tiltyard.pipeline import run_recipe
from tiltyard.pipeline.recipe import check, parse_recipe
from tiltyard.runs.journal import JsonlFile
from tiltyard.stages import ai_label
from tiltyard.types import Group, Response, ranks_of, shares_of
from tiltyard.world import gold

from .server import Server, by_length, completion
from .test_local import made
from .worlds import words, world_pairs


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ai_label, "BLOCK", 4)


def run(folder: Path, data: Path, judge: dict[str, Any], **more: Any) -> tuple[Path, dict[str, Any], str]:
    settings = {"data": str(data), "judge": judge, "device": "cpu", **more}
    recipe = folder / "r.yaml"
    recipe.write_text(f"name: r\nstages:\n  - ai_label: {json.dumps(settings)}\n")
    out = io.StringIO()
    outcome = run_recipe(recipe, runs_root=folder, console=Console(file=out, width=200))
    return folder / "r" / "ai_label", outcome["stages"]["ai_label"]["result"], out.getvalue()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, groups: list[Group], *, labelled: bool = False) -> Path:
    """Rows of two answers; with labels the longer one is best."""
    with path.open("w") as file:
        for g in groups:
            texts = [r.text for r in g.responses]
            row: dict[str, Any] = {"id": g.prompt.id, "prompt": [m._asdict() for m in g.prompt.messages or ()]}
            row |= {"responses": texts, "meta": dict(g.prompt.meta)}
            if labelled:
                order = sorted(texts, key=len)[::-1]
                row["ranks"] = [order.index(t) + 1 for t in texts]
            file.write(json.dumps(row) + "\n")
    return path


def apart(groups: list[Group]) -> list[Group]:
    return [g for g in groups if len(g.responses[0].text) != len(g.responses[1].text)]


def test_unlabelled_rows_become_soft_labels(tmp_path) -> None:
    pairs = [g for g in world_pairs(11) if "turns" not in {**g.responses[0].meta, **g.responses[1].meta}]
    data = write(tmp_path / "pairs.jsonl", pairs)
    folder, result, text = run(tmp_path, data, {"kind": "simulated", "temperature": 0.5, "position_bias": 0.7})
    labels = list(read_groups(folder / "labels.groups.jsonl"))
    expected = Debiased(SimulatedJudge(temperature=0.5, position_bias=0.7))(pairs)
    assert [shares_of(g.preference) for g in labels] == [pytest.approx((v.p, 1 - v.p), abs=1e-12) for v in expected]
    for group in labels:
        p, q = shares_of(group.preference)
        assert ranks_of(group.preference) == ((1, 1) if p == q else (1, 2) if p > q else (2, 1))
    assert result["labels"] == result["pairs"] == len(pairs)
    assert result["confidence"] == pytest.approx(sum(max(v.p, 1 - v.p) for v in expected) / len(pairs), abs=1e-12)
    assert result["same_position"] == pytest.approx(sum(bool(v.same_position) for v in expected) / len(pairs))
    assert "agreement" not in result  # nobody had said anything
    assert result["judge_calls"] == 2 * sum(v.same_position is not None for v in expected)
    made_rows = rows(folder / "rows.jsonl")
    for row, group in zip(made_rows, labels, strict=True):
        golds = [gold(group.prompt.meta, row[key]).total for key in ("chosen", "rejected")]
        assert golds[0] >= golds[1]
        assert row["p_chosen"] == max(shares_of(group.preference))
    judged = rows(folder / "judgements.jsonl")
    assert [j["shares"][0] for j in judged] == [shares_of(g.preference)[0] for g in labels]
    assert {j["annotator"].partition("#")[0] for j in judged} == {"judge:simulated"}
    assert "labels, mean confidence" in text


def test_labels_are_ready_for_training(tmp_path) -> None:
    """Both files give the same pairs with the same soft labels, encoded; reward and dpo run on them."""
    model = made()
    save_model(model, tmp_path / "model")
    data = write(tmp_path / "pairs.jsonl", words(3, 9))
    settings = f"""name: t
defaults: {{device: cpu, steps: 2, prompts_per_step: 4, max_length: 200}}
stages:
  - ai_label: {{data: {data}, judge: {{kind: model, model: {tmp_path}/model, debias: logits}}}}
  - reward: {{model: {tmp_path}/model, data: ai_label/labels.groups.jsonl}}
  - dpo: {{model: {tmp_path}/model, data: ai_label/rows.jsonl}}
"""
    (tmp_path / "t.yaml").write_text(settings)
    outcome = run_recipe(tmp_path / "t.yaml", runs_root=tmp_path, console=Console(file=io.StringIO()))
    assert set(outcome["stages"]) == {"ai_label", "reward", "dpo"}
    folder = tmp_path / "t" / "ai_label"
    read, _ = load_groups(folder / "rows.jsonl", "comparisons", model.chat, max_length=200)
    for row, group in zip(read, read_groups(folder / "labels.groups.jsonl"), strict=True):
        assert max(shares_of(row.preference) or ()) == pytest.approx(max(shares_of(group.preference) or ()), abs=1e-12)
        assert {r.text for r in row.responses} == {r.text for r in group.responses}
    metrics = rows(tmp_path / "t" / "dpo" / "metrics.jsonl")
    assert metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_agreement_with_the_labels_given(tmp_path) -> None:
    groups = apart(world_pairs(30))
    data = write(tmp_path / "pairs.jsonl", groups, labelled=True)
    right = 0.0
    judge = Debiased(SimulatedJudge(temperature=1.0))
    for group, verdict in zip(groups, judge(groups), strict=True):
        longer = len(group.responses[0].text) > len(group.responses[1].text)
        right += 0.5 if verdict.p == 0.5 else float((verdict.p > 0.5) == longer)
    _, result, _ = run(tmp_path, data, {"kind": "simulated"})
    assert result["agreement"] == pytest.approx(right / len(groups), abs=1e-12)
    assert result["agreement_pairs"] == len(groups)


@pytest.mark.statistical
def test_a_judge_of_places_learns_nothing_from_the_order_of_the_file(tmp_path) -> None:
    """The better answer always stands first, and one order is asked: agreement stays near one half."""
    lines = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    meta = dict(world_pairs(1)[0].prompt.meta)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(line | {"meta": meta}) + "\n" for line in lines))
    judge = {"kind": "simulated", "instruction": {"gold": 0.0}, "position_bias": 9.0, "debias": "none"}
    _, result, _ = run(tmp_path, data, judge, seed=shifted(0))
    share(round(200 * result["agreement"]), 200, 0.5)
    assert result["confidence"] == pytest.approx(sigmoid(9.0), abs=1e-12)
    assert "same_position" not in result


def test_groups_keep_their_ids_and_larger_ones_are_cut(tmp_path) -> None:
    base = world_pairs(6)
    groups = [
        Group(
            g.prompt,
            tuple(Response((7, i), text, finish="stop") for i, text in enumerate(("a", "bb", "ccc", "d"))),
            origin=f"c:{n}",
        )
        for n, g in enumerate(base)
    ]
    data = tmp_path / "candidates.groups.jsonl"
    write_groups(data, groups)
    judge = {"kind": "simulated", "instruction": {"length": 1.0}}
    with pytest.raises(DataError, match=r"(?s)c:0.*4 responses.*pairs=random"):
        run(tmp_path, data, judge)
    for how, count in (("all", 36), ("random", 6)):
        (tmp_path / how).mkdir()
        folder, result, _ = run(tmp_path / how, data, judge, pairs=how, seed=1)
        labels = list(read_groups(folder / "labels.groups.jsonl"))
        assert len(labels) == result["labels"] == count
        for label in labels:
            source = next(g for g in groups if g.origin == label.origin.split()[0])
            places = [int(i) for i in label.origin.split()[1].split(",")]
            assert label.responses == tuple(source.responses[i] for i in places)
    assert len({g.origin.split()[1] for g in labels}) > 1


def test_missing_verdicts_are_counted_and_kept(server: Server, tmp_path) -> None:
    pairs = words(4, 10)

    def reply(payload, number):
        if "q3" in payload["messages"][0]["content"]:
            status, value, headers = by_length(payload, number)
            value["choices"][0] = {"message": {"content": "Both are <script>fine</script>."}}
            return status, value, headers
        return by_length(payload, number)

    server.reply = reply
    judge = {"kind": "api", "constrain": "none", "model": "j", "url": server.url, "price_in": 1.0}
    folder, result, _ = run(tmp_path, write(tmp_path / "p.jsonl", pairs), judge)
    assert (result["pairs"], result["labels"], result["missing"]) == (10, 9, 1)
    assert (result["judge_calls"], result["tokens_in"]) == (20, 2000)
    assert result["judge_cost"] == pytest.approx(2000 / 1e6)
    judged = rows(folder / "judgements.jsonl")
    assert "shares" not in judged[3]
    assert "<script>" in judged[3]["meta"]["reason"]  # shown as it is, never interpreted


def test_missing_verdicts_are_counted_by_cause(server: Server, tmp_path) -> None:
    """Two of ten pairs have none, of two kinds: the report and the result say so; judgements have the reasons."""

    def reply(payload, number):
        status, value, headers = by_length(payload, number)
        if "q3" in payload["messages"][0]["content"]:
            return 400, {"error": {"code": "content_filter", "message": "filtered"}}, {}
        if "q5" in payload["messages"][0]["content"]:
            value["choices"][0] = {"message": {"content": "<think>Response 1"}, "finish_reason": "length"}
        return status, value, headers

    server.reply = reply
    judge = {"kind": "api", "constrain": "none", "model": "j", "url": server.url}
    folder, result, text = run(tmp_path, write(tmp_path / "p.jsonl", words(4, 10)), judge)
    assert (result["labels"], result["missing"], result["missing_causes"]) == (8, 2, {"cut": 1, "filtered": 1})
    assert "2 pairs without a verdict: 1 cut, 1 filtered" in text
    judged = rows(folder / "judgements.jsonl")
    assert [i for i, j in enumerate(judged) if "shares" not in j] == [3, 5]
    assert "content_filter" in judged[3]["meta"]["reason"]


def test_a_judge_without_verdicts_ends_with_that_sentence(server: Server, tmp_path) -> None:
    server.reply = lambda payload, number: (200, completion("Response 1 is the worse of the two."), {})
    judge = {"kind": "api", "constrain": "none", "model": "j", "url": server.url}
    data = write(tmp_path / "p.jsonl", words(4, 3))
    with pytest.raises(JudgeError, match=r"(?s)judge\.max_missing.*no verdict on more than 50%.*3 of 3 .*3 unreadable"):
        run(tmp_path, data, judge)
    folder, result, _ = run(tmp_path, data, judge | {"max_missing": 1.0})
    assert (result["labels"], result["missing"]) == (0, 3)
    assert (folder / "labels.groups.jsonl").read_bytes() == b""


def test_verdicts_of_two_kinds_and_unknown_costs_are_said(server: Server, tmp_path) -> None:
    def reply(payload, number):
        status, value, headers = by_length(payload, number)
        if number % 2:
            del value["choices"][0]["logprobs"], value["usage"]
        return status, value, headers

    server.reply = reply
    judge = {"kind": "api", "constrain": "none", "model": "j", "url": server.url, "concurrency": 1}
    _, result, text = run(tmp_path, write(tmp_path / "p.jsonl", words(4, 4)), judge)
    assert (result["soft"], result["hard"], result["unmetered"]) == (4, 4, 4)
    assert "4 verdicts are from log-probabilities and 4 from words" in text
    assert "4 replies came without token counts (usage)" in text
    assert "no prices are set" in text


EXECUTION = {"timeout": 9.0, "retries": 1, "backoff": 0.0, "concurrency": 1, "price_in": 2.0, "price_out": 1.0}
EXECUTION |= {"max_cost": 30.0, "max_missing": 0.9, "key_env": "SOME_KEY", "headers": {"x": "SOME_KEY"}}


@pytest.mark.parametrize("key", EXECUTION)
def test_another_way_of_execution_goes_on_and_pays_nothing_again(server: Server, tmp_path, monkeypatch, key) -> None:
    """The cap ends the first attempt in the second block; the next one has another cap and another `key`."""
    monkeypatch.setenv("SOME_KEY", "abc")
    server.reply = lambda p, n: (*by_length(p, n)[:1], by_length(p, n)[1] | {"usage": dear}, {})
    dear = {"prompt_tokens": 1_000_000, "completion_tokens": 1}
    judge = {
        "kind": "api",
        "constrain": "none",
        "model": "j",
        "url": server.url,
        "price_in": 1.0,
        "max_cost": 10.0,
        "concurrency": 2,
    }
    data = write(tmp_path / "p.jsonl", words(4, 6))
    with pytest.raises(JudgeError, match="cost limit"):
        run(tmp_path, data, judge)
    paid = len(server.asked)
    assert 10 <= paid < 12
    _, result, text = run(tmp_path, data, judge | {"max_cost": 40.0} | {key: EXECUTION[key]})
    assert len(server.asked) == 12
    assert (result["labels"], "4 of 6 pairs are done" in text) == (6, True)


def test_what_was_paid_for_is_found_by_a_stage_that_runs_again(server: Server, tmp_path) -> None:
    """Another seed, a smaller limit, other data: the stage starts anew, and equal questions are answered already."""
    server.reply = by_length
    judge = {"kind": "api", "constrain": "none", "model": "j", "url": server.url}
    run(tmp_path, write(tmp_path / "p.jsonl", words(4, 6)), judge)
    assert len(server.asked) == 12
    _, result, _ = run(tmp_path, tmp_path / "p.jsonl", judge, limit=4)
    assert (len(server.asked), result["judge_calls"], result["cached"]) == (12, 0, 8)
    _, result, _ = run(tmp_path, tmp_path / "p.jsonl", judge | {"debias": "none"}, seed=3)
    assert (len(server.asked), result["cached"]) == (12, 6)
    write(tmp_path / "p.jsonl", words(4, 8))
    run(tmp_path, tmp_path / "p.jsonl", judge)
    assert len(server.asked) == 16
    assert list((tmp_path / "r" / ".answers").iterdir()) == [tmp_path / "r" / ".answers" / "ai_label.jsonl"]


@pytest.mark.parametrize("write_no", range(6))
@pytest.mark.parametrize("torn", [False, True])
def test_kill_9_at_any_write(server: Server, tmp_path, write_no, torn) -> None:
    """Six writes (three blocks, two files): the process dies in the middle of one or right after it."""
    server.reply = by_length
    data = write(tmp_path / "p.jsonl", words(5, 11), labelled=True)
    judge = {"kind": "api", "constrain": "none", "model": "j", "url": server.url, "price_in": 1.0, "retries": 0}
    (tmp_path / "whole").mkdir()
    whole, result, _ = run(tmp_path / "whole", data, judge)
    asked = len(server.asked)
    server.asked.clear()
    place = Place(JsonlFile, "write", write_no + 1, half_row if torn else after)
    killed(lambda: run(tmp_path, data, judge), place.plant)
    folder, again, text = run(tmp_path, data, judge)
    assert len(server.asked) == asked  # over both attempts
    assert (f"{4 * (write_no // 2)} of 11 pairs are done" in text) is (write_no > 1)
    for name in ("labels.groups.jsonl", "rows.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    timeless = [
        [{k: v for k, v in r.items() if k != "when"} for r in rows(f / "judgements.jsonl")] for f in (folder, whole)
    ]
    assert timeless[0] == timeless[1]
    assert {k: v for k, v in again.items() if k != "cached"} == {k: v for k, v in result.items() if k != "cached"}


def test_judges_that_grade_and_panels(tmp_path) -> None:
    """Ratings become preferences and scores; a panel's label is the mean, and each judge has its own line."""
    data = write(tmp_path / "p.jsonl", apart(world_pairs(9)))
    folder, result, _ = run(tmp_path, data, {"kind": "simulated", "ask": "score"})
    labels = list(read_groups(folder / "labels.groups.jsonl"))
    assert result["labels"] == len(labels) == result["pairs"]
    assert all(g.preference.ratings == g.scores for g in labels)
    assert all(set(row) >= {"responses", "ranks", "scores"} for row in rows(folder / "rows.jsonl"))
    (tmp_path / "panel").mkdir()
    one, two = {"kind": "simulated"}, {"kind": "simulated", "instruction": {"length": -1.0}}
    folder, result, _ = run(tmp_path / "panel", data, one, panel=[two])
    judged = rows(folder / "judgements.jsonl")
    labels = list(read_groups(folder / "labels.groups.jsonl"))
    assert len(judged) == 2 * len(labels)
    assert len({j["annotator"] for j in judged}) == len(result["judges"]) == 2
    for group, first, second in zip(labels, judged[::2], judged[1::2], strict=True):
        assert shares_of(group.preference)[0] == pytest.approx((first["shares"][0] + second["shares"][0]) / 2)
        assert group.preference.annotator.startswith("panel:2#")
    with pytest.raises(ConfigError, match="asked the same"):
        run(tmp_path, data, one, panel=[{"kind": "simulated", "ask": "score"}])


def test_orders_that_disagree_may_have_no_label(tmp_path) -> None:
    data = write(tmp_path / "p.jsonl", apart(world_pairs(12)))
    judge = {"kind": "simulated", "position_bias": 1.0}
    folder, result, _ = run(tmp_path, data, judge, disagreement="drop")
    apart_count = round(result["same_position"] * result["pairs"])
    assert result["missing_causes"] == {"orders": apart_count}
    assert apart_count > 0
    reasons = [j["meta"].get("reason") for j in rows(folder / "judgements.jsonl")]
    assert reasons.count("the two orders prefer different responses") == apart_count


def test_the_key_is_in_no_file_of_the_run(server: Server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-777")
    server.reply = by_length
    judge = {"kind": "api", "constrain": "none", "model": "j", "url": server.url, "key_env": "JUDGE_KEY"}
    run(tmp_path, write(tmp_path / "p.jsonl", words(6, 3)), judge)
    assert server.asked[0][0]["Authorization"] == "Bearer sk-secret-777"
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 5
    assert not any(b"sk-secret-777" in p.read_bytes() for p in files)


def test_a_judge_names_an_earlier_stage(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = """name: r
stages:
  - pretrain: {data: x.jsonl}
  - ai_label: {data: y.jsonl, judge: {kind: MODEL}}
"""
    Path("x.jsonl").touch()
    Path("y.jsonl").touch()
    own = check(parse_recipe(text.replace("MODEL", "model, model: pretrain"), "r.yaml"))[-1]
    served = check(parse_recipe(text.replace("MODEL", "api, url: 'http://h/v1', model: pretrain"), "r.yaml"))[-1]
    assert (own.uses, served.uses) == (("pretrain",), ())  # a name on a server is no stage


def test_wrong_settings(tmp_path) -> None:
    data = write(tmp_path / "p.jsonl", words(7, 2))
    with pytest.raises(ConfigError, match="pairs has no effect"):
        run(tmp_path, data, {"kind": "simulated", "ask": "score"}, pairs="all")
    with pytest.raises(ConfigError, match="does not rank lists"):
        run(tmp_path, data, {"kind": "simulated", "ask": "rank"})
    with pytest.raises(ConfigError, match="no such stage or path: 'rewrad'"):
        run(tmp_path, data, {"kind": "model", "model": "rewrad"})
    with pytest.raises(ConfigError, match="temprature"):
        run(tmp_path, data, {"kind": "simulated", "temprature": 1.0})
