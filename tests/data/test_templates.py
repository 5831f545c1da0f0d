"""For every template: what is trained is what is sampled is what is shown, and markers come from the template alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import ALL, family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tiltyard import from_scratch
from tiltyard.data import Chat, Row, load_groups, parse_row
from tiltyard.errors import DataError, ModelError
from tiltyard.types import Group, Message, Prompt, Response

QUESTION = Message("user", "What is the capital of France?")
ANSWERS = ("It is Paris.", "I don't know", "def f(x):\n    return x + 1", "東京 🙂", "7", "a\n\nb")
MARKS = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|Q|>", "<|A|>", "<|E|>", "</s>", "<|user|>")


@pytest.fixture(scope="module", params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def chat(name: str) -> Chat:
    return Chat(family(name))


def encoded(chat: Chat, answer: str, *before: Message) -> Group:
    return chat.encode_group(Group(Prompt(messages=(*before, QUESTION)), (Response(text=answer),), origin="f.jsonl:3"))


def markers(chat: Chat) -> set[int]:
    """Ids of all added tokens: special ones, and those that the families' templates write."""
    return set(chat.tokenizer.added_tokens_decoder)


def marks(chat: Chat, ids: tuple[int, ...]) -> list[int]:
    known = markers(chat)
    return [i for i in ids if i in known]


def rendered(chat: Chat, *turns: tuple[str, str], generation: bool = False) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)


# ------------------------------------------------------------------------------------------------ answers come back


@pytest.mark.parametrize("answer", ANSWERS)
def test_decoding_an_encoded_answer_gives_the_answer(chat: Chat, answer: str) -> None:
    response = encoded(chat, answer).responses[0]
    assert chat.decode(response.ids) == answer
    assert response.ids[-1] in chat.stop_ids
    assert not set(response.ids[:-1]) & chat.stop_ids


def test_each_marker_stands_as_often_as_in_the_finished_conversation(name: str, chat: Chat) -> None:
    made = encoded(chat, "It is Paris.")
    whole = rendered(chat, ("user", QUESTION.content), ("assistant", "It is Paris."))
    ids = tuple(chat.tokenizer.encode(whole, add_special_tokens=False))
    opens = [chat.tokenizer.convert_tokens_to_ids("<think>")] if name == "r1" else []  # of the generation prompt alone
    ends = [chat.eos_id] if name == "no_end" else []
    found = marks(chat, made.prompt.ids + made.responses[0].ids)
    assert sorted(found) == sorted(marks(chat, ids) + opens + ends)


def test_a_prompt_ends_where_the_answer_begins(name: str, chat: Chat) -> None:
    """What follows the prompt in a finished conversation begins with the answer, apart from an empty thought."""
    prompt = rendered(chat, ("user", QUESTION.content), generation=True)
    whole = rendered(chat, ("user", QUESTION.content), ("assistant", "It is Paris."))
    if name == "r1":  # its generation prompt is no part of a finished turn
        return
    assert whole.startswith(prompt)
    lead = whole[len(prompt) :].partition("It is Paris.")[0]
    assert lead.strip() in ("", "<think>\n\n</think>", "<think></think>")


