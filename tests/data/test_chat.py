"""Text becomes ids: boundaries, spans, ends, and the traps that the field fell into."""

from __future__ import annotations

import pytest
from families import ALL, family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiltyard.data import DEFAULT_TEMPLATE, PLAIN_TEMPLATE, Chat, Row, parse_row
from tiltyard.errors import DataError, ModelError
from tiltyard.types import Group, Message, Prompt, Response

U, A = "user", "assistant"
QUESTION = (Message(U, "What is the capital of France?"),)
MULTI = [
    {"role": U, "content": "hello"},
    {"role": A, "content": "hi there"},
    {"role": U, "content": "how are you today?"},
    {"role": A, "content": "I don't know"},
    {"role": U, "content": "What is Paris?"},
    {"role": A, "content": "It is the capital"},
]
REWRITING = ("qwen3", "r1")
ONCE = tuple(name for name in ALL if name not in REWRITING)


@pytest.fixture(scope="module", params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def chat(name: str) -> Chat:
    return Chat(family(name))


def rendered(chat: Chat, messages: tuple[Message, ...], generation: bool = False) -> str:
    plain = [{"role": m.role, "content": m.content} for m in messages]
    return chat.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generation)


def decoded(chat: Chat, ids: tuple[int, ...]) -> str:
    return chat.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def group(*answers: str, messages: tuple[Message, ...] = QUESTION) -> Group:
    return Group(Prompt(messages=messages), tuple(Response(text=a) for a in answers))


def conversation(turns: list[dict[str, str]]) -> Group:
    return parse_row(Row({"messages": turns}, "f.jsonl:1"), "demonstrations")


# -------------------------------------------------------------------------------------- prompts


