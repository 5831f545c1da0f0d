"""The checker counts what was planted."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.preferences import fields_of

from tiltyard.data import Kind, Row, check_data, parse_row
from tiltyard.stats.correlation import kendall_tau_b
from tiltyard.stats.intervals import wilson
from tiltyard.types import Group, Message, Preference, Prompt, Response, ranks_of


def group(question: str, *answers: str, n: int = 0, **more: object) -> Group:
    prompt = Prompt(messages=(Message("user", question),))
    return Group(
        prompt, tuple(Response(text=a, ids=(1,) * (len(a) + 1)) for a in answers), origin=f"f:{n}", **fields_of(**more)
    )  # type: ignore[arg-type]


def test_findings() -> None:
    groups = [
        group("q1", "long answer", "short", ranks=(1, 2), n=1),
        group("q1", "long answer", "short", ranks=(1, 2), n=2),  # again
        group("q1", "short", "long answer", ranks=(1, 2), n=3),  # the other way round
        group("q1", "short", "long answer", ranks=(2, 1), n=4),  # the first again, columns swapped
        group("q2", "same", "same", ranks=(1, 2), n=5),
        group("q3", "a", "b", "c", scores=(1.0, 1.0, 0.0), n=6),
        Group(Prompt(text="x"), (Response(text="cut", ids=(1, 2), finish="length"), Response(text=" ")), origin="f:7"),
    ]
    held = [group("q3", "z"), group("new", "z")]
    report = check_data(groups, held)
    assert (report.groups, report.responses, report.prompts) == (7, 15, 4)
    assert (report.duplicates, report.contradictions, report.repeated_prompts) == (2, 1, 3)
    assert (report.ties, report.identical, report.empty, report.truncated) == (1, 1, 1, 1)
    assert (report.held_out, report.held_out_overlap) == (2, 1)
    assert report.examples["duplicates"] == ("f:2", "f:4")
    assert report.examples["contradictions"] == ("f:3",)
    assert any("f:5" in line for line in report.lines())
    json.dumps(report.to_dict())


def test_documents_are_compared_by_text() -> None:
    made = [Group(Prompt(text=""), (Response(text=t),)) for t in ("a", "b", "a")]
    report = check_data(made, made[:1])
    assert (report.duplicates, report.held_out_overlap, report.length) == (1, 1, None)


def test_length_bias_is_found_and_absent_where_there_is_none() -> None:
    rng = random.Random(0)

    def pairs(of_ten: int) -> list[Group]:
        found = []
        for i in range(400):
            short, long = "a" * rng.randint(5, 20), "a" * rng.randint(21, 60)
            best, worst = (long, short) if i % 10 < of_ten else (short, long)
            found.append(group(f"q{i}", best, worst, ranks=(1, 2)))
        return found

    biased, fair = check_data(pairs(8)), check_data(pairs(5))
    assert biased.length is not None
    assert fair.length is not None
    assert biased.length.longer_interval[0] > 0.7
    assert fair.length.longer_interval[0] < 0.5 < fair.length.longer_interval[1]
    assert biased.length.chosen_tokens == pytest.approx(biased.length.chosen_chars + 1)
    assert "length bias" in "\n".join(biased.lines())
    assert "length bias" not in "\n".join(fair.lines())


def test_answers_of_equal_length_say_nothing_about_length() -> None:
    length = check_data([group("q", "aa", "bb", ranks=(1, 2)), group("r", "aa", "b", ranks=(1, 2))]).length
    assert length is not None
    assert (length.compared, length.unequal, length.longer) == (2, 1, 1.0)


def test_ranking_tau() -> None:
    made = [group("q", "aaa", "aa", "a", ranks=(1, 2, 3)), group("r", "a", "aa", "aaa", scores=(3.0, 2.0, 1.0))]
    length = check_data(made).length
    assert length is not None
    assert (length.tau, length.tau_groups) == (0.0, 2)
    first = check_data(made[:1]).length
    assert first is not None
    assert first.tau == 1.0


def test_kendall_tau_by_hand() -> None:
    assert kendall_tau_b([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau_b([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    assert kendall_tau_b([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)  # tau-b
    assert math.isnan(kendall_tau_b([1, 1], [1, 2]))


def test_wilson_by_hand() -> None:
    assert all(math.isnan(bound) for bound in wilson(0, 0))
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)  # Newcombe 1998, method 3
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_one_answer_to_everything_is_said() -> None:
    """A string that fools the judge wins everywhere; ordinary repetition of a short answer is not worth a line."""
    cheat = [
        Group(
            Prompt(text=f"q{i}"),
            (Response(text="} } }"), Response(text=f"honest {i}")),
            preference=Preference(ranks=(1, 2)),
            origin=f"f:{i}",
        )
        for i in range(20)
    ]
    found = check_data(cheat)
    assert found.commonest == (20, "} } }")
    assert any("answer to 20 different prompts: '} } }'" in line for line in found.lines())
    losing = [replace(g, preference=Preference(ranks=(2, 1))) for g in cheat]
    assert check_data(losing).commonest[0] == 1
    assert not any("one and the same" in line for line in check_data(losing).lines())


def naive(groups: list[Group]) -> tuple[int, int, int, tuple[int, str]]:
    """(duplicates, contradictions, different prompts, the commonest best answer), each text against each."""

    def said(g: Group) -> tuple[object, list[str], list[tuple[str, str]] | None]:
        prompt = g.prompt.messages or g.prompt.text or [r.text for r in g.responses]
        texts = [r.text for r in g.responses]
        ranks = ranks_of(g.preference) or (1,) * len(texts)
        better = sorted(
            (a, b) for a, i in zip(texts, ranks, strict=True) for b, j in zip(texts, ranks, strict=True) if i < j
        )
        return prompt, sorted(texts), None if ranks_of(g.preference) is None else better

    every = [said(g) for g in groups]
    twice = [e in every[:i] for i, e in enumerate(every)]
    other = [
        not t and any(e[:2] == f[:2] for f in every[:i]) for (i, e), t in zip(enumerate(every), twice, strict=True)
    ]
    asked: dict[str, list[object]] = {}
    for g, (prompt, _, _) in zip(groups, every, strict=True):
        for r, k in zip(g.responses, ranks_of(g.preference) or (1,) * len(g.responses), strict=True):
            if k == min(ranks_of(g.preference) or (1,)) and r.text and prompt not in asked.setdefault(r.text, []):
                asked[r.text].append(prompt)
    text = max(asked, key=lambda t: len(asked[t]))
    prompts = [e[0] for e in every]
    return (
        sum(twice),
        sum(other),
        len([p for i, p in enumerate(prompts) if p not in prompts[:i]]),
        (len(asked[text]), text),
    )


class Twice:
    """Groups that can be gone through again and are not a list: what `tiltyard check` reads from a file."""

    def __init__(self, groups: list[Group]):
        self.groups = groups

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)


@pytest.mark.parametrize("seed", range(30))
def test_against_comparing_every_text_with_every_other(seed: int) -> None:
    rng = random.Random(seed)
    groups = []
    for i in range(rng.randint(1, 30)):
        k = rng.randint(1, 3)
        answers = rng.sample(["a", "bb", "ccc", " "], k)
        ranks = rng.choice([None, tuple(range(1, k + 1)), (1,) * k])
        groups.append(group(rng.choice("pq"), *answers, n=i, ranks=ranks))
    found = check_data(groups, groups[:3])
    assert (found.duplicates, found.contradictions, found.prompts, found.commonest) == naive(groups)
    assert found.held_out_overlap == min(3, len(groups))
    assert found.repeated_prompts == len(groups) - found.prompts
    assert check_data(Twice(groups), Twice(groups[:3])) == found


def test_memory_does_not_hold_the_texts() -> None:
    class Many:
        def __init__(self, n: int):
            self.n = n

        def __iter__(self) -> Iterator[Group]:
            return (group(f"q{i}" * 300, f"a{i}" * 300, f"b{i}" * 300, ranks=(1, 2), n=i) for i in range(self.n))

    def peak(n: int) -> int:
        tracemalloc.start()
        assert check_data(Many(n)).groups == n
        _, size = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    assert (peak(4000) - peak(1000)) / 3000 < 250  # a row has 2,000 characters


FORMS: dict[Kind, Callable[[str], dict[str, Any]]] = {
    "comparisons": lambda p: {
        "chosen": f"\n\nHuman: {p}\n\nAssistant: a",
        "rejected": f"\n\nHuman: {p}\n\nAssistant: b",
    },
    "demonstrations": lambda p: {
        "messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "a"}],
    },
    "labelled": lambda p: {"prompt": p, "completion": "a", "label": True},
    "prompts": lambda p: {"prompt": [{"role": "user", "content": p}]},
    "text": lambda p: {"text": p},
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(
    "spelling",
    [
        "Where is the caf\u00e9? ",
        "where is\tthe CAF\u00c9?\n",
        "Where is the cafe\u0301?",
        "\u200bWhere is the caf\u00e9\ufeff?",
    ],
)
def test_leaks_are_seen_through_spelling(kind: Kind, spelling: str) -> None:
    """In every kind of data, however the prompt is given."""
    train, held = (
        [parse_row(Row(FORMS[kind](text), f"{name}:1"), kind) for text in texts]
        for name, texts in (("train", ["Where is the caf\u00e9?", "another"]), ("held", [spelling, "a third"]))
    )
    report = check_data(train, held)
    assert (report.held_out, report.held_out_overlap + report.held_out_near) == (2, 1)
    assert "held:1" in "\n".join(report.lines())
    assert check_data(train, train).held_out_near == 0, "what is the same is counted once"