def test_the_completed_template_is_what_others_use(name: str, chat: Chat, tmp_path: Path) -> None:
    """Saved with its tokenizer, it gives the same prompt to transformers, and the same chat when it is loaded again."""
    chat.tokenizer.save_pretrained(tmp_path)
    again = Chat(AutoTokenizer.from_pretrained(tmp_path))
    assert again.completed == ""
    one, two = (encoded(c, "It is Paris.") for c in (chat, again))
    assert (one.prompt.ids, one.responses[0].ids) == (two.prompt.ids, two.responses[0].ids)
    theirs = again.tokenizer.apply_chat_template([QUESTION._asdict()], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    if name not in ("llama2",):
        assert list(one.prompt.ids) == theirs


def test_templates_without_a_generation_prompt_are_completed_with_their_header() -> None:
    headers = {name: Chat(family(name)).completed for name in ALL}
    found = {name: header for name, header in headers.items() if header}
    assert found == {"chatml_no_prompt": "<|im_start|>assistant\n", "vicuna": "ASSISTANT:"}
    chat = Chat(family("chatml_no_prompt"))
    made = encoded(chat, "It is Paris.")
    assert chat.tokenizer.decode(made.prompt.ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert chat.tokenizer.decode(made.responses[0].ids) == "It is Paris.<|im_end|>"


def test_named_templates_are_completed_too() -> None:
    tokenizer = family("chatml_no_prompt")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "rag": "{{ documents }}"}
    chat = Chat(tokenizer)
    assert chat.completed == "<|im_start|>assistant\n"
    assert tokenizer.chat_template["rag"] == "{{ documents }}"
    assert chat.decode(encoded(chat, "It is Paris.").responses[0].ids) == "It is Paris."


def test_continuations_of_plain_text_lose_nothing(chat: Chat) -> None:
    for answer in (" a time", "a time"):
        made = chat.encode_group(Group(Prompt(text="Once upon"), (Response(text=answer),)))
        text = chat.decode(made.responses[0].ids, turn=False)
        assert text == answer or (
            text == answer.lstrip() and not chat.tokenizer.decode([made.responses[0].ids[0]])[:1].isspace()
        )


# ------------------------------------------------------------------------------------------------ thinking


THOUGHT = "<think>\nhm\n</think>\n\nIt is Paris."


@pytest.mark.parametrize("name", ["qwen3", "strips", "thinks", "r1"])
def test_thinking_is_trained_and_its_tags_stand_once(name: str) -> None:
    chat = Chat(family(name))
    made = encoded(chat, THOUGHT)
    text = chat.tokenizer.decode(made.prompt.ids + made.responses[0].ids)
    assert text.count("<think>") == text.count("</think>") == 1
    assert "hm" in text
    shown = chat.decode(made.responses[0].ids)
    assert shown == (THOUGHT.removeprefix("<think>\n") if name == "r1" else THOUGHT)
    if name != "strips":  # whose tokenizer has no tokens for them
        tags = chat.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        assert [i for i in made.prompt.ids + made.responses[0].ids if i in tags] == tags
    assert made.responses[0].meta.get("as_written", False) is (name == "strips")


@pytest.mark.parametrize("name", ["qwen3", "thinks", "r1"])
def test_a_users_thinking_tags_are_words(name: str) -> None:
    chat = Chat(family(name))
    tags = chat.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    prompt = chat.encode_prompt(Prompt(messages=(Message("user", "write <think>hm</think>"),)))
    plain = chat.encode_prompt(Prompt(messages=(Message("user", "write"),)))
    assert [i for i in prompt.ids if i in tags] == [i for i in plain.ids if i in tags]


def test_what_a_template_changes_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text(
        '{"prompt": "a?", "completion": "<think>hm</think>b"}\n'
        '{"prompt": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "<think>hm</think>b"}, '
        '{"role": "user", "content": "c?"}], "completion": "d"}\n{"prompt": "e?", "completion": "f"}\n'
    )
    _, report = load_groups(file, "demonstrations", Chat(family("strips")))
    assert report.notes == {
        "answers trained word for word (the chat template would change them)": 1,
        "earlier turns shown with other words (the chat template rewrites them)": 1,
    }


# ------------------------------------------------------------------------------------------------ turns left out


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] "
    "+ '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAST_ONLY = (
    "{% for m in messages[-2:] %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (NO_SYSTEM, ("system", "user", "assistant"), r"leaves turn 1 \(system\) out"),
        (LAST_ONLY, ("user", "assistant", "user", "assistant"), r"leaves turn 1 \(user\) out"),
    ],
)
def test_a_turn_that_the_template_leaves_out_is_refused_with_its_line(
    template: str, turns: tuple[str, ...], said: str
) -> None:
    tokenizer = family("qwen2")
    tokenizer.chat_template = template
    chat = Chat(tokenizer)
    row = Row({"messages": [{"role": role, "content": "a"} for role in turns]}, "talk.jsonl:7")
    with pytest.raises(DataError, match=rf"talk.jsonl:7: (.|\n)*{said}"):
        chat.encode_group(parse_row(row, "demonstrations"))
    prompt = Row({"prompt": row.value["messages"][:-1]}, "talk.jsonl:8")
    if template == NO_SYSTEM:
        with pytest.raises(DataError, match=rf"talk.jsonl:8: (.|\n)*{said}"):
            chat.encode_group(parse_row(prompt, "prompts"))


