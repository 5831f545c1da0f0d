"""`evaluate` and `candidates` with rewards of every kind, and with judges that compare or grade."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.feedback.server import Server, by_length, completion, serving
from tests.models.test_labels import labelled, other_words

from models import tiny
from tiltyard import cli
from tiltyard.data.chat import Chat
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import save_model

from .tiny import rows

REWARDS = '''
def letters(prompt, response):
    """The number of characters, none for responses of an odd number."""
    return None if len(response.text) % 2 else float(len(response.text))
'''


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    for name, seed in (("one", 0), ("two", 1)):
        save_model(LanguageModel(tiny.causal("llama", seed=seed, vocab_size=300), tiny.chat()), tmp_path / name)
    labelled(tmp_path / "classifier", "llama", tiny.chat().tokenizer)
    Path("rewards.py").write_text(REWARDS)
    words = ("this", "that", "it", "so")
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"what is {w}?", "word": w}) + "\n" for w in words))
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        yield running


def evaluated(*settings: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    common = ["models={one: one, two: two}", "prompts=prompts.jsonl", "max_tokens=6", "device=cpu", "name=e"]
    assert cli.main(["eval", *common, "samples_per_prompt=3", *settings]) == 0
    folder = Path("runs/e/evaluate")
    return json.loads((folder / "summary.json").read_text())["models"], rows(folder / "answers.jsonl")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_a_rule_is_a_pass_rate_with_an_interval(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, answers = evaluated("reward={from: rule, max_characters: 9}")
    for name in ("one", "two"):
        kept = [float(len(a["text"]) <= 9) for a in answers if a["model"] == name]
        assert facts[name]["proxy"] == pytest.approx(mean(kept))
        assert facts[name]["proxy_kind"] == "rule"
        low, high = facts[name]["proxy_ci"]
        assert 0 <= low <= facts[name]["proxy"] <= high <= 1
    output = capsys.readouterr().out
    assert "pass" in output
    assert "keep every wish of the rule" in output
    assert "proxy reward" not in output
    assert facts["one"]["win_rate"] == 0.5


def test_a_sum_with_its_parts_a_function_that_abstains_and_monitors(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, answers = evaluated(
        "reward={helpful: {from: classifier, label: helpful}, size: {from: rewards.py:letters, weight: 0.5}}",
        "monitors={brief: {from: rule, max_characters: 9}, verbose: {from: classifier, label: verbose}}",
    )
    for a in answers:
        size = None if len(a["text"]) % 2 else float(len(a["text"]))
        assert a["rewards"]["size"] == size
        assert a["rewards"]["brief"] == float(len(a["text"]) <= 9)
        expected = None if size is None else a["rewards"]["helpful"] + 0.5 * size
        assert a["proxy"] == (None if expected is None else pytest.approx(expected))
        assert a["rewards"]["helpful"] != a["rewards"]["verbose"]
    for name in ("one", "two"):
        mine = [a for a in answers if a["model"] == name]
        missing = sum(a["proxy"] is None for a in mine)
        assert facts[name]["unscored"] == missing > 0
        assert facts[name]["proxy"] == pytest.approx(mean([a["proxy"] for a in mine if a["proxy"] is not None]))
        assert facts[name]["rewards"]["size"]["n"] == 12 - missing
        assert facts[name]["rewards"]["brief"]["is_rate"]
        assert set(facts[name]["rewards"]) == {"helpful", "size", "brief", "verbose"}
    assert "responses have no reward" in capsys.readouterr().out


def test_a_judge_compares_in_both_orders(there: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.reply = by_length
    facts, answers = evaluated(
        "judge={kind: api, constrain: none, model: m, url: '" + server.url + "'}", "null_prompts=0"
    )
    ours = [a for a in answers if a["model"] == "two"]
    base = [a for a in answers if a["model"] == "one"]
    for a, b in zip(ours, base, strict=True):
        longer = len(a["text"]) - len(b["text"])
        assert (a["win"] > 0.5) == (longer > 0)
        assert (a["win"] == 0.5) == (longer == 0)
    assert facts["two"]["win_by"] == "judge"
    assert facts["two"]["win_rate"] == pytest.approx(mean([a["win"] for a in ours]))
    assert facts["one"]["win_rate"] == 0.5
    judged = facts["two"]["judge"]
    assert (judged["pairs"], judged["missing"], judged["disagree"]) == (12, 0, 0)
    assert len(server.asked) == 2 * judged["both_orders"]
    assert "judge: two against one: 12 pairs; the two orders disagree in 0 of" in capsys.readouterr().out


def test_a_judge_that_prefers_an_answer_that_answers_nothing_raises_an_alarm(
    there: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A judge that likes length prefers the constant answer, which is longer than six tokens, on every prompt."""
    server.reply = by_length
    words = [f"what is number {i}?" for i in range(12)]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": w}) + "\n" for w in words))
    evaluated("judge={kind: api, constrain: none, model: m, url: '" + server.url + "'}")
    evaluation = json.loads(Path("runs/e/evaluate/summary.json").read_text())["evaluation"]
    rows = {row["name"]: row for row in evaluation["null_rows"]}
    assert list(rows) == ["constant", "longest", "prompt"]
    assert (rows["constant"]["n"], rows["constant"]["alarm"]) == (12, True)
    assert rows["constant"]["win_rate"] > 0.9
    output = capsys.readouterr().out
    assert "alarm: the judge prefers a constant answer to one's answers" in output
    assert "alarm: the judge prefers a constant answer" in evaluation["alarms"][0]
    assert evaluation["prompts"] == 12
    assert evaluation["selection"] == {"evaluations": ["e/evaluate"], "models": 2, "shared": 0}


