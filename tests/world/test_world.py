"""The world and its files: determinism, no leakage, sizes, and personas worth what they should be."""

import collections
import json
import math
import random
import re
import statistics
import time

import pytest
from tests.chance import beyond, share, shifted

from tiltyard.errors import ConfigError
from tiltyard.world import gold, make_world, write_world
from tiltyard.world.assistants import CORPUS_ASSISTANTS, DEMONSTRATORS, PERSONAS, answer, draw_persona, good_core
from tiltyard.world.lexicon import ATTRIBUTES, CRAFTS, SPECIES, VALUES
from tiltyard.world.parse import vocabulary
from tiltyard.world.tasks import KINDS, draw_task

SMALL = {
    "documents": 200, "dialogues": 200, "demonstrations": 150, "prompts": 100, "held_out": 60, "corpus_held_out": 20,
    "demonstrations_held_out": 20, "tuning": 40,
}  # fmt: skip
FILES = {
    "corpus.jsonl", "corpus_held_out.jsonl", "demonstrations.jsonl", "demonstrations_held_out.jsonl", "prompts.jsonl",
    "held_out.jsonl", "tuning.jsonl",
}  # fmt: skip


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def text_of(row):
    turns = row.get("messages") or row.get("prompt") or []
    return " ".join([row.get("text", ""), *(turn["content"] for turn in turns)])


def words_of(path):
    return {word for row in rows(path) for word in re.findall(r"[A-Za-z']+", text_of(row))}


@pytest.fixture(scope="module")
def world():
    return make_world(shifted(3))


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("world")
    start = time.process_time()
    counts = write_world(world, path)
    assert time.process_time() - start < 3.0
    assert counts == {name: len(rows(path / name)) for name in FILES}
    return path


@pytest.fixture(scope="module")
def tasks(world):
    rng = random.Random(shifted(11))
    return [draw_task(world.held_out, world.strangers["held_out"], rng) for _ in range(1200)]