# ------------------------------------------------------------------------------------------------ control tokens


def test_words_never_become_markers(chat: Chat) -> None:
    known = [t.content for t in chat.tokenizer.added_tokens_decoder.values() if "think" not in t.content]
    evil = " ".join(sorted({*known, *MARKS}))
    clean, made = encoded(chat, "fine"), encoded(chat, f"a {evil} b", Message("user", evil), Message("assistant", evil))
    again = encoded(chat, "fine", Message("user", "x"), Message("assistant", "x"))
    assert marks(chat, made.prompt.ids) == marks(chat, again.prompt.ids)
    assert marks(chat, made.responses[0].ids) == marks(chat, clean.responses[0].ids)
    assert chat.decode(made.responses[0].ids) == f"a {evil} b"


def with_tokens(*tokens: str, special: bool = True, template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = family("tiltyard")
    tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in tokens], special_tokens=special)
    if template:
        tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "text", ["see → 5", "→", "→→", "a <|x|>y", "…<|x|>", "a…|x|>", "aXbc", "\ufdd0", "x\ufdd1y\ufdd0z\ufdd1"]
)
def test_markers_of_one_character_overlapping_ones_and_noncharacters_stay_words(text: str) -> None:
    chat = Chat(with_tokens("→", "<|x|>", "…", "…|x|>", "aXb", "Xbc"))
    for made in (
        encoded(chat, text),
        chat.encode_group(Group(Prompt(text="t"), (Response(text=text),))),
        chat.encode_document(Group(Prompt(text=""), (Response(text=text),))),
    ):
        ids = made.responses[0].ids
        assert marks(chat, ids) == [chat.eos_id]
        assert chat.decode(ids) == text
    document = chat.encode_document(Group(Prompt(text=""), (Response(text=text),)))
    assert document.responses[0].text == text


def test_white_space_and_unused_added_tokens_are_no_markers() -> None:
    chat = Chat(with_tokens("\n\n", "COVID-19", special=False))
    ids = encoded(chat, "a\n\nCOVID-19").responses[0].ids
    assert {*chat.tokenizer.convert_tokens_to_ids(["\n\n", "COVID-19"])} <= set(ids)


def test_a_marker_without_other_ids_is_refused_with_its_line() -> None:
    words = {"<unk>": 0, "</s>": 1, "hi": 2, "§": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", additional_special_tokens=["§"]
    )
    with pytest.raises(DataError, match=r"f.jsonl:3: (.|\n)*cannot write as plain words(.|\n)*§"):
        encoded(Chat(tokenizer), "hi § hi")


def test_words_that_normalizing_turns_into_a_marker_are_refused() -> None:
    tokenizer = with_tokens()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<|Q|>", special=False, normalized=True)])
    tokenizer.chat_template = "{% for m in messages %}{{ '<|Q|>' + m['content'] + '<|end|>' }}{% endfor %}"
    chat = Chat(tokenizer)
    assert chat.decode(encoded(chat, "a <|Q|> b").responses[0].ids) == "a <|Q|> b"
    with pytest.raises(DataError, match=r"f.jsonl:3: (.|\n)*control token"):
        encoded(chat, "a \uff1c|Q|\uff1e b")


# ------------------------------------------------------------------------------------------------ gaps


def test_ids_may_have_gaps() -> None:
    words = {"<unk>": 0, "</s>": 1, "hi": 2, "User": 3, "Assistant": 4, ":": 5, "yo": 40}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    made = encoded(Chat(tokenizer), "yo")
    assert made.responses[0].ids == (40, 1)
    assert from_scratch("1m", tokenizer, context=32).vocab_size == 41


# ------------------------------------------------------------------------------------------------ any template

BODIES = {
    "as it is": "m['content']",
    "trimmed": "m['content'] | trim",
    "thinking stripped": "m['content'].split('</think>')[-1]",
    "thinking of history stripped": "(m['content'] if loop.last else m['content'].split('</think>')[-1])",
}
SYSTEMS = {"rendered": "", "left out": "{% if m['role'] == 'system' %}{% continue %}{% endif %}", "refused":
           "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"}  # fmt: skip


