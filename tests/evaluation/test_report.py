import dataclasses
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from tiltyard import files
from tiltyard.errors import ConfigError, DataError
from tiltyard.evaluation import EvaluatedResponse, summarise
from tiltyard.report import print_table, side_by_side, write_samples_markdown, write_summary
from tiltyard.report.text import plain

KEYS = {
    *("n", "prompts", "gold", "gold_ci", "helpful", "helpful_ci", "truthful", "truthful_ci", "harmless", "harmless_ci"),
    *("proxy", "proxy_ci", "kl", "kl_ci", "win_rate", "win_rate_ci", "length", "truncated", "distinct_2", "entropy"),
    *("baseline", "win_by", "proxy_kind", "unscored", "rewards", "win_rate_equal_length", "win_rate_equal_length_ci"),
    *("win_rate_equal_length_how", "win_rate_equal_length_note", "win_rate_by_length", "differences"),
    *("wins", "ties", "losses", "undecided", "win_rate_bounds", "win_rate_p", "win_rate_q", "win_rate_mde"),
}


def answers(text="fine", prompts=8, seed=0, **fixed):
    rng = np.random.default_rng(seed)
    made = [
        EvaluatedResponse(
            f"p{i}", f"question {i}", text, 5, False, rng.normal(), rng.normal(), 1.0, 0.0, 1.0, rng.normal(), 1.5
        )
        for i in range(prompts)
    ]
    return [dataclasses.replace(a, **fixed) for a in made]


@pytest.fixture
def results():
    sft = answers(seed=1)
    return [
        summarise(name, answers(seed=i) if name != "sft" else sft, sft) for i, name in enumerate(("base", "sft", "ppo"))
    ]


