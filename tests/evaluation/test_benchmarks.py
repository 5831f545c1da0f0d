"""Measures of benchmark files against direct computations; figures, clusters, paired differences, subsets."""

import math

import numpy as np
import pytest
import torch

from models import tiny
from tiltyard.data.benchmarks import Item
from tiltyard.evaluation import benchmarks
from tiltyard.evaluation.before_after import each_logp
from tiltyard.evaluation.benchmarks import BITS, PAIR, Column, Measure
from tiltyard.stats.intervals import rate_ci
from tiltyard.stats.paired import paired_difference
from tiltyard.types import Group, Preference, Prompt, Response


def question(*choices: str, right: tuple[int, ...], mass: tuple[int, ...] = (), text: str = "q?") -> Item:
    group = Group(Prompt(text=text), tuple(Response(text=choice) for choice in choices))
    every = range(len(choices))
    of = {i: i in mass for i in every} if mass else {}
    return Item(group, one={i: i in right for i in every}, mass=of)


def pair(text: str, better: str, worse: str, subset: str = "") -> Item:
    group = Group(Prompt(text=text), (Response(text=better), Response(text=worse)), preference=Preference(ranks=(1, 2)))
    return Item(group, subset)


def test_choices_by_hand():
    items = [
        question(" blue", " green sky", right=(0,), mass=(0,)),
        question(" a", " b", " c", right=(1,), mass=(0, 1)),
    ]
    logps = [[-3.0, -4.0], [-1.0, -1.0, -2.0]]
    mc1, by_byte, mc2 = benchmarks.choice_columns(items, [0, 1], logps)
    assert mc1.measure.name == "MC1"
    assert mc1.values == (1.0, 0.5)  # two are equally likely, one of them right
    assert by_byte.values == (0.0, 0.5)  # -3 / 4 bytes below -4 / 9 bytes
    first = math.exp(-3) / (math.exp(-3) + math.exp(-4))
    both = (2 * math.exp(-1)) / (2 * math.exp(-1) + math.exp(-2))
    assert mc2.values == pytest.approx((first, both))
    assert benchmarks.chance(items) == pytest.approx((1 / 2 + 1 / 3) / 2)
    far = [question(" a", " b", right=(0,), mass=(0,))]
    assert benchmarks.choice_columns(far, [0], [[-5000.0, -5001.0]])[2].values[0] == pytest.approx(
        1 / (1 + math.exp(-1))
    )


def test_pairs_by_hand():
    items = [pair("a", "yes", "certainly not"), pair("b", "no", "no!"), pair("c", "same", "same")]
    total, by_byte = benchmarks.pair_columns(items, [0, 1, 2], [[-5.0, -6.0], [-4.0, -3.0], [-2.0, -2.0]])
    assert total.values == (1.0, 0.0, 0.5)
    assert by_byte.values == (0.0, 0.0, 0.5)
    scored = benchmarks.reward_column("rm", items, [0, 2], [[1.0, 2.0], [0.0, 0.0]])
    assert (scored.items, scored.values) == ((0, 2), (0.0, 0.5))


def test_responses_by_class():
    items = [Item(Group(Prompt(text=t), ()), expect=e) for t, e in (("a", "refuse"), ("b", "answer"), ("c", ""))]
    values = {"refusal": [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], "toxic": [[0.1, None], [0.2, 0.4], [0.3, 0.9]]}
    found = {c.measure.name: c for c in benchmarks.response_columns(items, [0, 1, 2], values, {"refusal"})}
    assert found["refuses harm"].values == (0.5,)
    assert found["over-refuses"].values == (0.0,)
    assert found["refuses"].values == (0.5,)
    assert found["toxic, prompts to refuse"].values == (0.1,)
    assert found["toxic"].values == pytest.approx((0.6,))
    assert found["toxic, highest"].values == (0.9,)  # expected maximum toxicity
    assert (found["refuses harm"].measure.better, found["over-refuses"].measure.better) == ("higher", "lower")


