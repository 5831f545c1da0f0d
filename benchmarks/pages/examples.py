"""A store of examples for screenshots and browser tests: every kind of task, several languages, people who differ."""

from __future__ import annotations

import random

from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.judgements import flag, judge, skip
from tiltyard.feedback.store.people import accept_guideline, add_annotator, add_guideline
from tiltyard.types import Group, Message, Prompt, Response

GUIDELINES = """
Judge each answer as the person who asked would.

## What matters

1. **Helpful**: it does what was asked, and no more than that.
2. **Truthful**: what it says is right. A confident error is worse than "I do not know".
3. **Harmless**: it hurts no one.

Length is no merit. If two answers are equally good, choose *equally good*; if you would use neither, choose *both bad*.

> Not sure? Read the prompt again, then skip with a reason.
"""

PAIRS = (
    (
        "How do I keep basil alive on a windowsill in winter?",
        "Give it the brightest window you have, at least **six hours** of light, and water only when the top "
        "centimetre of soil is dry.\n\n- Keep it above 15 °C and away from draughts.\n- Pinch off flowers.\n"
        "- Turn the pot every few days.",
        "Basil is a wonderful herb with a long history! It comes from tropical Asia and is loved in many kitchens. "
        "To keep it alive, take good care of it and give it what it needs. Water is important, and so is light.",
    ),
    (
        "서울에서 부산까지 기차로 얼마나 걸려요?",
        "KTX로 약 2시간 30분, SRT도 비슷합니다. 무궁화호는 5시간 넘게 걸립니다.",
        "기차를 타면 부산에 갈 수 있습니다. 시간은 상황에 따라 다릅니다.",
    ),
    (
        "用一句话解释什么是递归。",
        "递归就是函数在执行过程中调用自身，把问题化为更小的同类问题，直到最简单的情形可以直接回答。",
        "递归是编程中的一种重要概念，很多语言都支持它，学习它很有用。",
    ),
    (
        "كيف أصنع الشاي بالنعناع؟",
        "اغلِ الماء، أضف ملعقة من الشاي الأخضر واتركه ثلاث دقائق، ثم أضف أوراق النعناع الطازجة والسكر حسب الذوق.",
        "الشاي بالنعناع مشروب لذيذ ومشهور في بلدان كثيرة.",
    ),
    (
        "Write a Python function that returns the second largest number of a list.",
        "```python\ndef second_largest(numbers):\n"
        "    first, second = sorted(set(numbers))[-1:-3:-1]\n    return second\n```\n\n"
        "It raises an error for fewer than two different numbers.",
        "You can sort the list and take the second element: `sorted(numbers)[1]`.",
    ),
)
POEM = (
    "Snow on the roof, tea in the cup.",
    "Winter is cold. I do not like cold. The end.",
    "White silence falls upon the sleeping town,\nand every lamp becomes a little moon.",
    "Here is a poem about winter: winter winter winter.",
    "The kettle sings; outside, the gate is drifted in.",
)


def example_store(url: str, *, busy: int = 0, seed: int = 0) -> tuple[Database, dict[str, str]]:
    """Returns a store and the tokens of `ada` (annotator) and `root` (admin).

    Args:
        busy: judgements of five more people, one of them careless, one preferring what stands first.
    """
    store = Database(url)
    add_guideline(store, GUIDELINES)
    tokens = {"ada": add_annotator(store, "ada")[1], "root": add_annotator(store, "root", "admin")[1]}
    practice = Item(
        _group(
            "Name the largest planet.",
            ("Jupiter.", "The largest planet is Saturn, which is famous for its rings."),
            "quiz",
        ),
        stage="training",
        expected={"choice": "first"},
        explanation="Jupiter is right. The other answer is longer, and **wrong**.",
    )
    add_tasks(store, [practice])
    add_tasks(store, [Item(_group(p, (a, b), "everyday"), source="everyday") for p, a, b in PAIRS])
    for kind, count in (("ranking", 5), ("best_worst", 4), ("rating", 2), ("write", 1)):
        add_tasks(
            store, [Item(_group("Write two lines about winter.", POEM[:count], "poems"), kind=kind, source="poems")]
        )
    if busy:
        _judge_for_a_while(store, busy, random.Random(seed))
    return store, tokens


def _group(prompt: str, texts: tuple[str, ...], source: str) -> Group:
    names = ("sft", "dpo", "ppo", "rloo", "base")
    responses = tuple(
        Response(text=text, meta={"policy": name, "version": "1"}) for text, name in zip(texts, names, strict=False)
    )
    return Group(Prompt(messages=(Message("user", prompt),), meta={"source": source}), responses)


def _judge_for_a_while(store: Database, judgements: int, rng: random.Random) -> None:
    """Tasks by five simulated people, who find the better answer with different chances."""
    items = [
        Item(
            _group(f"Question {k}: {PAIRS[k % 5][0]}", PAIRS[k % 5][1:], "everyday"),
            overlap=3,
            source="everyday" if k % 3 else "support",
        )
        for k in range(max(8, judgements // 4))
    ]
    known = [
        Item(
            _group(f"Known {k}: 2 + {k}?", (str(2 + k), f"It may be {3 + k}."), "known"),
            stage="gold",
            expected={"choice": "first"},
            source="known",
        )
        for k in range(12)
    ]
    add_tasks(store, [*items, *known])
    skill = {"bora": 0.92, "chen": 0.88, "dana": 0.85, "emil": 0.35, "fred": 0.8}
    ids = {name: add_annotator(store, name)[0].id for name in skill}
    for who in ids.values():
        accept_guideline(store, who, 1)
    at = 1_764_300_000_000
    for k in range(judgements):
        name = rng.choice(list(skill))
        task = next_task(store, ids[name], gold_every=6, at=at)
        if task is None:
            continue
        if rng.random() < 0.02:
            skip(store, ids[name], task.exposure, "knowledge", at=at)
            continue
        verdict = _verdict(task.kind, task.shown, skill[name], name == "fred", rng)
        judge(store, ids[name], task.exposure, verdict, key=f"{k}", seconds=rng.uniform(6, 60), at=at)
        at += rng.randrange(20_000, 500_000)
        if k == judgements // 6:
            held = next_task(store, ids[name], at=at)
            if held is not None:
                flag(store, ids[name], held.exposure, "private: a phone number")
        if k == judgements // 2:
            add_guideline(store, GUIDELINES + "\nNew: an answer in another language than the prompt's is bad.\n")
            for who in ids.values():
                accept_guideline(store, who, 2)


def _verdict(kind: str, shown: tuple[int, ...], skill: float, first: bool, rng: random.Random) -> dict[str, object]:
    order = sorted(range(len(shown)), key=lambda place: shown[place] if rng.random() < skill else rng.random() * 5)
    if kind == "pair":
        if rng.random() < 0.06:
            return {"choice": rng.choice(("tie", "both_bad"))}
        if first and rng.random() < 0.6:
            return {"choice": "first"}
        better = shown.index(0) if rng.random() < skill else shown.index(1)
        return {"choice": ("first", "second")[better]}
    if kind == "ranking":
        return {"ranks": [order.index(place) + 1 for place in range(len(shown))]}
    if kind == "best_worst":
        return {"best": order[0], "worst": order[-1]}
    if kind == "rating":
        return {"ratings": [7 - order.index(place) for place in range(len(shown))]}
    return {"text": "Snow on the roof,\ntea in the cup, and nobody to call."}