def test_the_models_that_were_looked_at_on_the_same_prompts_are_counted(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated("reward={from: rule, max_characters: 9}")
    assert "selection:" not in capsys.readouterr().out
    evaluated("reward={from: rule, max_characters: 9}", "models={one: one, copy: two, more: one}", "name=later")
    assert (
        "selection: 2 models were looked at on these 4 prompts, in 2 evaluations of this folder"
        in capsys.readouterr().out
    )
    evaluated("reward={from: rule, max_characters: 9}", "limit=2", "name=other")
    assert "2 models were looked at on these 2 prompts, in 3 evaluations" in capsys.readouterr().out
    Path("more.jsonl").write_text("".join(json.dumps({"prompt": f"what is {w}?"}) + "\n" for w in ("this", "new")))
    evaluated("reward={from: rule, max_characters: 9}", "prompts=more.jsonl", "name=partly")
    assert "2 models were looked at on 1 of these 2 prompts" in capsys.readouterr().out


def test_prompts_of_selection_and_of_the_report_are_apart(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The halves share no prompt, whatever the file; a report on prompts of a choice is refused."""
    words = [f"what is number {i}?" for i in range(24)]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": w}) + "\n" for w in words))
    save_model(LanguageModel(tiny.causal("llama", seed=5, vocab_size=300), tiny.chat()), there / "three")
    common = ["prompts=prompts.jsonl", "reward={from: rule, max_characters: 9}", "max_tokens=6", "device=cpu"]
    three, two, other = (f"models=[{names}]" for names in ("one,two,three", "one,two", "one,three"))
    assert cli.main(["eval", *common, three, "part=choose", "name=choice"]) == 0
    assert "! selection: 3 models" in capsys.readouterr().out
    assert cli.main(["eval", *common, two, "part=report", "name=final"]) == 0
    assert "selection: no other evaluation of this folder used any of these" in capsys.readouterr().out
    facts = [json.loads(Path(f"runs/{n}/evaluate/summary.json").read_text())["evaluation"] for n in ("choice", "final")]
    keys = [json.loads(Path(f"runs/{n}/evaluate/prompt_keys.json").read_text()) for n in ("choice", "final")]
    assert [one["part"] for one in facts] == ["choose", "report"]
    assert [len(some) for some in keys] == [one["prompts"] for one in facts]
    assert len(set(keys[0]) | set(keys[1])) == 24
    assert min(map(len, keys)) > 4
    assert {answer["prompt_key"] for answer in rows(Path("runs/final/evaluate/answers.jsonl"))} == set(keys[1])
    assert cli.main(["eval", *common, two, "part=report", "name=again"]) == 0  # the same models: nothing was chosen
    capsys.readouterr()
    assert cli.main(["eval", *common, other, "part=report", "name=other"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    for part in ("these prompts are not apart", "3 models on", "again/evaluate", "part=all"):
        assert part in error
    assert cli.main(["eval", *common, other, "name=every"]) == 0
    assert "! selection: 3 models were looked at on" in capsys.readouterr().out


def test_people_correct_the_win_rate_of_a_judge(
    there: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """People labelled half of the pairs in the other order and against the judge; labels of other pairs count apart."""
    server.reply = by_length
    judge = "judge={kind: api, constrain: none, model: m, url: '" + server.url + "'}"
    _, answers = evaluated(judge)
    ours = [a for a in answers if a["model"] == "two"]
    base = [a for a in answers if a["model"] == "one"]
    pairs = [(a, b) for a, b in zip(ours, base, strict=True) if a["text"].strip() and b["text"].strip()]
    lines = [
        {"prompt": f"what is {('this', 'that', 'it', 'so')[k // 3]}?", "responses": [b["text"], a["text"]], "label": 1}
        for k, (a, b) in enumerate(zip(ours, base, strict=True))
        if (a, b) in pairs and a["text"] != b["text"]
    ][:6]
    other = {"prompt": "what is love?", "responses": ["a", "b"], "label": 2}
    Path("people.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, other]))
    facts, _ = evaluated(judge, "people=people.jsonl")
    corrected = facts["two"]["corrected"]["ppi"]
    assert corrected["people"]["value"] == 0.0  # of the model "two": its responses lost all of them
    assert corrected["people"]["n"] == len(lines)
    assert corrected["judge"]["value"] == pytest.approx(facts["two"]["win_rate"])
    assert "corrected" not in facts["one"]
    assert "two against one is preferred, the judge: raw" in capsys.readouterr().out
    Path("people.jsonl").write_text(json.dumps(other) + "\n" + json.dumps({**other, "label": 1}) + "\n")
    facts, _ = evaluated(judge, "people=people.jsonl")
    assert "corrected" not in facts["two"]
    assert "no corrected win rate" in capsys.readouterr().out
    assert cli.main(["eval", "models={one: one}", "prompts=prompts.jsonl", "people=people.jsonl", "name=f"]) == 2


def test_no_verdict_and_disagreeing_orders_are_counted(
    there: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A judge that always prefers the first response, and says nothing about one word."""

    def reply(payload: dict[str, Any], number: int) -> Any:
        text = "I cannot tell" if "what is that?" in payload["messages"][0]["content"] else "1"
        return 200, completion(text), {}

    server.reply = reply
    facts, answers = evaluated(
        "judge={kind: api, constrain: none, model: m, url: '" + server.url + "', max_missing: 1}"
    )
    silent = [a for a in answers if a["model"] == "two" and a["win"] is None]
    judged = facts["two"]["judge"]
    assert len(silent) == judged["missing"] == sum(judged["causes"].values()) > 0
    assert all("that" in a["prompt_text"] and a["no_verdict"] for a in silent)
    assert judged["disagree"] == judged["both_orders"] > 0
    assert facts["two"]["win_rate"] == 0.5
    assert "without a verdict (3 unreadable); the two orders disagree in" in capsys.readouterr().out


def test_a_judge_that_grades_has_a_column(there: Path, server: Server) -> None:
    server.reply = lambda payload, n: (200, completion("10"), {})
    more = "judge={kind: api, constrain: none, model: m, ask: score, logprobs: false, url: '" + server.url + "'}"
    facts, _ = evaluated(more, "reward=rewards.py:letters")
    assert facts["one"]["rewards"]["judge"]["value"] == 1.0
    assert facts["one"]["win_by"] == "proxy"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["reward={from: classifier}"], "classifier of 3 labels"),
        (["reward=rewards.py:lettres"], "did you mean 'letters'"),
        (["reward={from: rule, number: total}"], "no field 'total'"),
        (["judge={kind: model, model: policy}"], "no policy is trained here"),
        (["reward=rewards.py:letters", "monitors=[rewards.py:letters, rewards.py:letters]"], "two rewards are called"),
    ],
)
def test_what_is_wrong_is_named(there: Path, settings: list[str], said: str, capsys: Any) -> None:
    common = ["models={one: one}", "prompts=prompts.jsonl", "max_tokens=6", "device=cpu", "name=e"]
    assert cli.main(["eval", *common, *settings]) == 2
    assert said in capsys.readouterr().err


