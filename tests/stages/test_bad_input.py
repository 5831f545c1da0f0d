"""Wrong input through the command line: what, where and what to do, exit code 2, and never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tiltyard.cli import main
from tiltyard.config import describe
from tiltyard.stages.base import load_all

from . import tiny
from .conftest import Whole


@pytest.fixture
def say(whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `tiltyard WORDS` in a folder of its own; (exit code, its words). `{m}`, `{w}`: the model and world."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        given = [
            w.replace("{m}", str(whole.run / "sft" / "model")).replace("{w}", str(whole.run / "world")) for w in words
        ]
        code = main(given)
        printed = capsys.readouterr()
        text = printed.err + printed.out
        assert "Traceback" not in text.replace("(traceback:", "")
        return code, text

    return run


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


DEMONSTRATION = {"prompt": "Who is it?", "completion": "A baker."}
USUAL = ("steps=1", "prompts_per_step=2", "max_length=64", "device=cpu")


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (None, "sft", "no such stage or path"),
        ([], "rows.jsonl", "row|empty"),
        ([DEMONSTRATION, "{not json"], "rows.jsonl:2", "JSON"),
        ([DEMONSTRATION, {"prompt": "Who?"}], "rows.jsonl:2", "field|format|completion"),
        ([DEMONSTRATION, {"prompt": 5, "completion": "x"}], "rows.jsonl:2", "prompt"),
        ([DEMONSTRATION, {"prompt": "Who?", "completion": ""}], "rows.jsonl:2", "empty"),
    ],
    ids=["missing file", "empty file", "malformed line", "missing field", "wrong type", "empty answer"],
)
def test_data(say: Any, tmp_path: Path, content: Any, where: str, what: str) -> None:
    if content is not None:
        lines(tmp_path / "rows.jsonl", *content)
    code, text = say("train", "sft", "model={m}", "data=rows.jsonl", *USUAL)
    assert code == 2
    assert where in text
    assert any(word in text for word in what.split("|")), text


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "Who?", "responses": ["one"], "ranks": [1]}, "response"),
        ({"prompt": "Who?", "responses": ["one", "two"], "ranks": [1]}, "ranks"),
        ({"prompt": "Who?", "chosen": "one"}, "rejected"),
    ],
    ids=["one response", "too few ranks", "no rejected"],
)
def test_rankings(say: Any, tmp_path: Path, row: Any, what: str) -> None:
    good = {"prompt": "Who?", "chosen": "a baker", "rejected": "no"}
    lines(tmp_path / "rows.jsonl", good, row)
    code, text = say("train", "reward", "model={m}", "data=rows.jsonl", *USUAL)
    assert code == 2
    assert "rows.jsonl:2" in text
    assert what in text


def test_rankings_of_ties_alone_train_nothing_and_say_so(say: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "Who?", "responses": ["one", "two"], "ranks": [1, 1]}] * 4
    lines(tmp_path / "rows.jsonl", *rows)
    code, text = say("train", "reward", "model={m}", "data=rows.jsonl", *USUAL)
    assert code == 2
    assert "tie" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "stf"), "did you mean 'sft'?"),
        (("train", "sft", "model={m}", "data={w}/demonstrations.jsonl", "stesp=1"), "did you mean 'steps'?"),
        (("train", "sft", "model={m}", "data={w}/demonstrations.jsonl", "steps=many"), "steps"),
        (("train", "sft", "model={m}", "data={w}/demonstrations.jsonl", "lr=-1"), "lr"),
        (("train", "sft", "data={w}/demonstrations.jsonl"), "model"),
        (("train", "pretrain", "data={w}/corpus_held_out.jsonl", "arch.preset=12k", *USUAL), "did you mean '12m'?"),
        (("train", "pretrain", "data={w}/corpus_held_out.jsonl", "arch.context=32", *USUAL), "arch.context"),
        (("train", "sft", "model=./nowhere", "data={w}/demonstrations.jsonl"), "no such stage or path"),
        (("train", "sft", "model={m}", "data={w}/demonstrtions.jsonl"), "did you mean 'demonstrations.jsonl'?"),
        (("train", "sft", "model={w}", "data={w}/demonstrations.jsonl", *USUAL), "the model could not be loaded"),
        (("train", "sft", "model={m}", "data={w}/demonstrations.jsonl", "freeze_layers=9", *USUAL), "freeze"),
        (("train", "label", "model={m}", "prompts={w}/prompts.jsonl", "annotators=[nobody]", "limit=1"), "annotator"),
        (("eval", "models=[{m}]", "prompts={w}/held_out.jsonl", "baseline=sfft", "limit=1"), "baseline"),
        (("run", "dmeo"), "did you mean 'demo'?"),
        (("run", "tiny.yaml", "ppo.minibatchs=1"), "did you mean 'minibatches'?"),
        (("run", "tiny.yaml", "pop.kl=1"), "did you mean 'ppo'?"),
        (("run", "tiny.yaml", "sft.model=ppo"), "a later stage"),
        (("run", "tiny.yaml", "sft.model=sft"), "names itself"),
        (("run", "tiny.yaml", "ppo.minibatches=7"), "minibatches"),
    ],
)
def test_settings(say: Any, whole: Whole, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    tiny.write(tmp_path)
    shutil.copytree(whole.root, tmp_path / "runs")
    code, text = say(*words)
    assert code == 2, text
    assert said in text
    assert "error:" in text


def test_cuda_where_there_is_none(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, text = say("train", "sft", "model={m}", "data={w}/demonstrations.jsonl", *USUAL[:3], "device=cuda")
    assert code == 2
    assert "CUDA" in text
    assert "device=cpu" in text


def test_labelling_prompts_of_another_world(say: Any, tmp_path: Path) -> None:
    """Simulated annotators know the embedded world alone."""
    lines(tmp_path / "rows.jsonl", {"prompt": "Who is it?"})
    code, text = say("train", "label", "model={m}", "prompts=rows.jsonl", "device=cpu")
    assert code == 2
    assert "embedded world" in text


# ---------------------------------------------------------------------------------------------------- offline methods


PAIR = {"prompt": "Who is it?", "chosen": "A baker.", "rejected": "No."}
RANKING = {"prompt": "Who is it?", "responses": ["A baker.", "No.", "Who?"], "ranks": [1, 3, 2]}
LABELLED = {"prompt": "Who is it?", "completion": "A baker.", "label": True}
BOTH = {"prompt": "Who is it?", "responses": ["A baker.", "No."]}


@pytest.mark.parametrize(
    ("method", "setting", "got", "expected"),
    [
        ("dpo", "beta=0", "0 (int)", "float > 0"),
        ("dpo", "beta=-1", "-1 (int)", "float > 0"),
        ("dpo", "noise=0.5", "0.5 (float)", "float >= 0, < 0.5"),
        ("dpo", "noise=-0.1", "-0.1 (float)", "float >= 0, < 0.5"),
        ("dpo", "noise_kind=robst", "'robst' (str)", "'conservative' | 'robust'"),
        ("dpo", "pairs=best", "'best' (str)", "'given' | 'all' | 'best_worst'"),
        ("ipo", "beta=0", "0 (int)", "float > 0"),
        ("ipo", "beta=-0.1", "-0.1 (float)", "float > 0"),
        ("slic", "delta=0", "0 (int)", "float > 0"),
        ("kto", "beta=0", "0 (int)", "float > 0"),
        ("kto", "desirable=-1", "-1 (int)", "float >= 0"),
        ("kto", "good_from=bets", "'bets' (str)", "float | 'best' | null"),
        ("click", "margin=-1", "-1 (int)", "float >= 0"),
        ("cpo", "beta=0", "0 (int)", "float > 0"),
        ("simpo", "gamma_ratio=-1", "-1 (int)", "float >= 0"),
        ("spin", "beta=0", "0 (int)", "float > 0"),
        ("spin", "iterations=0", "0 (int)", "int > 0"),
    ],
)
def test_values_out_of_range(say: Any, method: str, setting: str, got: str, expected: str) -> None:
    code, text = say("train", method, "model={m}", "data={w}/demonstrations.jsonl", setting)
    assert code == 2
    assert f"{method}.{setting.partition('=')[0]}" in text
    assert f"got:      {got}" in text
    assert f"expected: {expected}" in text


@pytest.mark.parametrize(
    ("method", "setting", "said"),
    [
        ("dpo", "betta=0.1", "did you mean 'beta'?"),
        ("ipo", "lenght_norm=false", "did you mean 'length_norm'?"),
        ("kto", "desireable=2", "did you mean 'desirable'?"),
        ("spin", "bta=1", "did you mean 'beta'?"),
        ("simpo", "ref_cache=false", "unknown setting 'ref_cache'"),  # it has no reference
        ("kto", "pairs=all", "unknown setting 'pairs'"),
    ],
)
def test_unknown_settings_of_offline_methods(say: Any, method: str, setting: str, said: str) -> None:
    code, text = say("train", method, "model={m}", "data={w}/demonstrations.jsonl", setting)
    assert code == 2
    assert said in text


@pytest.mark.parametrize(
    ("method", "rows", "settings", "said"),
    [
        ("dpo", [PAIR, RANKING], (), ["rows.jsonl:2", "dpo compares two responses and this row has 3", "pairs=all"]),
        ("simpo", [PAIR, RANKING], (), ["rows.jsonl:2", "pairs=best_worst", "rrhf"]),
        ("dpo", [LABELLED], (), ["rows.jsonl:1", "'chosen' is missing", "kto and click"]),
        ("dpo", [BOTH | {"labels": [True, False]}], (), ["rows.jsonl:1", "'scores' is missing", "kto and click"]),
        ("rrhf", [LABELLED], (), ["rows.jsonl:1", "'chosen' is missing", "kto and click"]),
        ("dpo", [DEMONSTRATION], (), ["rows.jsonl:1", "'chosen' is missing", "sft and spin"]),
        ("dpo", [PAIR, PAIR | {"p_chosen": 1.5}], (), ["rows.jsonl:2", "not a probability", "1.5", "from 0 to 1"]),
        ("dpo", [PAIR, PAIR | {"p_chosen": "0.9"}], (), ["rows.jsonl:2", "not a probability", "0.9"]),
        ("dpo", [BOTH | {"shares": [0.5, 0.2]}], (), ["rows.jsonl:1", "add up to 0.7", "votes"]),
        ("dpo", [BOTH | {"shares": [3, -1]}], (), ["rows.jsonl:1", "numbers >= 0"]),
        ("dpo", [BOTH | {"shares": [0, 0]}], (), ["rows.jsonl:1", "add up to 0"]),
        ("dpo", [BOTH | {"ranks": [1, 1]}], (), ["rows.jsonl", "every comparison is a tie"]),
        ("slic", [PAIR], (), ["slic.demonstrations", "no targets", "demonstrations=FILE", "target=chosen", "lam=0"]),
        (
            "slic",
            [PAIR],
            ("target=chosen", "demonstrations={w}/demonstrations_held_out.jsonl"),
            ["slic.demonstrations", "would not be used", "leave demonstrations out"],
        ),
        ("kto", [RANKING], (), ["rows.jsonl:1", "not which is good", "good_from=best"]),
        ("kto", [BOTH | {"scores": [0.9, 0.1]}], (), ["rows.jsonl:1", "not which is good", "a number for scores"]),
        ("kto", [BOTH | {"labels": [True, 0.5]}], (), ["rows.jsonl:1", "not a label", "0.5"]),
        ("kto", [LABELLED | {"label": "yes"}], (), ["rows.jsonl:1", "not a label", "yes", "true (good)"]),
        ("kto", [DEMONSTRATION], (), ["rows.jsonl:1", "'label' is missing"]),
        ("kto", [PAIR, PAIR | {"p_chosen": 0.2}], (), ["rows.jsonl:2", "soft label", "dpo"]),
        ("kto", [PAIR], ("good_from=2",), ["rows.jsonl:1", "no scores", "ranks for good_from=best"]),
        ("kto", [LABELLED], ("good_from=best",), ["rows.jsonl:1", "without good_from"]),
        (
            "kto",
            [LABELLED] * 3,
            ("prompts_per_step=1",),
            ["kto.prompts_per_step", "at least 2", "raise prompts_per_step"],
        ),
        ("click", [BOTH | {"labels": [True, True]}], (), ["no prompt has both a good and a bad response", "kto"]),
        ("click", [LABELLED], (), ["no prompt has both a good and a bad response", "several responses to a prompt"]),
        ("spin", [{"prompt": "Who?"}], (), ["rows.jsonl:1", "'completion' is missing"]),
        ("spin", [DEMONSTRATION], ("beta=[]",), ["spin.beta", "empty", "give one number or several"]),
    ],
)
def test_offline_methods(
    say: Any, tmp_path: Path, method: str, rows: list[Any], settings: tuple[str, ...], said: list[str]
) -> None:
    lines(tmp_path / "rows.jsonl", *rows)
    given = [w for w in USUAL if w.split("=")[0] not in {s.split("=")[0] for s in settings}]
    code, text = say("train", method, "model={m}", "data=rows.jsonl", *given, *settings)
    assert code == 2, text
    words = " ".join(text.split())
    for part in said:
        assert part in words
    assert not (tmp_path / "runs" / method / method / "metrics.jsonl").exists() or "prompts_per_step" in said[0]


@pytest.mark.parametrize("method", ["kto", "click"])
def test_sampled_rankings_are_no_labels(say: Any, whole: Whole, method: str) -> None:
    """A file of sampled groups with ranks (or a model's scores): nobody said what is good."""
    data = f"data={whole.run / 'label' / 'rankings.groups.jsonl'}"
    code, text = say("train", method, "model={m}", data, *USUAL)
    assert code == 2
    assert "annotator:" in text
    assert "these responses are not labelled" in text
    assert "good_from=best" in text
    assert say("train", method, "model={m}", data, *USUAL, "good_from=best", "name=mended")[0] == 0


def test_sampled_rankings_are_no_pairs(say: Any, whole: Whole) -> None:
    data = f"data={whole.run / 'label' / 'rankings.groups.jsonl'}"
    code, text = say("train", "dpo", "model={m}", data, *USUAL)
    assert code == 2
    assert "this row has 3" in text
    assert "to prompt" in text
    assert "pairs=all" in text


def test_a_warm_up_longer_than_the_run_is_said(say: Any, tmp_path: Path) -> None:
    """DPO's published warm-up of 150 steps is longer than many small runs."""
    lines(tmp_path / "rows.jsonl", PAIR, PAIR)
    code, text = say("train", "dpo", "model={m}", "data=rows.jsonl", *USUAL)
    assert code == 0
    assert "150 steps of 1: the rate stays below 5e-07" in text
    code, text = say("train", "dpo", "model={m}", "data=rows.jsonl", *USUAL, "warmup=0.5", "name=short")
    assert code == 0
    assert "warm-up" not in text


def test_a_rejected_setting_can_be_mended(say: Any, tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", PAIR, RANKING)
    words = ("train", "dpo", "model={m}", "data=rows.jsonl", *USUAL)
    assert say(*words)[0] == 2
    code, text = say(*words, "pairs=all")
    assert code == 0, text
    assert "4 pairs of 2 rows (pairs=all), 0 ties left out" in " ".join(text.split())


# ------------------------------------------------------------------------------------------------------- long prompts


LONG = {"prompt": "word " * 200, "completion": "yes"}


def test_rows_longer_than_the_context_are_counted(say: Any, tmp_path: Path) -> None:
    """max_length is 512 by default, the model's context 64: that is the limit, and it is said."""
    lines(tmp_path / "rows.jsonl", DEMONSTRATION, LONG, DEMONSTRATION)
    code, text = say("train", "sft", "model={m}", "data=rows.jsonl", "steps=1", "prompts_per_step=2", "device=cpu")
    assert code == 0
    assert "64 tokens, which is what the model's context leaves (set: 512)" in text
    assert "dropped 1: " in text


def test_rows_longer_than_the_context_may_be_cut(say: Any, tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", DEMONSTRATION, LONG)
    code, text = say("train", "sft", "model={m}", "data=rows.jsonl", *USUAL, "too_long=truncate")
    assert code == 0
    assert "1 " in text
    assert "truncated" in text or "cut" in text


def test_nothing_but_long_rows(say: Any, tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", LONG)
    code, text = say("train", "sft", "model={m}", "data=rows.jsonl", *USUAL)
    assert code == 2
    assert "rows.jsonl" in text


def test_prompts_longer_than_the_context(say: Any, whole: Whole, tmp_path: Path) -> None:
    """max_prompt is 256 by default; a prompt of the whole context would leave no room for an answer."""
    lines(tmp_path / "rows.jsonl", *({"prompt": p} for p in ("Who is it?", "word " * 70, "Where?")))
    reward = f"reward={whole.run / 'reward' / 'model'}"
    settings = (
        "model={m}",
        reward,
        "prompts=rows.jsonl",
        "steps=2",
        "prompts_per_step=2",
        "max_tokens=4",
        "device=cpu",
    )
    code, text = say("train", "ppo", *settings)
    assert code == 0, text
    assert "63 tokens" in text
    assert "dropped 1: " in text
    code, text = say("train", "ppo", *settings, "too_long=truncate", "name=cut")
    assert code == 0, text


def test_a_run_that_failed_goes_on(say: Any, tmp_path: Path) -> None:
    """The error is fixed in the file, the same command is given again."""
    lines(tmp_path / "rows.jsonl", DEMONSTRATION, "{")
    words = ("train", "sft", "model={m}", "data=rows.jsonl", *USUAL)
    assert say(*words)[0] == 2
    lines(tmp_path / "rows.jsonl", DEMONSTRATION, DEMONSTRATION)
    assert say(*words)[0] == 0
    assert (tmp_path / "runs/sft/sft/model/model.safetensors").exists()
    assert not (tmp_path / "runs/sft/sft/error.txt").exists()


# ------------------------------------------------------------------------------------------------------------ bad rows


def test_every_stage_with_a_split_has_a_rule_for_bad_rows() -> None:
    for name, stage in load_all().items():
        keys = {setting.key for setting in describe(stage.settings)}
        for key in keys:
            record, _, last = key.rpartition(".")
            if last == "split":
                assert ".".join(filter(None, (record, "bad_rows"))) in keys, name


def test_training_lists_all_bad_rows_or_drops_them(say: Any, tmp_path: Path) -> None:
    rows = [DEMONSTRATION, "{", {"prompt": "Who?"}, DEMONSTRATION, {"prompt": "Who?", "completion": ""}]
    lines(tmp_path / "rows.jsonl", *rows)
    words = ("train", "sft", "model={m}", "data=rows.jsonl", *USUAL)
    code, text = say(*words)
    assert code == 2
    assert "3 of 5 rows cannot be used" in text
    assert all(f"rows.jsonl:{line}: " in text for line in (2, 3, 5))
    assert "bad_rows=drop" in text
    assert not (tmp_path / "runs/sft/sft/metrics.jsonl").exists()
    code, text = say(*words, "bad_rows=drop")
    assert code == 0, text
    text = " ".join(text.split())
    assert "2 of 5 rows kept" in text
    for reason in ("malformed JSON", "field 'completion' is missing or null", "field 'completion' is empty"):
        assert f"dropped 1: {reason}" in text
    assert "rows.jsonl:2, rows.jsonl:3, rows.jsonl:5" in text


# --------------------------------------------------------------------------------------------------------------- clean


def test_clean_drops_bad_rows_when_asked(say: Any, tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", PAIR, "{", PAIR | {"rejected": ""}, PAIR | {"prompt": "Who?"})
    words = ("train", "clean", "data=rows.jsonl", "name=c")
    code, text = say(*words)
    assert code == 2
    assert "2 of 4 rows cannot be used" in text
    code, text = say(*words, "bad_rows=drop")
    assert code == 0, text
    assert "2 of 4 rows kept, read as comparisons" in text
    assert "dropped 1: malformed JSON, such as rows.jsonl:2" in text
    written = (tmp_path / "runs/c/clean/rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == [PAIR, PAIR | {"prompt": "Who?"}]


def test_clean_and_check_agree(say: Any, tmp_path: Path) -> None:
    """Transcripts with one answer to everything, and prompts of the held-out file: found by both."""

    def row(prompt: str, chosen: str) -> dict[str, str]:
        turns = f"\n\nHuman: {prompt}\n\nAssistant: "
        return {"chosen": turns + chosen, "rejected": turns + f"Not {prompt}"}

    data = [row(f"Question {i}", "I cannot help.") for i in range(8)] + [row("Where?", "There."), row("When?", "Then.")]
    lines(tmp_path / "rows.jsonl", *data)
    lines(tmp_path / "held.jsonl", row("WHERE? ", "Here."))
    code, text = say("check", "rows.jsonl", "--held-out", "held.jsonl")
    assert code == 0
    assert "one and the same answer is the (best) answer to 8 different prompts" in text
    assert "1 more nearly" in text
    code, text = say("train", "clean", "data=rows.jsonl", "held_out=held.jsonl", "max_prompts=5", "name=c")
    assert code == 0, text
    for line in (
        "1 of 10 rows kept",
        "8 dropped: an answer given to too many",
        "1 dropped: the prompt of a held-out row",
    ):
        assert line in text
    code, text = say("check", "runs/c/clean/rows.jsonl", "--held-out", "held.jsonl")
    assert code == 0
    assert "nearly" not in text
    assert "one and the same" not in text


def test_clean_writes_dates_as_text(say: Any, tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    odd = {
        "when": datetime.datetime(2024, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "day": datetime.date(2024, 1, 2),
        "cost": decimal.Decimal("1.50"),
        "raw": b"x",
    }
    pq.write_table(pa.Table.from_pylist([PAIR | odd]), tmp_path / "d.parquet")
    code, text = say("train", "clean", "data=d.parquet", "name=c")
    assert code == 0, text
    row = json.loads((tmp_path / "runs/c/clean/rows.jsonl").read_text())
    assert {key: row[key] for key in PAIR} == PAIR
    assert (row["when"], row["day"], row["cost"]) == ("2024-01-02 03:04:00+00:00", "2024-01-02", "1.50")


def test_clean_reads_rows_and_no_groups(say: Any, whole: Whole) -> None:
    code, text = say("train", "clean", f"data={whole.run / 'label' / 'rankings.groups.jsonl'}")
    assert code == 2
    assert "sampled groups" in text


def pair(i: int, same: bool) -> dict[str, str]:
    return {"prompt": f"Who is {i}?", "chosen": f"A baker {i}.", "rejected": f"A baker {i}." if same else "Go away."}


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto", "reward"])
def test_pairs_that_teach_nothing(say: Any, tmp_path: Path, method: str) -> None:
    """Some are counted, and where all are the stage stops before the first step, in the file and after the cut."""
    some = lines(tmp_path / "some.jsonl", *(pair(i, same=i == 0) for i in range(4)))
    code, text = say("train", method, "model={m}", f"data={some}", *USUAL, "name=some", "--dry-run")
    assert code == 0, text
    assert "note 1: pairs whose two answers are the same" in " ".join(text.split())
    every = lines(tmp_path / "all.jsonl", *(pair(i, same=True) for i in range(4)))
    long = [pair(i, same=False) | {"chosen": "x " * 80 + "a", "rejected": "x " * 80 + "b"} for i in range(4)]
    cut = lines(tmp_path / "cut.jsonl", *long)
    for name, data, more in (("all", every, ()), ("cut", cut, ("too_long=truncate",))):
        code, text = say("train", method, "model={m}", f"data={data}", *USUAL, f"name={name}", *more)
        assert code == 2, text
        assert not list(Path("runs", name).rglob("metrics.jsonl"))
        assert "same" in text


def test_check_reads_the_groups_of_a_stage(say: Any, whole: Whole) -> None:
    code, text = say("check", str(whole.run / "label" / "rankings.groups.jsonl"))
    assert code == 0, text
    assert "groups" in text