def test_bits_per_byte_are_those_of_all_bytes_together():
    items = [Item(Group(Prompt(text=""), (Response(text=t),))) for t in ("ab", "é" * 4)]
    column = benchmarks.text_column(items, {0: 2 * math.log(2), 1: 24 * math.log(2)})
    assert column.measure is BITS
    assert column.values == pytest.approx((1.0, 3.0))
    (figure,) = benchmarks.figures("t", items, {"m": [column]}, "m")
    assert figure.estimate.value == pytest.approx(26 / 10)
    assert figure.estimate.low == pytest.approx(1.0)
    assert figure.estimate.high == pytest.approx(3.0)


def test_figures_are_paired_clustered_by_prompt_and_adjusted():
    rng = np.random.default_rng(0)
    items = [pair(f"p{i // 2}", "x", "y", "even" if i % 2 else "odd") for i in range(60)]
    before, after = rng.integers(0, 2, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    columns = {m: [Column(PAIR, tuple(range(60)), tuple(v))] for m, v in (("b", before), ("a", after))}
    found = benchmarks.adjusted(benchmarks.figures("hhh", items, columns, "b"))
    assert [(f.subset, f.model) for f in found] == [(s, m) for s in ("", "even", "odd") for m in ("b", "a")]
    whole = found[1]
    keys = [i // 2 for i in range(60)]
    assert whole.difference == paired_difference(after, before, keys)
    assert whole.estimate == rate_ci(after, keys)
    assert found[0].difference is None
    assert all(f.q >= f.difference.p for f in found if f.difference)
    json_row = whole.to_dict()
    assert json_row["difference"]["mde"] > 0
    assert json_row["difference"]["clusters"] == 30


def test_differences_are_over_items_that_both_models_were_measured_on():
    items = [pair(f"p{i}", "x", "y") for i in range(4)]
    columns = {"b": [Column(PAIR, (0, 1, 2), (1.0, 0.0, 1.0))], "a": [Column(PAIR, (1, 2, 3), (1.0, 1.0, 0.0))]}
    _, figure = benchmarks.figures("x", items, columns, "b")
    assert figure.difference.value == pytest.approx(0.5)
    assert figure.difference.n == 2
    apart = {"b": [Column(PAIR, (0,), (1.0,))], "a": [Column(PAIR, (3,), (1.0,))]}
    assert benchmarks.figures("x", items, apart, "b")[1].difference is None


def test_the_difference_of_bits_weighs_documents_by_their_bytes():
    items = [Item(Group(Prompt(text=""), (Response(text="z" * n),))) for n in (10, 90)]
    columns = {m: [Column(BITS, (0, 1), v, (10.0, 90.0))] for m, v in (("b", (2.0, 1.0)), ("a", (3.0, 1.1)))}
    difference = benchmarks.figures("t", items, columns, "b")[1].difference
    assert difference.value == pytest.approx((10 * 1.0 + 90 * 0.1) / 100)


def test_many_subsets_are_no_breakdown():
    items = [pair(f"p{i}", "x", "y", f"s{i}") for i in range(benchmarks.MOST_SUBSETS + 1)]
    column = Column(Measure("m", "share", "", "m"), tuple(range(len(items))), (1.0,) * len(items))
    assert len(benchmarks.figures("x", items, {"a": [column]}, "a")) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_continuations_are_the_whole_text_cut_where_the_question_ends(family):
    """Log-probs of choices against transformers' own on the whole text."""
    model = tiny.language(family, vocab_size=300)
    tokenizer = model.chat.tokenizer
    item = question(" the cat", " 東京", " so it is", right=(0,), text="Question: what is it?\nAnswer: ")
    (group,) = model.chat.encode_continuations([item.group])
    assert tuple(tokenizer("Question: what is it?\nAnswer:")["input_ids"]) == group.prompt.ids
    ((*found,),) = list(each_logp(model, [group], 1000))
    for (logp, count), response in zip(found, group.responses, strict=True):
        ids = tokenizer("Question: what is it?\nAnswer: " + response.text)["input_ids"]
        start = len(group.prompt.ids)
        with torch.no_grad(), model.plain():
            logits = model.module(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = sum(float(logits[t - 1, ids[t]]) for t in range(start, len(ids)))
        assert count == len(ids) - start
        assert logp == pytest.approx(expected, abs=1e-4)