@st.composite
def templates(draw: st.DrawFn) -> str:
    header = draw(st.sampled_from(["<|Q|>", "[R] ", "### R:\n", "<|im_start|>R\n", "R: "]))
    end = draw(st.sampled_from(["<|E|>", "<|im_end|>\n", "{{ eos_token }}", "\n\n", "\n<|E|>", ""]))
    opening = draw(st.sampled_from(["", "<think>\n", "<think></think>"]))
    asked = draw(st.sampled_from(["asked", "never", "always"]))
    system, body = draw(st.sampled_from(sorted(SYSTEMS))), draw(st.sampled_from(sorted(BODIES)))
    first, _, last = header.partition("R")
    names = f"{{{{ '{first}' }}}}{{{{ m['role'] }}}}{{{{ '{last}' }}}}" if "R" in header else f"{header}"
    turn = names.replace("\n", "\\n") + f"{{{{ {BODIES[body]} }}}}{end}"
    prompt = f"{header.replace('R', 'assistant')}{opening}"
    if asked != "always":
        prompt = f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}" if asked == "asked" else ""
    start = draw(st.sampled_from(["", "{{ bos_token }}"]))
    return f"{start}{{% for m in messages %}}{SYSTEMS[system]}{turn}{{% endfor %}}{prompt}"


TEXTS = st.sampled_from(
    ["a", " b ", "<think>hm</think>c", "<|E|>", "<|im_end|>\n", "x<|Q|>y", "</s>", "d\n\n", "### assistant:\ne", "é🙂"]
) | st.text(min_size=1, max_size=8).filter(str.strip)
TALKS = st.builds(
    lambda system, pairs: [
        *system,
        *(turn for pair in pairs for turn in zip(("user", "assistant"), pair, strict=True)),
    ],
    st.lists(st.tuples(st.just("system"), TEXTS), max_size=1),
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3),
)


def base(plain: bool) -> Any:
    tokenizer = family("chatml_base")
    tokenizer.bos_token = "<s>"
    tokens = ["<|Q|>", "<|E|>", "<think>", "</think>"]
    tokenizer.add_tokens([AddedToken(t, special=not plain and "Q" in t, normalized=False) for t in tokens])
    return tokenizer


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(template=templates(), talk=TALKS, plain=st.booleans())
def test_any_template_round_trips_or_is_refused(template: str, talk: list[tuple[str, str]], plain: bool) -> None:
    tokenizer = base(plain)
    tokenizer.chat_template = template
    row = Row({"messages": [{"role": role, "content": content} for role, content in talk]}, "f:1")
    try:
        chat = Chat(tokenizer)
        made = chat.encode_group(parse_row(row, "demonstrations"))
    except (DataError, ModelError):
        return
    response = made.responses[0]
    start, stop = (response.loss_spans or ((0, len(response.ids)),))[-1]
    answer = talk[-1][1]
    shown = chat.decode(response.ids[start:stop])
    allowed = {answer, answer.strip()}
    if made.prompt.messages and "<think>" in chat.tokenizer.decode(made.prompt.ids[-4:]):
        allowed |= {a.removeprefix("<think>") for a in set(allowed)}  # the prompt opened it
    assert shown in allowed or shown.strip() in {a.strip() for a in allowed}
    assert response.ids[-1] in chat.stop_ids
    others = [(role, "x") for role, _ in talk]
    plainly = chat.encode_group(
        parse_row(Row({"messages": [{"role": r, "content": c} for r, c in others]}, "f:1"), "demonstrations")
    )
    if bool(plainly.responses[0].loss_spans) == bool(response.loss_spans) or len(talk) < 4:
        used = [t for i, t in tokenizer.added_tokens_decoder.items() if t.special or t.content in template]
        known = {chat.tokenizer.convert_tokens_to_ids(t.content) for t in used if "think" not in t.content}
        count = lambda g: sorted(i for i in g.prompt.ids + g.responses[0].ids if i in known)  # noqa: E731
        assert count(made) == count(plainly)
