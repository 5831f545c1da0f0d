"""Judges that are models: the same numbers as transformers' own forward pass on the same text."""

from __future__ import annotations

import math

import pytest
import torch

from tiltyard.data import PLAIN_TEMPLATE, train_tokenizer
from tiltyard.errors import DataError
from tiltyard.feedback import Debiased, Exemplar, ModelJudge, ModelPointsJudge, ModelScoreJudge, local
from tiltyard.feedback.local import _masses, expected_rating, label_logits
from tiltyard.feedback.prompts import RATINGS, pair_question, score_question
from tiltyard.feedback.replies import read_points
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import from_scratch
from tiltyard.types import Group, Response

from .worlds import pair, turned, words

TEXTS = [
    "Response 1 or 2, and 10 of 10. Score: 3 4 5 6 7 8 9 0",
    "a b c d which is better? " * 4,
    "Rating=\n1\n 1 2 10",
]


def made(template: str | None = None, context: int = 1024) -> LanguageModel:
    tokenizer = train_tokenizer(TEXTS * 3, 330)
    if template is not None:
        tokenizer.chat_template = template
    model = from_scratch("1m", tokenizer, seed=3, context=context)
    model.module.double()
    model.dtype = "float64"
    with torch.no_grad():  # far from uniform, so that a wrong token would show
        for p in model.module.parameters():
            p.mul_(3.0)
    return model


def plain(model: LanguageModel, text: str) -> torch.Tensor:
    """Log-probs of the next token after a text, by transformers alone."""
    ids = model.chat.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with model.plain(), torch.no_grad():
        return torch.log_softmax(model.module(input_ids=ids).logits[0, -1].double(), -1)


def rendered(model: LanguageModel, question: str) -> str:
    return model.chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, None], ids=["1", "space 1"])
def test_probabilities_are_those_of_a_plain_forward(template) -> None:
    """Under Tiltyard's own template an answer begins with " 1", under the plain one with "1"."""
    model = made(template)
    pairs = words(0, 5)
    exemplars = [Exemplar(prompt="a?", first="b", second="c", better=1)]
    judge = ModelJudge(model, "Prefer what is short.", exemplars=exemplars)
    tokenizer = model.chat.tokenizer
    for group, verdict in zip(pairs, judge(pairs), strict=True):
        text = rendered(model, pair_question("Prefer what is short.", exemplars, group.prompt, group.responses))
        tails = [" 1", " 2"] if template is None else ["1", "2"]
        labels = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in tails]
        while len(labels[0]) > 1:  # a token that both begin with belongs to the text
            assert labels[0][0] == labels[1][0]
            text += tokenizer.decode(labels[0][:1])
            labels = [ids[1:] for ids in labels]
        logp = plain(model, text)
        one, two = (float(logp[ids[0]]) for ids in labels)
        assert verdict.p == pytest.approx(math.exp(one) / (math.exp(one) + math.exp(two)), abs=1e-9)
    assert judge.usage.calls == 5
    assert max(abs(v.p - 0.5) for v in judge(pairs)) > 1e-3


def test_plain_text_for_base_models() -> None:
    model, group = made(), pair("b", "c")
    (verdict,) = ModelJudge(model, style="text")([group])
    text = model.chat.tokenizer.eos_token + pair_question("", [], group.prompt, group.responses)
    logp = plain(model, text)
    one, two = (float(logp[model.chat.tokenizer(d, add_special_tokens=False)["input_ids"][0]]) for d in "12")
    assert verdict.logit == pytest.approx(one - two, abs=1e-9)


def test_ratings_follow_ten_labels() -> None:
    model, group = made(PLAIN_TEMPLATE), words(1, 1)[0]
    grades = ModelScoreJudge(model).score([group])[0]
    tokenizer = model.chat.tokenizer
    for response, grade in zip(group.responses, grades, strict=True):
        text = rendered(model, score_question("", group.prompt, response))
        logp = plain(model, text)
        ids = [tokenizer(r, add_special_tokens=False)["input_ids"] for r in RATINGS]
        logits = [float(logp[i[0]]) for i in ids]
        if len(ids[9]) == 2:  # "10" in two tokens: "1" keeps what it does not take
            after = plain(model, text + "1")[ids[9][1]].exp().item()
            logits[9] = logits[0] + math.log(after)
            logits[0] += math.log1p(-after)
        assert grade.score == pytest.approx(expected_rating(logits), abs=1e-9)
        assert -1 <= grade.score <= 1


