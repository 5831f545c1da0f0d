"""Who a judge is: another wording, snapshot or setting is another judge; texts keep their versions."""

from __future__ import annotations

import hashlib

from tiltyard.feedback import ApiJudge, Client, judge_identity
from tiltyard.feedback.client import Endpoint
from tiltyard.feedback.prompts import TEMPLATES
from tiltyard.feedback.settings import ApiJudgeSettings, ModelJudgeSettings, SimulatedJudgeSettings

from .server import Server, by_length
from .worlds import words

DIGESTS = {
    "pair-1": "63d64be5ed60",
    "score-1": "5851fd2cb79d",
    "points-1": "52e01323e208",
    "rank-1": "d7b71e5246d9",
}


def test_a_change_of_a_text_is_a_new_version() -> None:
    """A template whose text was changed needs a new version here, and in `prompts.TEMPLATES`."""
    found = {f"{t.name}-{t.version}": hashlib.sha256(t.text.encode()).hexdigest()[:12] for t in TEMPLATES}
    assert found == DIGESTS
    assert all(t.source for t in TEMPLATES)


def test_what_makes_another_judge() -> None:
    base = ModelJudgeSettings(model="runs/demo/sft")
    one = judge_identity(base, "abc")
    assert (one.model, one.snapshot, one.template) == ("runs/demo/sft", "abc", "pair-1")
    assert one.name == f"judge:runs/demo/sft@abc#{one.digest}"
    assert judge_identity(base.model_copy(update={"max_missing": 0.9}), "abc") == one  # how it is run changes nothing
    others = [
        judge_identity(base, "abd"),
        judge_identity(base.model_copy(update={"instruction": "Shorter."}), "abc"),
        judge_identity(base.model_copy(update={"debias": "logits"}), "abc"),
        judge_identity(base.model_copy(update={"ask": "score"}), "abc"),
        judge_identity(ApiJudgeSettings(model="runs/demo/sft", url="http://h/v1"), "abc"),
        judge_identity(SimulatedJudgeSettings(instruction={"gold": 1.0})),
        judge_identity(SimulatedJudgeSettings(instruction={"gold": 2.0})),
    ]
    assert len({one.name, *(o.name for o in others)}) == 8
    assert len(judge_identity(base.model_copy(update={"model": "m" * 500}), "s" * 20).name) <= 200


def test_the_snapshot_is_what_the_server_names(server: Server) -> None:
    def reply(payload, number):
        status, value, headers = by_length(payload, number)
        return status, value | {"model": "m-2026-11", "system_fingerprint": f"fp{number // 2}"}, headers

    server.reply = reply
    judge = ApiJudge(Client(Endpoint(url=server.url, model="m", concurrency=1)))
    judge(words(5, 2))
    assert judge.snapshot == "m-2026-11-fp0"
    judge(words(6, 2))
    assert judge.snapshot == "m-2026-11-fp1"