def test_a_world_is_a_function_of_its_seed(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_world(make_world(seed), tmp_path / name, **SMALL)
    for file in FILES:
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c
    assert {p.name for p in (tmp_path / "a").iterdir()} == FILES  # no temporary file is left


def test_names_and_facts(world):
    names = [e.name for e in world.entities] + [e.name for pool in world.strangers.values() for e in pool]
    assert len(names) == len(set(names))
    assert not {n.lower() for n in names} & vocabulary()
    assert len(world.entities) == 48
    assert len(world.held_out) == 12
    for entity in world.entities:
        assert set(entity.facts) == set(ATTRIBUTES)
        assert entity.facts["role"] in (SPECIES if entity.sort == "animal" else CRAFTS)
        assert all(entity.facts[a] in VALUES[a] for a in ATTRIBUTES)
    homes = collections.Counter(e.facts["home"] for e in world.entities)
    assert set(homes.values()) == {4}  # no home is the better guess


def test_impossible_worlds_are_refused():
    with pytest.raises(ConfigError, match="not enough names"):
        make_world(entities=2000)
    with pytest.raises(ConfigError, match="held_out"):
        make_world(entities=10, held_out=10)


def test_nothing_leaks(world, folder):
    held = {e.name for e in world.held_out}
    for file in ("demonstrations.jsonl", "prompts.jsonl"):
        raw = (folder / file).read_text(encoding="utf-8")
        assert not held & set(re.findall(r"[A-Za-z']+", raw))  # not even in the meta
    corpus = words_of(folder / "corpus.jsonl") | words_of(folder / "corpus_held_out.jsonl")
    assert held <= corpus
    assert {e.name for e in world.known} <= corpus
    assert not set(world.unknown) & corpus
    prompts, held_out = words_of(folder / "prompts.jsonl"), words_of(folder / "held_out.jsonl")
    assert not {e.name for e in world.known} & held_out
    assert not {e.name for e in world.strangers["held_out"]} & (prompts | words_of(folder / "demonstrations.jsonl"))
    asked = [text_of(row) for name in ("prompts", "held_out", "tuning") for row in rows(folder / f"{name}.jsonl")]
    assert len(asked) == len(set(asked))


def test_the_documents_tell_every_fact_often_and_truly(world, folder):
    documents = [row["text"] for row in rows(folder / "corpus.jsonl") if "text" in row]
    joined = collections.defaultdict(str)
    for text in documents:
        for entity in world.entities:
            if re.search(rf"\b{entity.name}\b", text):
                joined[entity.name] += " " + text
    for entity in world.entities:
        for value in entity.facts.values():
            assert joined[entity.name].count(value) > 40
    by_name = {e.name: e for e in world.entities}
    for text in documents:
        told = [name for name in by_name if re.search(rf"\b{name}\b", text)]
        if len(told) == 1:
            entity = by_name[told[0]]
            meta = {"kind": "request", "form": "two", "ask": [], "entity": entity.name, "facts": entity.facts}
            assert gold(meta, text).wrong == 0, text


def test_files_are_of_the_size_and_shape_agreed(folder):
    corpus = rows(folder / "corpus.jsonl")
    assert all(("text" in row) != ("messages" in row) for row in corpus)
    tokens = [token for row in corpus for token in re.findall(r"[A-Za-z']+|[.,!?]", text_of(row))]
    assert 400_000 < len(tokens) < 600_000
    assert 300 < len({token.lower() for token in tokens}) < 700
    assert any(len(row["messages"]) > 2 for row in corpus if "messages" in row)
    assert len(rows(folder / "demonstrations.jsonl")) == 1500
    assert len(rows(folder / "prompts.jsonl")) == 800
    assert len(rows(folder / "held_out.jsonl")) == 300
    for row in rows(folder / "demonstrations.jsonl"):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
    for file in ("prompts.jsonl", "held_out.jsonl"):
        kinds = collections.Counter(row["meta"]["kind"] for row in rows(folder / file))
        assert set(kinds) == set(KINDS)
        assert min(kinds.values()) / sum(kinds.values()) > 0.07
        assert all(row["prompt"][-1]["role"] == "user" for row in rows(folder / file))


@pytest.mark.statistical
def test_demonstrations_are_good_about_six_times_in_ten_and_gold_agrees_with_their_source(folder):
    by_source = collections.defaultdict(list)
    kinds = rows(folder / "demonstrations.jsonl")
    for row in kinds:
        by_source[row["source"]].append(gold(row["meta"], row["messages"][-1]["content"]).total)
    total = sum(len(scores) for scores in by_source.values())
    mean = statistics.mean(DEMONSTRATORS[row["meta"]["kind"]]["good"] for row in kinds)
    assert 0.55 < mean < 0.65
    share(len(by_source["good"]), total, mean)
    assert set(by_source) == set(PERSONAS)
    good = statistics.mean(by_source.pop("good"))
    assert good > 0.95
    for scores in by_source.values():
        beyond(good - statistics.mean(scores), 0.5, statistics.stdev(scores) / math.sqrt(len(scores)))


def test_every_good_answer_is_near_the_maximum(world):
    """All forms of all kinds, for known, held-out and unknown names, in two worlds."""
    seen = set()
    for other in (world, make_world(4)):
        rng = random.Random(0)
        for _ in range(4000):
            task = draw_task(other.entities, other.strangers["prompts"], rng)
            text = good_core(task.meta, rng)
            verdict = gold(task.meta, text)
            assert verdict.total > 0.95, (task, text, verdict)
            assert 1 <= verdict.length <= BUDGET_OF_GOOD, text
            seen.add((task.meta["kind"], task.meta["form"]))
    assert len(seen) == 2 + 4 + 6 + 4 + 1


BUDGET_OF_GOOD = 20


@pytest.mark.statistical
def test_every_persona_is_worse_than_good_on_every_kind(tasks):
    rng = random.Random(shifted(2))
    totals = {
        (persona, kind): [gold(t.meta, answer(persona, t.meta, rng)).total for t in tasks if t.meta["kind"] == kind]
        for persona in PERSONAS
        for kind in KINDS
    }
    mean = {key: statistics.mean(values) for key, values in totals.items()}
    error = {key: statistics.stdev(values) / math.sqrt(len(values)) for key, values in totals.items()}
    for kind in KINDS:
        assert mean["good", kind] > 0.9
        for persona in set(PERSONAS) - {"good"}:
            key = (persona, kind)
            beyond(mean["good", kind] - mean[key], 0.5, math.hypot(error[key], error["good", kind]), key)
    for kind in KINDS:
        beyond(-0.5, mean["rude", kind], error["rude", kind], kind)
    assert mean["unsafe", "unsafe"] == -1.0
    beyond(-0.9, mean["wrong", "question"], error["wrong", "question"])


@pytest.mark.statistical
def test_the_ladder_from_corpus_to_demonstrations_to_good(tasks):
    """What base, SFT and a preference-tuned model can reach: clearly apart."""
    rng = random.Random(shifted(3))

    def mixture(table):
        totals = [gold(t.meta, answer(draw_persona(table, t.meta, rng), t.meta, rng)).total for t in tasks]
        return statistics.mean(totals), statistics.stdev(totals) / math.sqrt(len(totals))

    (base, one), (sft, two) = mixture(CORPUS_ASSISTANTS), mixture(DEMONSTRATORS)
    beyond(-0.15, base, one)
    beyond(sft - base, 0.4, math.hypot(one, two))
    beyond(0.5, sft, two)