def test_labels_that_begin_alike() -> None:
    """p("1") = .5, then "0" with .4 or the end; p("2") = .3: the masses are .3, .2 and .3."""
    end, one, two, zero = 0, 1, 2, 3
    labels = [(one, end), (one, zero, end), (two, end)]
    half = math.log(0.5)
    logps = [(half, math.log(0.6)), (half, math.log(0.4), 0.0), (math.log(0.3), 0.0)]
    assert [math.exp(m) for m in _masses(labels, logps)] == pytest.approx([0.3, 0.2, 0.3], abs=1e-12)
    lead = [(9, *ids) for ids in labels]
    assert [math.exp(m) for m in _masses(lead, [(-1.0, *row) for row in logps])] == pytest.approx(
        [0.3 / math.e, 0.2 / math.e, 0.3 / math.e], abs=1e-12
    )


def test_batches_do_not_matter_and_turned_pairs_mirror() -> None:
    model, pairs = made(), words(2, 6)
    whole = ModelJudge(model)(pairs)
    alone = [v for p in pairs for v in ModelJudge(model, budget=1)([p])]
    assert [v.logit for v in whole] == pytest.approx([v.logit for v in alone], abs=1e-9)
    fair = Debiased(ModelJudge(model))([*pairs, *map(turned, pairs)])
    assert max(abs(a.p + b.p - 1) for a, b in zip(fair[:6], fair[6:], strict=True)) <= 1e-12


def test_reasons_are_read_before_deciding(monkeypatch) -> None:
    model, group = made(), pair("b", "c")
    judge = ModelJudge(model, reasoning=7)
    (verdict,) = judge([group])
    assert judge.usage.calls == 2
    assert 0 < judge.usage.tokens_out <= 7
    (without,) = ModelJudge(model)([group])
    assert verdict.logit != pytest.approx(without.logit, abs=1e-6)
    thought = Response(text="The second is better.", ids=(5,))
    monkeypatch.setattr(local, "sample", lambda m, prompts, *a, **k: [Group(p, (thought,)) for p in prompts])
    (given,) = judge([group])
    assert given.text == "The second is better."


def test_points_are_the_mean_of_samples(monkeypatch) -> None:
    model, groups = made(), words(3, 2)
    judge = ModelPointsJudge(model, samples=2, max_tokens=5, seed=1)
    rows = judge.score(groups)
    for grade in (g for row in rows for g in row):
        points = [p for p in map(read_points, grade.texts) if p is not None]
        assert grade.score == (sum(points) / len(points) if points else None)
    assert [[g.texts for g in row] for row in judge.score(groups)] == [[g.texts for g in row] for row in rows]
    assert judge.usage.calls == 2 * 4 * 2
    texts = iter(["Score: 1", "Score: 4", "?", "Score: 3", "?", "?", "Score: 5", "Score: 5"])

    def written(_, prompts, n, law, *, seed):
        return [Group(p, tuple(Response(text=next(texts), ids=(1,)) for _ in range(n))) for p in prompts]

    monkeypatch.setattr(local, "sample", written)
    assert [[g.score for g in row] for row in judge.score(groups)] == [[2.5, 3.0], [None, 5.0]]


def test_what_does_not_fit_is_never_cut() -> None:
    model = made(context=400)
    groups = [pair("b", "c"), pair("b " * 300, "c")]
    with pytest.raises(DataError, match="longer than the judge's context"):
        ModelJudge(model)(groups)
    short, long = ModelJudge(model, too_long="skip")(groups)
    assert short.p is not None
    assert long.p is None
    assert "the judge's context holds 400" in long.reason
    (row,) = ModelScoreJudge(model, too_long="skip").score(groups[1:])
    assert [g.score is None for g in row] == [True, False]


def test_the_model_is_left_as_it_was() -> None:
    model = made()
    model.module.train()
    label_logits(model, model.chat.encode_prompts([pair("a", "b").prompt]), ("1", "2"))
    assert model.module.training
