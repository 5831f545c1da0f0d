"""Judges of lists: strict parsing, both orders, missing rankings, a local model and a scripted server."""

from __future__ import annotations

import re

import pytest

from tiltyard.errors import DataError
from tiltyard.feedback import AnswerCache, BothLists, Client, ListScorer
from tiltyard.feedback.client import Endpoint
from tiltyard.feedback.listwise import ApiListJudge, ModelListJudge, read_ranking
from tiltyard.types import Group, Message, Prompt, Response

from .server import Server, completion
from .test_local import made

TEXTS = ("a", "bbb", "cc", "dddd")


def group(texts=TEXTS, name: str = "q") -> Group:
    return Group(Prompt(messages=(Message("user", name),)), tuple(Response(text=t) for t in texts))


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("2 > 1 > 3", (2, 1, 3)),
        ("[3] > [1] > [2]", (2, 3, 1)),
        ("Ranking: 1, 3, 2", (1, 3, 2)),
        ("**2 > 3 > 1**.", (3, 1, 2)),
        ("2 = 1 > 3", (1, 1, 2)),
        ("<think>1 > 2 > 3</think>\n3 > 2 > 1", (3, 2, 1)),
        ("The second is best.\n2 > 1 > 3", (2, 1, 3)),
        ("2 > 1", None),  # one is missing
        ("2 > 1 > 2", None),
        ("2 > 1 > 3 > 4", None),
        ("Response 2 is the best, then 1 and 3", None),
        ("<think>2 > 1 > 3", None),
        ("", None),
    ],
)
def test_rankings_are_read_strictly(text, ranks) -> None:
    assert read_ranking(text, 3) == ranks


def by_length(payload, number):
    """Prefers longer responses, and the one that stands first by half a character."""
    question = payload["messages"][0]["content"]
    shown = re.findall(r"Response \d:\n(.*?)\n\n", question, re.DOTALL)
    order = sorted(range(len(shown)), key=lambda k: (-len(shown[k]), k))
    return 200, completion(" > ".join(str(k + 1) for k in order)), {}


def judge(server: Server, how: str = "probabilities") -> BothLists:
    endpoint = Endpoint(url=server.url, model="m", retries=0, backoff=0.0)
    return BothLists(ApiListJudge(Client(endpoint, AnswerCache(None)), max_tokens=64), how)


def test_both_orders_are_asked_and_merged(server: Server) -> None:
    server.reply = by_length
    (one,) = judge(server).rank([group()])
    assert (one.ranks, one.disagreement) == ((4, 2, 3, 1), 0.0)
    assert len(server.asked) == 2
    (tied,) = judge(server).rank([group(("aa", "bb", "c"))])
    assert (tied.ranks, tied.disagreement) == ((1, 1, 2), pytest.approx(1 / 3))  # the position decided between two
    (once,) = judge(server, "none").rank([group(("aa", "bb", "c"))])
    assert (once.ranks, once.disagreement) == ((1, 2, 3), None)


def test_a_list_without_a_ranking_is_counted_as_such(server: Server) -> None:
    def reply(payload, number):
        if number == 1:
            return 200, completion("1 > 2"), {}
        return by_length(payload, number)

    server.reply = reply
    endpoint = Endpoint(url=server.url, model="m", retries=0, concurrency=1)
    (one,) = BothLists(ApiListJudge(Client(endpoint), max_tokens=64)).rank([group()])
    assert (one.ranks, one.cause) == (None, "unreadable")
    assert "no ranking of all 4 responses" in one.reason


def test_sizes_of_a_call_may_differ_and_limits_are_named(server: Server) -> None:
    server.reply = by_length
    found = judge(server).rank([group(), group(("x", "yy"), "other")])
    assert [one.ranks for one in found] == [(4, 2, 3, 1), (2, 1)]
    with pytest.raises(DataError, match="2 to 9 responses"):
        judge(server).rank([group(("x",))])
    assert judge(server).forecast([group(), group()]).calls == 2


def test_a_model_of_this_process_writes_rankings() -> None:
    """A random model writes none: it is counted, with what it wrote."""
    inner = ModelListJudge(made(), max_tokens=12)
    (one,) = BothLists(inner).rank([group()])
    assert one.ranks is None
    assert one.cause in ("cut", "unreadable", "empty")
    assert inner.usage.calls == 2


def test_a_judge_of_lists_is_a_scorer(server: Server) -> None:
    """The share of the others that each response is ranked above, from two requests a group; no ranking, no group."""
    server.reply = by_length
    scorer = ListScorer(judge(server), max_missing=1.0)
    (scored,) = scorer.score([group()])
    assert scored.scores == pytest.approx((0.0, 2 / 3, 1 / 3, 1.0))
    assert scored.preference.ranks == (4, 2, 3, 1)
    assert len(server.asked) == 2
    (tied,) = scorer.score([group(("aa", "bb", "c"))])  # the two orders differ on the first two: a tie
    assert tied.scores == pytest.approx((0.75, 0.75, 0.0))
    server.reply = lambda payload, number: (200, completion("no idea"), {})
    assert scorer.score([group(name="other")]) == []
    assert scorer.take_metrics()["judge_missing"][0] == 1