def test_candidates_take_any_reward_and_leave_out_what_has_none(there: Path) -> None:
    """Some prompts may lose all their responses: every prompt is still sampled once, and the counts say so."""
    common = ["candidates", "model=one", "prompts=prompts.jsonl", "samples_per_prompt=3", "max_tokens=6", "device=cpu"]
    for name, reward, unscored in (
        ("rule", "{from: rule, max_characters: 9}", False),
        ("label", "{from: classifier, label: 2}", False),
        ("function", "rewards.py:letters", True),
    ):
        assert cli.main(["train", *common, f"reward={reward}", f"name={name}", "pairs=all"]) == 0
        (done,) = Path("runs", name).rglob("candidates/done.json")
        result = json.loads(done.read_text())["result"]
        groups = rows(done.parent / "candidates.groups.jsonl")
        kept = [r for g in groups for r in g["responses"]]
        assert result["candidates"] == len(kept) == 12 - result["unscored"]
        assert bool(result["unscored"]) == unscored
        assert all(len(g["scores"]) == len(g["responses"]) for g in groups)


def test_models_of_another_tokenizer_are_compared_and_have_no_kl(there: Path, server: Server, capsys: Any) -> None:
    """The baseline's vocabulary is smaller: its log-probs of the other's tokens would be an index out of range."""
    save_model(LanguageModel(tiny.causal("llama", vocab_size=512), Chat(other_words(), max_length=64)), there / "far")
    server.reply = by_length
    judge = "judge={kind: api, constrain: none, model: m, url: '" + server.url + "'}"
    common = ["models={one: one, far: far}", "prompts=prompts.jsonl", "max_tokens=6", "device=cpu", "name=f"]
    assert cli.main(["eval", *common, judge]) == 0
    facts = json.loads(Path("runs/f/evaluate/summary.json").read_text())["models"]
    assert facts["one"]["kl"] is not None
    assert facts["far"]["kl"] is None
    assert facts["far"]["entropy"] > 0
    assert facts["far"]["win_rate"] is not None
    assert "another tokenizer" in capsys.readouterr().out