def test_prompt_ids_in_training_are_those_of_sampling_and_of_transformers(chat: Chat) -> None:
    sampled = chat.encode_prompt(Prompt(messages=QUESTION)).ids
    assert chat.encode_group(group("It is Paris.")).prompt.ids == sampled
    theirs = chat.tokenizer.apply_chat_template(
        [{"role": U, "content": QUESTION[0].content}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert list(sampled) == theirs


def test_never_two_bos(chat: Chat) -> None:
    bos = chat.tokenizer.bos_token_id
    prompt = chat.encode_prompt(Prompt(messages=QUESTION))
    text = chat.encode_prompt(Prompt(text="Once upon"))
    started = chat.encode_prompt(Prompt(text=(chat.tokenizer.bos_token or "") + "Once upon"))
    document = chat.encode_document(Group(Prompt(text=""), (Response(text="Once upon"),)))
    talk = chat.encode_document(parse_row(Row({"messages": MULTI}, "f:1"), "text"))
    if bos is not None:
        assert prompt.ids.count(bos) == (
            bos in chat.tokenizer.encode(rendered(chat, QUESTION), add_special_tokens=False)
        )
        assert text.ids.count(bos) == 1
        assert started.ids.count(bos) == 1
        for made in (document, talk):
            start = made.prompt.ids + made.responses[0].ids
            assert start[0] == bos
            assert start[1] != bos
    else:
        assert text.ids[0] == chat.eos_id
    assert document.prompt.ids == (text.ids[0],)


def test_an_empty_text_prompt_still_has_a_token_to_condition_on(chat: Chat) -> None:
    assert len(chat.encode_prompt(Prompt(text="")).ids) == 1


def test_prompt_without_words_is_refused(chat: Chat) -> None:
    with pytest.raises(DataError, match="neither messages nor text"):
        chat.encode_prompt(Prompt(id="p7"))


# -------------------------------------------------------------------------------------- single answers


def test_segments_decode_to_the_rendered_conversation(name: str, chat: Chat) -> None:
    made = chat.encode_group(group("It is Paris."))
    whole = rendered(chat, (*QUESTION, Message(A, "It is Paris.")))
    assert made.responses[0].loss_spans is None
    if name in ("llama2", "phi3", "r1", "no_end"):  # what is decoded or rendered is not what was tokenised
        return
    text = decoded(chat, made.prompt.ids + made.responses[0].ids)
    assert whole.startswith(text)
    assert not whole[len(text) :].strip()  # at most the newlines after the end-of-turn token are left out


def test_answers_end_once_with_an_id_that_stops_sampling(chat: Chat) -> None:
    made = chat.encode_group(group("It is Paris.", "I don't know", "def f(x):\n    return x"))
    for response in made.responses:
        assert response.ids[-1] in chat.stop_ids
        assert not set(response.ids[:-1]) & chat.stop_ids
    assert made.responses[1].text == "I don't know"


def test_end_of_turn_may_differ_from_eos() -> None:
    chat = Chat(family("gemma"))
    end = chat.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert chat.stop_ids == {chat.eos_id, end}
    assert chat.encode_group(group("Paris")).responses[0].ids[-1] == end


def test_pad_equal_to_eos_changes_no_id_and_no_span(name: str) -> None:
    apart, same = family(name), family(name)
    same.pad_token = same.eos_token
    apart.add_special_tokens({"pad_token": "<|only_pad|>"})
    a, b = Chat(apart), Chat(same)
    assert b.pad_id == b.eos_id != a.pad_id
    for made in (group("It is Paris.", "hm"), conversation(MULTI)):
        assert a.encode_group(made) == b.encode_group(made)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0"), min_size=1, max_size=40).filter(str.strip)


@pytest.mark.parametrize("name", ["tiltyard", "llama3", "chatml_base", "mistral", "gemma", "gpt2"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(question=WORDS, answer=WORDS)
def test_any_words_survive(name: str, question: str, answer: str) -> None:
    chat = CHATS.setdefault(name, Chat(family(name)))
    made = chat.encode_group(group(answer, messages=(Message(U, question),)))
    kept = answer.strip() if name in ("llama3", "gemma") else answer  # their templates trim
    assert chat.decode(made.responses[0].ids) == kept
    assert made.prompt.ids == chat.encode_prompt(Prompt(messages=(Message(U, question),))).ids
    assert decoded(chat, made.prompt.ids) == rendered(chat, (Message(U, question),), True)


CHATS: dict[str, Chat] = {}


def test_special_tokens_in_somebodys_words_stay_words(chat: Chat) -> None:
    evil = " ".join(sorted(set(chat.tokenizer.all_special_tokens) | {"<|end|>", "<|im_end|>", "<end_of_turn>"}))
    clean = chat.encode_group(group("fine"))
    made = chat.encode_group(group(f"a {evil} b", messages=(Message(U, f"x {evil} y"),)))
    special = set(chat.tokenizer.all_special_ids) | chat.stop_ids

    def control(ids: tuple[int, ...]) -> list[int]:
        return [i for i in ids if i in special]

    assert control(made.prompt.ids) == control(clean.prompt.ids)
    assert control(made.responses[0].ids) == control(clean.responses[0].ids)
    assert chat.decode(made.responses[0].ids) == f"a {evil} b"
    document = chat.encode_document(Group(Prompt(text=""), (Response(text=f"a {evil} b"),)))
    assert control(document.responses[0].ids) == [chat.eos_id]
    assert document.responses[0].text == f"a {evil} b"


def test_a_tokenizer_that_prefixes_a_space_does_not_add_one_at_the_boundary() -> None:
    chat = Chat(family("llama2"))
    ids = chat.encode_group(group("Paris")).responses[0].ids
    assert "".join(chat.tokenizer.convert_ids_to_tokens(list(ids))) == "▁Paris</s>"


def test_a_generation_prompt_that_opens_thinking_is_kept_as_sampled() -> None:
    chat = Chat(family("r1"))
    made = chat.encode_group(group("hm</think>Paris"))
    assert decoded(chat, made.prompt.ids).endswith("<|Assistant|><think>\n")
    assert decoded(chat, made.responses[0].ids) == "hm</think>Paris</s>"


def test_text_prompts_with_answers(chat: Chat) -> None:
    made = chat.encode_group(Group(Prompt(text="Once upon"), (Response(text=" a time"),)))
    assert made.prompt.ids == chat.encode_prompt(Prompt(text="Once upon")).ids
    assert made.responses[0].ids[-1] == chat.eos_id


def test_what_was_sampled_is_never_tokenised_again(chat: Chat) -> None:
    sampled = Group(Prompt(messages=QUESTION, ids=(5, 6)), (Response(ids=(7, 8), text="x", finish="stop"),))
    assert chat.encode_group(sampled) is sampled
    assert chat.encode_prompt(sampled.prompt) is sampled.prompt


# -------------------------------------------------------------------------------------- several turns


@pytest.mark.parametrize("name", ONCE)
def test_loss_spans_are_the_assistants_words_and_ends(name: str) -> None:
    chat = Chat(family(name))
    made = chat.encode_group(conversation(MULTI))
    response = made.responses[0]
    assert made.prompt.messages == (Message(U, "hello"),)
    assert made.prompt.ids == chat.encode_prompt(Prompt(messages=(Message(U, "hello"),))).ids
    assert response.loss_spans is not None
    words = [chat.decode(response.ids[a:b]) for a, b in response.loss_spans]
    assert [w.strip() for w in words] == ["hi there", "I don't know", "It is the capital"]
    assert response.loss_spans[0][0] == 0
    assert response.loss_spans[-1][1] == len(response.ids)
    ends = [response.ids[b - 1] for _, b in response.loss_spans]
    assert ends[-1] in chat.stop_ids
    if name != "no_end":  # without an end token only the last turn can end, with eos
        assert set(ends) <= chat.stop_ids
    outside = [response.ids[a[1] : b[0]] for a, b in zip(response.loss_spans, response.loss_spans[1:], strict=False)]
    assert "how are you" in decoded(chat, outside[0])
    if name not in ("llama2", "phi3"):
        whole = rendered(chat, tuple(Message(**m) for m in MULTI))
        text = decoded(chat, made.prompt.ids + response.ids)
        assert whole.startswith(text.removesuffix("<|endoftext|>") if name == "no_end" else text)


@pytest.mark.parametrize("name", ["tiltyard", "qwen2", "chatml_base", "gemma", "phi3", "gpt2"])
def test_where_nothing_merges_across_turns_the_ids_are_those_of_the_whole_text(name: str) -> None:
    chat = Chat(family(name))
    made = chat.encode_group(conversation(MULTI))
    ids = made.prompt.ids + made.responses[0].ids
    whole = chat.tokenizer.encode(rendered(chat, tuple(Message(**m) for m in MULTI)), add_special_tokens=False)
    assert list(ids) == whole[: len(ids)]
    assert "\n".startswith(chat.tokenizer.decode(whole[len(ids) :]).replace("\n\n", "\n"))


@pytest.mark.parametrize("name", REWRITING)
def test_a_template_that_rewrites_history_trains_the_last_turn_as_it_will_be_used(name: str) -> None:
    chat = Chat(family(name))
    turns = [dict(m) for m in MULTI]
    turns[1]["content"] = "<think>\nhm\n</think>\n\nhi there"
    made = chat.encode_group(conversation(turns))
    before = tuple(Message(**m) for m in turns[:-1])
    assert made.prompt.messages == before
    assert made.prompt.ids == chat.encode_prompt(Prompt(messages=before)).ids
    assert made.responses[0].loss_spans is None
    assert made.responses[0].meta["last_turn_only"] is True
    assert made.responses[0].text == "It is the capital"
    assert chat.decode(made.responses[0].ids) == "It is the capital"


def test_comparing_answers_of_several_turns_under_a_rewriting_template_is_refused() -> None:
    turns = MULTI[:3]
    row = {"chosen": MULTI[:4], "rejected": [MULTI[0], {"role": A, "content": "go away"}, *turns[2:], MULTI[3]]}
    made = parse_row(Row(row, "pairs.jsonl:9"), "comparisons")
    with pytest.raises(DataError, match=r"pairs.jsonl:9(.|\n)*move the earlier turns into the prompt"):
        Chat(family("qwen3")).encode_group(made)
    pair = Chat(family("tiltyard")).encode_group(made)
    assert [len(r.loss_spans or ()) for r in pair.responses] == [2, 2]


def test_a_conversation_the_template_refuses_names_the_row() -> None:
    row = Row({"messages": [{"role": "system", "content": "Be brief."}, *MULTI[:2]]}, "talk.jsonl:3")
    with pytest.raises(DataError, match=r"talk.jsonl:3: the chat template rejects(.|\n)*System role not supported"):
        Chat(family("gemma")).encode_group(parse_row(row, "demonstrations"))


# -------------------------------------------------------------------------------------- documents


def test_documents_begin_and_end_and_lose_nothing(chat: Chat) -> None:
    text = "The quick brown fox. 東京 🙂 naïve\n\n" * 9
    made = chat.encode_document(Group(Prompt(text="", id="d"), (Response(text=text),)))
    assert made.prompt.ids == (chat.start_id,)
    assert made.responses[0].ids[-1] == chat.eos_id
    for size in (*range(4, 60), 10_000):  # among them sizes that leave eos alone at the end
        (pieces,) = chat.encode_documents([Group(Prompt(text="", id="d"), (Response(text=text),))], size)
        assert sum((p.responses[0].ids for p in pieces), ()) == made.responses[0].ids
        assert "".join(p.responses[0].text for p in pieces) == text
        assert all(p.prompt.ids == (chat.start_id,) and p.tokens <= size for p in pieces)
        assert all(len(p.responses[0].ids) > 1 for p in pieces)
        assert [p.responses[0].finish for p in pieces] == ["length"] * (len(pieces) - 1) + ["given"]


def test_conversations_as_documents_are_rendered(chat: Chat) -> None:
    made = chat.encode_document(parse_row(Row({"messages": MULTI}, "f:1"), "text"))
    assert made.responses[0].text.startswith(rendered(chat, tuple(Message(**m) for m in MULTI[:1]))[:10])
    assert made.responses[0].ids[-1] == chat.eos_id
    assert made.responses[0].ids[-2] != chat.eos_id


# -------------------------------------------------------------------------------------- building


def test_templates_are_given_to_tokenizers_without_one() -> None:
    bare = family("tiltyard")
    bare.chat_template = None
    assert Chat(bare).tokenizer.chat_template == DEFAULT_TEMPLATE
    assert Chat(family("gpt2")).tokenizer.chat_template == PLAIN_TEMPLATE


def test_no_eos_says_what_to_do() -> None:
    tokenizer = family("gpt2")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"no eos token(.|\n)*set tokenizer.eos_token"):
        Chat(tokenizer)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages[0]['content'] }}"])
def test_useless_templates_are_refused_at_once(template: str) -> None:
    tokenizer = family("gpt2")
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=r"chat template(.|\n)*tokenizer.chat_template"):
        Chat(tokenizer)


def test_many_at_once_equals_one_by_one(chat: Chat) -> None:
    groups = [group("It is Paris."), group("a", "b"), conversation(MULTI), group("It is Paris.")]
    assert chat.encode_groups(groups) == [chat.encode_group(g) for g in groups]
