"""Small tokenizers made here, with chat templates in the style of the families people use. Nothing is downloaded."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tiltyard.data import train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog. What is the capital of France? It is Paris.",
    "User: hello\n\nAssistant: hi there, how are you today?\n\n<think>\nhm\n</think>\n\n",
    "def f(x):\n    return x + 1\n\n\nI don't know 12345 ... [INST] [/INST] system user assistant",
    "Grüße aus Köln, naïve café, 東京 and 🙂 emoji",
] * 3

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# thinking is shown in the last turn and stripped from earlier ones; a last turn without it gets an empty one
QWEN3 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set words = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in m['content'] else '' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' + words }}{% else %}{{ words }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# the generation prompt opens the thinking, which finished turns do not show
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# end tokens swallow the newline that follows them, as Phi-3's do
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)

# the header stands inside the turn, whatever add_generation_prompt asks: older ChatML files
CHATML_NO_PROMPT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}\n"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# every finished turn loses its thinking, the last one too
STRIPS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
# the role tokens are added tokens that the tokenizer does not call special
PLAIN_ROLES = (
    "{% for m in messages %}{{ '<|Q|>' if m['role'] == 'user' else '<|A|>' if m['role'] == 'assistant' else '<|S|>' }}"
    "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ '<|E|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|A|>' }}{% endif %}"
)
# every turn of the assistant shows a thought, an empty one if it had none; its tags are tokens, not special ones
THINKS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% if '</think>' in m['content'] %}{{ m['content'] }}{% else %}{{ '<think></think>\n' + m['content'] }}{% endif %}"
    "{{ '<|user|>' if loop.last else '' }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# tokens added to a family's tokenizer that are not special
PLAIN_TOKENS = {
    "qwen3": ["<think>", "</think>"],
    "r1": ["<think>", "</think>"],
    "plain_roles": ["<|Q|>", "<|A|>", "<|S|>", "<|E|>"],
    "thinks": ["<think>", "</think>"],
}

# name: (special tokens, bos, eos, pad, template)
FAMILIES: dict[str, tuple[list[str], str | None, str | None, str | None, str | None]] = {
    "llama3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "<|begin_of_text|>",
        "<|end_of_text|>",
        None,
        LLAMA3,
    ),
    "qwen2": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        None,
        "<|im_end|>",
        "<|endoftext|>",
        CHATML,
    ),
    "chatml_base": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|endoftext|>", None, CHATML),
    "qwen3": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "<|endoftext|>", QWEN3),
    "mistral": (["<s>", "</s>"], "<s>", "</s>", "</s>", MISTRAL),
    "gemma": (
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<eos>",
        "<pad>",
        GEMMA,
    ),
    "gpt2": (["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", None),
    "r1": (["<s>", "</s>", "<|User|>", "<|Assistant|>"], "<s>", "</s>", None, R1),
    "phi3": (
        ["<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        "<s>",
        "<|endoftext|>",
        "<|endoftext|>",
        PHI3,
    ),
    "chatml_no_prompt": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", None, CHATML_NO_PROMPT),
    "vicuna": (["<s>", "</s>"], "<s>", "</s>", None, VICUNA),
    "zephyr": (["<s>", "</s>"], "<s>", "</s>", "</s>", ZEPHYR),
    "strips": (["<s>", "</s>", "<|User|>", "<|Assistant|>"], "<s>", "</s>", None, STRIPS),
    "plain_roles": (["<|endoftext|>"], None, "<|endoftext|>", None, PLAIN_ROLES),
    "thinks": (
        ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"],
        None,
        "<|endoftext|>",
        None,
        THINKS,
    ),
    "no_end": (["<|endoftext|>"], None, "<|endoftext|>", "<|endoftext|>", NO_END),
}


@cache
def backend_json(special: tuple[str, ...], bos: str | None) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=[AddedToken(t, special=True, rstrip=t in ("<|user|>", "<|end|>")) for t in special],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if bos and "<|user|>" not in special:  # like the real ones: called without care they add bos themselves
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return backend.to_str()


def family(name: str) -> PreTrainedTokenizerFast:
    """A fresh tokenizer: tests may change it."""
    if name == "tiltyard":
        return train_tokenizer(TEXTS, 500)
    if name == "llama2":
        return sentencepiece_like()
    special, bos, eos, pad, template = FAMILIES[name]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend_json(tuple(special), bos)),
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=template,
    )
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN_TOKENS.get(name, ())])
    return made


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2 and the first Mistral: a space is put before any text, bytes stand in for unknown characters."""
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.train_from_iterator(
        [text.replace("\n", " ") for text in TEXTS],
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False, limit_alphabet=120),
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    import json

    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=MISTRAL,
    )


ALL = [*FAMILIES, "tiltyard", "llama2"]
