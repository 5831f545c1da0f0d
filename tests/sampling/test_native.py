"""The sampler against a plain loop: the same tokens from the same uniforms, log-probs under the very law."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models import tiny
from sampling import stubs
from tiltyard.batch.forest import pack
from tiltyard.errors import ConfigError, DataError
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings, UniformStream, engine, padded, response_seeds, sample, ways
from tiltyard.types import Group, Prompt

LAWS = {
    "plain": SampleSettings(max_tokens=12),
    "cool": SampleSettings(temperature=0.6, max_tokens=12),
    "nucleus": SampleSettings(temperature=0.8, top_p=0.7, max_tokens=12),
    "top_k": SampleSettings(top_k=5, max_tokens=12),
    "all": SampleSettings(temperature=1.3, top_k=20, top_p=0.8, max_tokens=12),
    "greedy": SampleSettings(temperature=0, max_tokens=12),
}
ENGINES = ["llama", "mistral", "gemma2", "gpt2", "opt", "deepseek_v3", "bloom", "qwen2_window", "cohere"]
LENGTHS = (6, 1, 11, 3)


def _oracle(family: str, model, prompts, n: int, settings: SampleSettings, seed: int):
    module = tiny.causal(family, dtype=model.module.dtype)
    stream = UniformStream(response_seeds(range(len(prompts)), n, seed))
    rows = torch.arange(len(prompts) * n)
    columns = [stream.uniform_R(rows, torch.full_like(rows, t)) for t in range(settings.max_tokens)]
    uniforms = torch.stack(columns, 1).unflatten(0, (len(prompts), n)).numpy()
    return [
        [stubs.answer(module, model.chat, p, uniforms[i, j], settings) for j in range(n)] for i, p in enumerate(prompts)
    ]


@pytest.mark.parametrize(
    ("family", "law"), [(f, "all") for f in ENGINES] + [("llama", law) for law in LAWS] + [("bloom", "greedy")]
)
def test_same_tokens_as_a_plain_loop(family: str, law: str) -> None:
    model, prompts, settings = stubs.model(family), stubs.prompts(*LENGTHS), LAWS[law]
    groups = sample(model, prompts, 3, settings, seed=7)
    assert [g.prompt for g in groups] == prompts
    lengths = set()
    for group, expected in zip(groups, _oracle(family, model, prompts, 3, settings, 7), strict=True):
        assert len(group.responses) == 3
        for response, (ids, logps, finish) in zip(group.responses, expected, strict=True):
            assert list(response.ids) == ids
            assert response.finish == finish
            assert response.logps == pytest.approx(logps, abs=1e-5)
            assert response.text == model.chat.decode(ids)
            lengths.add(len(ids))
    if law != "greedy":
        assert len(lengths) > 1  # rows did end at different times


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_recorded_logps_are_the_trainers(family: str) -> None:
    """At temperature T without truncation, what the trainer computes on the sampled ids; in float32."""
    model = stubs.model(family, "float32")
    groups = sample(model, stubs.prompts(*LENGTHS), 4, SampleSettings(temperature=0.7, max_tokens=10), seed=1)
    with torch.no_grad():
        logp_R = model.logp_R(pack(groups), temperature=0.7)[0]
    recorded = torch.tensor([x for g in groups for r in g.responses for x in r.logps or ()])
    torch.testing.assert_close(recorded, logp_R, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_answers_do_not_depend_on_the_company(family: str) -> None:
    model, prompts, settings = stubs.model(family), stubs.prompts(5, 2, 9, 4, 7), LAWS["all"]
    whole = sample(model, prompts, 2, settings, seed=3)
    for part in ([0, 2, 4], [1, 3], [3]):
        shard = sample(model, [prompts[i] for i in part], 2, settings, seeds=response_seeds(part, 2, 3))
        assert [[r.ids for r in g.responses] for g in shard] == [[r.ids for r in whole[i].responses] for i in part]


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("max_concurrent", [1, 2, 5, 6])
def test_max_rows_changes_nothing(family: str, max_concurrent: int) -> None:
    model, prompts = stubs.model(family), stubs.prompts(5, 2, 9, 4)
    settings = [SampleSettings(max_tokens=8, max_concurrent=m) for m in (256, max_concurrent)]
    one, other = (sample(model, prompts, 2, s, seed=2) for s in settings)
    assert [[r.ids for r in g.responses] for g in one] == [[r.ids for r in g.responses] for g in other]


def test_max_rows_bounds_the_rows_of_one_prompt_too(monkeypatch) -> None:
    from tiltyard.sampling import native

    sizes: list[int] = []
    real = native.sample_from_logits
    monkeypatch.setattr(native, "sample_from_logits", lambda p, *rest: (sizes.append(len(p)), real(p, *rest))[1])
    groups = sample(stubs.model(), stubs.prompts(3, 4), 5, SampleSettings(max_tokens=3, max_concurrent=2), seed=2)
    assert max(sizes) <= 2
    expected = sample(stubs.model(), stubs.prompts(3, 4), 5, SampleSettings(max_tokens=3), seed=2)
    assert [[r.ids for r in g.responses] for g in groups] == [[r.ids for r in g.responses] for g in expected]


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("max_concurrent", [3, 256])
def test_no_step_is_spent_on_answers_that_have_ended(monkeypatch, family: str, max_concurrent: int) -> None:
    model = stubs.model(family)
    kind = engine.Packed if family == "llama" else padded.Padded
    assert ways.way_of(model) == ("packed" if family == "llama" else "batched")  # tried before its steps are counted
    sizes: list[int] = []
    real = kind.step
    monkeypatch.setattr(kind, "step", lambda self, ids: (sizes.append(len(ids)), real(self, ids))[1])
    groups = sample(model, stubs.prompts(5, 2, 9, 4), 3, SampleSettings(max_concurrent=max_concurrent), seed=2)
    lengths = [len(r.ids) for g in groups for r in g.responses]
    assert len(set(lengths)) > 3
    assert sum(sizes) == sum(lengths) - len(lengths)  # the first token of each comes from its prompt
    if family == "llama" and max_concurrent == 3:
        waiting = len(lengths) - 3
        assert sizes[: len(sizes) - max(lengths)] == [3] * (len(sizes) - max(lengths))  # full while some wait
        assert waiting > 0


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", ["llama_tied", "mistral", "qwen2", "qwen2_window", "qwen3"])
def test_the_decoder_is_used_and_agrees_with_the_model(
    family: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stubs.model(family, "float32", stop_ids=frozenset({2}))
    if not compiled:
        model.backend = replace(model.backend, ops="torch", decoder="fused")
    assert engine.can_use_decoder(model)
    settings = SampleSettings(max_tokens=30, max_concurrent=5, keep_hidden=True)
    groups = sample(model, stubs.prompts(*LENGTHS), 3, settings, seed=1)
    with torch.no_grad():
        forest = pack(groups)
        hidden_R = model.hidden_T(forest)[forest.predictor_R]
        logp_R = model.logp_R(forest)[0]
    torch.testing.assert_close(torch.cat([r.hidden for g in groups for r in g.responses]), hidden_R, atol=2e-5, rtol=0)
    recorded = torch.tensor([x for g in groups for r in g.responses for x in r.logps or ()])
    torch.testing.assert_close(recorded, logp_R, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: setattr(block.self_attn, "scaling", 0.3),
        lambda block: setattr(block.mlp, "act_fn", torch.nn.ReLU()),
        lambda block: setattr(block.mlp, "down_proj", torch.nn.Sequential(block.mlp.down_proj)),
        lambda block: block.register_forward_hook(lambda m, i, o: o + 1),
        lambda block: setattr(block, "forward", lambda hidden_states, **_: hidden_states),
    ],
)
def test_a_changed_model_is_decoded_by_its_modules_or_agrees(spoil) -> None:
    model = stubs.model("llama", "float32")
    spoil(model.module.model.layers[1])
    groups = sample(model, stubs.prompts(*LENGTHS), 2, SampleSettings(max_tokens=6), seed=1)
    with torch.no_grad():
        logp_R = model.logp_R(pack(groups))[0]
    recorded = torch.tensor([x for g in groups for r in g.responses for x in r.logps or ()])
    torch.testing.assert_close(recorded, logp_R, atol=1e-5, rtol=1e-5)


def test_float64_and_other_families_are_decoded_by_their_modules() -> None:
    assert not engine.can_use_decoder(stubs.model("llama"))
    assert not engine.can_use_decoder(stubs.model("gemma2", "float32"))


def test_seeds() -> None:
    model, prompts = stubs.model(), stubs.prompts(5, 2)
    ids = [[r.ids for g in sample(model, prompts, 2, seed=s) for r in g.responses] for s in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    sample(model, prompts, 2)
    assert torch.rand(1).equal(expected)


def test_greedy_ignores_the_seed_and_is_certain() -> None:
    model, prompts = stubs.model(), stubs.prompts(5, 2)
    one, other = (sample(model, prompts, 2, LAWS["greedy"], seed=s) for s in (0, 1))
    for g, h in zip(one, other, strict=True):
        assert {r.ids for r in g.responses} == {r.ids for r in h.responses}
        assert len({r.ids for r in g.responses}) == 1
        assert all(x == 0 for r in g.responses for x in r.logps or ())


def test_mode_and_weights_are_left_alone() -> None:
    model = stubs.model("gpt2")
    model.module.train()
    sample(model, stubs.prompts(3), 2, SampleSettings(max_tokens=4))
    assert model.module.training
    assert all(p.grad is None for p in model.module.parameters())
    dropped = sample(model, stubs.prompts(3), 2, SampleSettings(max_tokens=4))
    model.module.eval()
    assert sample(model, stubs.prompts(3), 2, SampleSettings(max_tokens=4)) == dropped


def test_no_prompts_gives_no_groups() -> None:
    assert sample(stubs.model(), [], 2) == []


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_context_limit(family: str) -> None:
    model, prompts = stubs.model(family, stop_ids=frozenset(), max_length=12), stubs.prompts(11, 4)
    groups = sample(model, prompts, 2, SampleSettings(max_tokens=30), seed=0)
    for group, room in zip(groups, (1, 8), strict=True):
        assert all(len(r.ids) == room and r.finish == "length" for r in group.responses)


def test_bad_prompts() -> None:
    model = stubs.model(max_length=8)
    with pytest.raises(DataError, match="no token ids"):
        sample(model, [Prompt(text="hello", id="x")])
    with pytest.raises(DataError, match="no token left") as error:
        sample(model, stubs.prompts(3, 8), settings=SampleSettings(max_concurrent=1))
    assert "8 tokens" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", -1), ("top_p", 0), ("top_p", 1.1), ("top_k", -1), ("max_tokens", 0)]
)
def test_bad_settings(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        SampleSettings(**{key: value})
    with pytest.raises(ConfigError, match="at least 1"):
        sample(stubs.model(), stubs.prompts(3), 0)


def test_there_is_one_seed_a_response() -> None:
    for count in (0, 3, 5):
        with pytest.raises(ConfigError, match="one seed a response"):
            sample(stubs.model(), stubs.prompts(3, 4), 2, seeds=range(count))


def test_stream_gives_every_token_in_order() -> None:
    seen: list[tuple[int, int]] = []
    settings = SampleSettings(max_tokens=8, max_concurrent=4)
    groups = sample(
        stubs.model(), stubs.prompts(5, 2, 9), 2, settings, seed=4, stream=lambda row, t: seen.append((row, t))
    )
    for row, response in enumerate(r for g in groups for r in g.responses):
        assert [t for r, t in seen if r == row] == list(response.ids)
    assert len(seen) == sum(len(r.ids) for g in groups for r in g.responses)


def test_pad_equal_to_eos_ends_and_is_kept() -> None:
    model = stubs.model(stop_ids=frozenset({2}))
    model.module.config.pad_token_id = 2
    script(model, [5, 2, 7])
    (group,) = sample(model, stubs.prompts(3), 1, SampleSettings(temperature=0, max_tokens=6))
    assert group.responses[0].ids == (5, 2)
    assert group.responses[0].finish == "stop"


def script(model, tokens: list[int]) -> None:
    """Makes the model say these tokens whatever it is asked."""
    left = iter(tokens)
    plain = model.logits

    def logits(hidden, head=None):
        out = torch.full_like(plain(hidden), -30.0)
        out[:, next(left)] = 30.0
        return out

    model.logits, model.decoder_agrees, model.decoding = logits, False, "packed"


def _spoken(text: str) -> tuple[int, ...]:
    return tuple(tiny.chat().tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [
        ("yes it is so", ("it",), "yes "),
        ("the cat sat. on the mat", (".",), "the cat sat"),
        ("Grüße 東京 🙂 ok", ("京",), "Grüße 東"),  # three bytes, which may be three tokens
        ("Grüße 東京 🙂 ok", ("🙂",), "Grüße 東京 "),
        ("one two three two", ("three", "two"), "one "),  # the earliest place wins
        ("ab stop", ("zz",), None),
    ],
)
def test_stop_strings(said: str, stop: tuple[str, ...], text: str | None) -> None:
    model = _chatting()
    ids = (*_spoken(said), model.chat.eos_id)
    script(model, [*ids, *ids])
    prompt = tiny.group(4).prompt
    (group,) = sample(model, [prompt], 1, SampleSettings(temperature=0, max_tokens=60, stop=stop))
    response = group.responses[0]
    assert response.finish == "stop"
    if text is None:
        assert response.ids == ids
        assert response.text == said
        return
    assert response.text == text
    assert response.ids == ids[: len(response.ids)]
    assert len(response.ids) < len(ids)
    assert any(s in model.chat.decode(response.ids) for s in stop)
    assert not any(s in model.chat.decode(response.ids[:-1]) for s in stop)
    assert len(response.logps) == len(response.ids)


def _chatting() -> LanguageModel:
    return LanguageModel(tiny.causal("llama", vocab_size=512), tiny.chat())


def test_looking_for_stop_strings_reads_the_end_of_an_answer_only() -> None:
    model = stubs.model(stop_ids=frozenset())
    settings = SampleSettings(max_tokens=48, stop=("never",))
    sample(model, stubs.prompts(3), 2, settings)
    assert sum(model.chat.decoded) < 2 * 48 * 40


def test_group_is_ready_to_train_on() -> None:
    model = stubs.model("llama", "float32")
    groups = sample(model, stubs.prompts(3, 5), 2, SampleSettings(max_tokens=5))
    assert all(isinstance(g, Group) and g.origin == "sampled" for g in groups)
    forest = pack(groups)
    assert sum(len(r.logps or ()) for g in groups for r in g.responses) == forest.R


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_what_a_stop_string_ends_is_a_prefix_of_what_would_have_been_sampled(family: str) -> None:
    """Ids and log-probs are those of the same seed without stop strings, up to the token that completes the first."""
    model = stubs.model(family, "float32", stop_ids=frozenset())
    full = SampleSettings(max_tokens=40, max_concurrent=3)
    groups = sample(model, stubs.prompts(*LENGTHS), 3, full, seed=5)
    stop = ("b", "XY", groups[0].responses[0].text[7:10])
    cut = sample(model, stubs.prompts(*LENGTHS), 3, replace(full, stop=stop), seed=5)
    ended = 0
    for group, other in zip(groups, cut, strict=True):
        for whole, found in zip(group.responses, other.responses, strict=True):
            n = len(found.ids)
            assert found.ids == whole.ids[:n]
            assert found.logps == pytest.approx(whole.logps[:n], abs=1e-5)
            first = min((whole.text.find(s) for s in stop if s in whole.text), default=None)
            assert found.text == (whole.text if first is None else whole.text[:first])
            assert found.finish == ("length" if first is None else "stop")
            if first is not None:
                ended += 1
                text = model.chat.decode(found.ids)
                assert any(text.endswith(s) for s in stop)
                assert not any(s in text[:-1] for s in stop)
    assert ended > 3


@pytest.mark.parametrize("stop", [("",), ("a", ""), "ab", (3,)])
def test_stop_strings_that_are_none_are_refused(stop: object) -> None:
    with pytest.raises(ConfigError, match="stop string"):
        SampleSettings(stop=stop)  # type: ignore[arg-type]


def test_a_stop_string_is_found_behind_tokens_without_text() -> None:
    chat = tiny.chat()
    model = LanguageModel(tiny.causal("llama", vocab_size=400), chat)
    (pad,) = chat.tokenizer.convert_tokens_to_ids(["<|pad|>"])
    half = [*_spoken("yes E"), *[pad] * 20, *_spoken("N"), *[pad] * 20, *_spoken("D it is")]
    script(model, half)
    settings = SampleSettings(temperature=0, max_tokens=len(half), stop=("END",))
    (group,) = sample(model, [Prompt(ids=(7, 8))], 1, settings)
    assert group.responses[0].text == "yes "
    assert group.responses[0].finish == "stop"
