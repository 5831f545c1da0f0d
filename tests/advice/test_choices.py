"""The choices for every wish and kind of rows, and every error before anything is trained."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiltyard.advice import Advice, Request, advise
from tiltyard.advice.choose import batch_of, held_out_of, passes_of, peak
from tiltyard.advice.machine import Machine
from tiltyard.advice.trial import Speed
from tiltyard.advice.trial import measure as timed
from tiltyard.errors import ConfigError, DataError, ModelError
from tiltyard.pipeline.recipe import check, parse_recipe

from .conftest import Place, pairs

Write = Callable[[str, list[dict[str, Any]]], Path]
SPEEDS = [
    Speed("bfloat16", 0.003, 0.001, 0.01, 0.1, 2.0, 0.0),
    Speed("float32", 0.006, 0.002, 0.01, 0.1, 2.0, 0.0),
]


ADVISE = sys.modules["tiltyard.advice.advise"]  # the package has a function of that name


@pytest.fixture(autouse=True)
def known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds and a machine that are always the same."""
    monkeypatch.setattr(ADVISE, "measure", lambda *args, **how: list(SPEEDS))
    monkeypatch.setattr(ADVISE, "this_machine", lambda: Machine("cpu", 2, 8 * 2**30, True))


def stages(advice: Advice) -> dict[str, dict[str, Any]]:
    """The stages of the recipe, which is parsed and checked."""
    recipe = parse_recipe(advice.recipe(), "recipe.yaml")
    assert [step.name for step in check(recipe)] == [stage.name for stage in advice.stages]
    return {entry.name: dict(entry.values) for entry in recipe.entries}


def labelled(count: int) -> list[dict[str, Any]]:
    rows = pairs(count, 1)
    good = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows]
    return good + [
        {"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in rows[: count // 3]
    ]


def rankings(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], f"no {number}"], "ranks": [1, 2, 3]}
        for number, row in enumerate(pairs(count, 1))
    ]


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"], "answer": str(number)} for number, row in enumerate(pairs(count, 1))]


def demonstrations(count: int) -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(count)]


RULE = "{from: rule, max_words: 5}"
JUDGE = "{kind: simulated}"


@pytest.mark.parametrize(
    ("rows", "more", "kinds", "want"),
    [
        (pairs(30), {}, "split dpo reward before_after", "prefer"),
        (pairs(30), {"want": "imitate"}, "split sft before_after", "imitate"),
        (pairs(30), {"reward": RULE}, "split dpo before_after", "prefer"),
        (pairs(30), {"reward": RULE, "want": "reward"}, "split rloo before_after", "reward"),
        (rankings(30), {}, "split dpo reward before_after", "prefer"),
        (labelled(30), {}, "split kto before_after", "prefer"),
        (demonstrations(30), {}, "split sft before_after", "imitate"),
        (prompts(30), {"reward": RULE}, "split rloo before_after", "reward"),
        (prompts(30), {"judge": JUDGE}, "split online_dpo before_after", "judge"),
    ],
)
def test_the_method_follows_from_data_and_wish(
    place: Place, write: Write, rows: list[dict[str, Any]], more: dict[str, str], kinds: str, want: str
) -> None:
    advice = advise(Request(str(place.model), str(write("rows.jsonl", rows)), **more))  # type: ignore[arg-type]
    found = stages(advice)
    assert " ".join(found) == kinds
    assert advice.want == want
    trained = found[advice.trained]
    assert trained["dtype"] == "bfloat16"
    assert all(choice.why for choice in (advice.stages[1].settings[key] for key in ("lr", "dtype", "warmup")))
    assert json.dumps(advice.to_dict())
    if want == "prefer" and rows == rankings(30):
        assert trained["pairs"] == "best_worst"
    if "completion" in rows[0] and "label" in rows[0]:
        assert trained["undesirable"] == 3.0


def test_what_fools_a_judge_is_taken_out_and_told(place: Place, write: Write) -> None:
    rows = pairs(60)
    for row in rows[::2]:
        row["chosen"] = "sun sun sun"
    advice = advise(Request(str(place.model), str(write("rows.jsonl", rows))))
    found = stages(advice)
    assert list(found)[:2] == ["clean", "split"]
    assert found["split"]["data"] == "clean/rows.jsonl"
    assert "one and the same answer is given to 60 prompts: 'sun sun sun'" in "\n".join(advice.facts())
    kept = stages(advise(Request(str(place.model), str(write("rows.jsonl", rows)), clean=False)))
    assert "clean" not in kept


def test_minutes_bound_the_rows_and_the_estimate(place: Place, write: Write) -> None:
    data = str(write("rows.jsonl", pairs(400, 3)))
    whole = advise(Request(str(place.model), data, minutes=0))
    assert "limit" not in stages(whole)["split"]
    sizes = []
    for minutes in (2.0, 1.0):
        advice = advise(Request(str(place.model), data, minutes=minutes))
        sizes.append(stages(advice)["split"]["limit"])
        assert advice.seconds <= 60 * minutes
    assert 32 <= sizes[1] < sizes[0] < 1200
    small = advise(Request(str(place.model), data, minutes=0.1))
    assert "more than the 0.1 minutes" in "\n".join(small.estimate())
    assert "()" not in small.estimate()[0]  # no stage of this run takes half a second