def shown(show, width=120, encoding="utf-8", terminal=True):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    show(Console(file=file, width=width, force_terminal=terminal, color_system=None, legacy_windows=False))
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [120, 100, 80, 60, 40])
def test_table_fits_and_cuts_no_number(results, width):
    text = shown(lambda c: print_table(results, c), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for header in ("gold", "helpful", "truthful", "harmless", "proxy", "KL", "wins vs", "length"):
        assert header in text
    tables = sum(line.split()[:1] == ["ppo"] for line in text.splitlines())
    assert tables == 1 if width == 120 else 1 <= tables <= (2 if width >= 80 else 5)
    wins = re.search(r"\d+% ± \d+", text)
    assert wins is not None


def test_table_explains_every_column_and_shows_the_baseline_as_half(results):
    text = shown(lambda c: print_table(results, c))
    assert re.search(r" sft .*\b50% ", text)
    for word in ("Higher is better", "reward hacking", "reference", "95% interval over 8 prompts"):
        assert word in text


def test_table_shows_a_dash_for_what_does_not_exist(results):
    bare = dataclasses.replace(
        results[0], gold=None, gold_ci=None, win_rate=None, win_rate_ci=None, kl=None, kl_ci=None
    )
    text = shown(lambda c: print_table([bare, results[1]], c))
    row = next(line for line in text.splitlines() if line.startswith(" base"))
    assert row.count("—") == 3
    with pytest.raises(DataError):
        print_table([], Console())


@pytest.mark.parametrize("width", [120, 60])
def test_table_leaves_out_what_was_measured_of_no_model(results, width):
    unknown = dict.fromkeys(("gold", "gold_ci", "helpful", "truthful", "harmless", "kl", "kl_ci"))
    bare = [dataclasses.replace(result, **unknown) for result in results]
    text = shown(lambda c: print_table(bare, c), width)
    assert "—" not in text
    for left_out in ("gold\n", "helpful", "truthful", "harmless", "KL"):
        assert left_out not in text
    for kept in ("wins vs", "proxy", "length"):
        assert kept in text


def test_table_on_an_ascii_terminal_and_with_odd_names(results):
    odd = [dataclasses.replace(r, name=f"[red]{r.name}[/red]\x1b[2J") for r in results]
    text = shown(lambda c: print_table(odd, c), encoding="ascii")
    assert "+/-" in text
    assert "\x1b" not in text
    assert "[red]ppo[/red]" in text.replace("\n", "")


EVIL = "[bold]x[/bold] [/] [link=http://e]l[/link] :smile: \x1b[31mred\x9b2J \u202eabc \ud800 end"


@pytest.mark.parametrize("width", [120, 60])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_model_text_is_printed_literally(width, encoding):
    by_model = {"[b]sft[/b]": answers("ok"), "ppo": answers(EVIL, prompt_text="[/nothing] ask")}
    text = shown(lambda c: side_by_side(by_model, 2, c), width, encoding)
    squeezed = "".join(re.sub(r"[─|\s-]", "", text))
    for piece in ("[bold]x[/bold][/]", "[b]sft[/b]", r"\x1b[31mred\x9b2J", r"\u202eabc", r"\ud800", ":smile:"):
        assert piece in squeezed
    assert not set(text) & {"\x1b", "\x9b", "\u202e"}


def test_plain_keeps_what_people_write():
    text = "Grüße, 你好 👩\u200d🚀\n\tzwei\r\ndrei"
    assert plain(text) == text.replace("\r\n", "\n")
    assert plain("a\rb\x07") == r"a\rb\x07"


def test_side_by_side_picks_evenly_and_says_so():
    by_model = {"sft": answers(prompts=20), "ppo": answers(prompts=20)}
    text = shown(lambda c: side_by_side(by_model, 5, c))
    assert [int(i) for i in re.findall(r"question (\d+)", text)] == [0, 4, 8, 12, 16]
    assert "5 of 20 prompts" in text
    assert "question 0" in shown(lambda c: side_by_side({"a": answers("", prompts=1)}, 5, c))
    with pytest.raises(DataError, match="all models"):
        side_by_side({"a": answers(prompts=1), "b": answers(prompts=1, prompt_id="other")})


def test_long_answers_are_cut_and_say_so():
    text = shown(lambda c: side_by_side({"a": answers("x" * 900)}, 1, c, max_chars=100))
    assert "800 more characters" in " ".join(text.split())


def test_markdown_cannot_be_escaped(tmp_path):
    evil = "```\n# not a heading\n````\n<script>alert(1)</script>\r\n~~~"
    path = write_samples_markdown(tmp_path / "s.md", {"<b>*m*</b>": answers(evil), "b": answers("\ud800")}, 1)
    lines = path.read_text(encoding="utf-8").splitlines()
    fence, headings = None, []
    for line in lines:  # a reader of CommonMark fences
        ticks = re.match(r"`*", line).group()
        if fence is None and len(ticks) >= 3:
            fence = ticks
        elif fence is not None and len(ticks) >= len(fence) and line == ticks:
            fence = None
        elif fence is None and line.startswith("#"):
            headings.append(line)
        elif fence is None:
            assert "<script" not in line
    assert fence is None
    assert headings == ["# Samples", "## Prompt 1"]
    assert any(r"\<b\>\*m\*\</b\>" in line for line in lines)


def test_summary_has_exactly_the_promised_keys(tmp_path, results):
    path = write_summary(tmp_path / "deep" / "summary.json", results, {"sft": np.float64(1.5)}, {"seed": np.int64(3)})
    body = json.loads(path.read_text())
    assert set(body) == {"models", "seconds", "seed"}
    assert list(body["models"]) == ["base", "sft", "ppo"]
    assert all(set(row) == KEYS for row in body["models"].values())
    assert body["models"]["ppo"]["gold_ci"] == list(results[2].gold_ci)
    assert body["models"]["sft"]["win_rate"] == 0.5
    assert (body["seconds"], body["seed"]) == ({"sft": 1.5}, 3)


def test_summary_is_strict_json_and_refuses_clashes(tmp_path, results):
    path = write_summary(tmp_path / "s.json", results, {}, {"x": float("nan"), "y": np.array([1.0, np.inf])})
    body = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (body["x"], body["y"]) == (None, [1.0, None])
    with pytest.raises(ConfigError, match="models"):
        write_summary(path, results, {}, {"models": 1})
    with pytest.raises(DataError, match="same name"):
        write_summary(path, [results[0], results[0]])


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, results, monkeypatch):
    path = write_summary(tmp_path / "s.json", results)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_summary(path, results[:1])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