def test_seconds_are_the_tokens_times_the_speed(place: Place, write: Write) -> None:
    data = str(write("rows.jsonl", pairs(40)))
    advice = advise(Request(str(place.model), data, minutes=0))
    dpo = next(stage for stage in advice.stages if stage.kind == "dpo")
    tokens = advice.amounts.tokens * dpo.settings["epochs"].value
    steps = round(advice.amounts.used * dpo.settings["epochs"].value / dpo.settings["prompts_per_step"].value)
    assert dpo.seconds == pytest.approx(2 * 2.0 + tokens * 0.004 + steps * 0.01)


def test_rows_that_are_too_long_are_told(place: Place, write: Write) -> None:
    rows = pairs(40)
    rows[0]["chosen"] = "the cat " * 300
    advice = advise(Request(str(place.model), str(write("rows.jsonl", rows))))
    assert "1 longer one is left out" in advice.recipe()


# --------------------------------------------------------------------------------------------------------- bad input


def refused(error: type[Exception], place: Place, data: Path | str, **more: Any) -> str:
    model = more.pop("model", place.model)
    with pytest.raises(error) as caught:
        advise(Request(str(model), str(data), **more))
    found = caught.value
    for part in ("where", "got", "expected", "fix"):
        assert getattr(found, part) not in (None, ""), f"{part} is missing: {found}"
    return str(found)


def changed(place: Place, tmp_path: Path, **config: Any) -> Path:
    """The model with another tokenizer configuration."""
    folder = tmp_path / "changed"
    shutil.copytree(place.model, folder)
    for name in ("chat_template.jinja",):
        (folder / name).unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values.pop("chat_template", None)
    path.write_text(json.dumps(values | config))
    return folder


def test_a_model_without_a_template(place: Place, write: Write, tmp_path: Path) -> None:
    data, bare = write("rows.jsonl", pairs(20)), changed(place, tmp_path)
    assert "--default-template" in refused(ModelError, place, data, model=bare)
    advice = advise(Request(str(bare), str(data), default_template=True))
    assert "no chat template" in "\n".join(advice.facts())


def test_a_template_that_fails(place: Place, write: Write, tmp_path: Path) -> None:
    broken = changed(place, tmp_path, chat_template="{{ raise_exception('no') }}")
    refused(ModelError, place, write("rows.jsonl", pairs(20)), model=broken)


def test_rows_longer_than_the_context(place: Place, write: Write) -> None:
    rows = [dict(row, chosen="the cat " * 300) for row in pairs(20)]
    assert "128" in refused(DataError, place, write("rows.jsonl", rows), clean=False)


def test_rows_of_a_kind_that_the_wish_cannot_use(place: Place, write: Write) -> None:
    assert "--want imitate" in refused(DataError, place, write("d.jsonl", demonstrations(20)), want="prefer")
    assert "--reward" in refused(DataError, place, write("p.jsonl", prompts(20)))
    assert "labelled" in refused(DataError, place, write("l.jsonl", labelled(20)), want="imitate")
    refused(DataError, place, write("t.jsonl", [{"text": "the cat runs"}] * 20))


def test_a_reward_that_raises(place: Place, write: Write, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "def good(prompt, response, row):\n    return float(row['answer'])\n"
        "def bad(prompt, response):\n    return 1 / 0\n"
        "def text(prompt, response):\n    return 'high'\n"
        "def silent(prompt, response):\n    return None\n"
    )
    data = write("p.jsonl", prompts(20))
    advise(Request(str(place.model), str(data), reward=f"{tmp_path}/rewards.py:good"))
    for name in ("bad", "text", "silent"):
        refused(ConfigError, place, data, reward=f"{tmp_path}/rewards.py:{name}")


def test_too_little_memory(place: Place, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    little = lambda: Machine("cpu", 2, 2**20, True)  # noqa: E731
    monkeypatch.setattr(ADVISE, "this_machine", little)
    text = refused(ConfigError, place, write("rows.jsonl", pairs(20)))
    assert "M parameters" in text


def test_wishes_that_are_no_wishes() -> None:
    for more in (
        {"want": "better"}, {"minutes": -1.0}, {"reward": "x", "judge": "y"}, {"want": "judge"}, {"want": "reward"}
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            Request("model", "data", **more)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mapping"):
        Request("m", "d", judge="gpt").judge_value()


def test_counts_are_sensible() -> None:
    for rows in (1, 5, 20, 100, 1000, 100_000):
        for method in ("sft", "dpo"):
            passes = passes_of(method, rows).value
            size = batch_of(rows, passes).value
            assert 1 <= passes <= 4
            assert 2 <= size <= 32
    for count in (2, 3, 10, 50, 1000, 10**6):
        share = held_out_of(count).value
        assert 0 < share < 1
        assert 1 <= round(share * count) < count


def test_adapters_take_less_memory(place: Place) -> None:
    from tiltyard.advice.model import look_at_model

    model, _ = look_at_model(str(place.model))
    whole, lora = (peak(model, 1024, lora=lora, recomputed=False) for lora in (False, True))
    assert lora < whole


def test_a_model_that_does_not_fit_its_files(place: Place, write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    """Found by the trial, which loads the model: before anything is trained."""
    monkeypatch.setattr(ADVISE, "measure", timed)
    folder = tmp_path / "small"
    shutil.copytree(place.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    refused(ModelError, place, write("rows.jsonl", pairs(20)), model=folder)


def test_an_adapter_without_its_base(place: Place, write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    assert "base_model_name_or_path" in refused(ModelError, place, write("rows.jsonl", pairs(20)), model=folder)
