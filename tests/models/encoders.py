"""Tiny random-weight encoders with tokenizers of their families' kinds, made here."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tiltyard.data.chat import Chat
from tiltyard.data.tokenizer import for_encoder
from tiltyard.models.encoder import EncoderScalar, MaskedModel
from tiltyard.types import Group, Message, Prompt, Response

TEXTS = ["the cat sat on the mat . what is it ?", "user : yes , it is so . assistant : no , the land is far"] * 4
CONTEXT = 64
SHAPE: dict[str, Any] = {
    "vocab_size": 150,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    **{f"{token}_token_id": None for token in ("bos", "eos", "cls", "sep")},
}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "position_buckets": 8,
    "pooler_hidden_size": 32,
}

# family: (class name without the head, settings); the window of ModernBERT is shorter than the test sequences
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"type_vocab_size": 1}),
    "modernbert": ("ModernBert", {"local_attention": 6, "num_hidden_layers": 3}),
    "modernbert_mean": ("ModernBert", {"local_attention": 6, "num_hidden_layers": 3, "classifier_pooling": "mean"}),
    "deberta_v2": ("DebertaV2", DEBERTA),
    "electra": ("Electra", {}),
}
# what is run another way: (class name, settings, the part that differs)
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilebert": (  # its output layer is made of two matrices
        "MobileBert",
        {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32, "num_attention_heads": 2},
    ),
    "fnet": ("FNet", {}),  # mixes tokens without an attention mask: rows of one length only may share a batch
}


@cache
def wordpiece() -> Any:
    """As BERT's: no bos and no eos, but [CLS] before and [SEP] behind every text."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=names, show_progress=False)
    )
    return hf.BertTokenizer(vocab=backend.get_vocab())


@cache
def chat() -> Chat:
    return Chat(for_encoder(wordpiece()), max_length=CONTEXT)


def module(family: str, head: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """`head`: MaskedLM or SequenceClassification (with one label)."""
    name, settings = (FAMILIES | ODD)[family]
    settings = SHAPE | settings | {"num_labels": 1} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = getattr(hf, f"{name}For{head}")(getattr(hf, f"{name}Config")(**settings)).eval()
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return made.to(dtype)  # the same weights whatever the dtype


def masked(family: str, dtype: Any = "float64", **changes: Any) -> MaskedModel:
    wide = torch.float64 if dtype == "float64" else torch.float32
    return MaskedModel(module(family, "MaskedLM", dtype=wide, **changes), chat(), dtype)


def scalar(family: str, dtype: Any = "float64", **changes: Any) -> EncoderScalar:
    wide = torch.float64 if dtype == "float64" else torch.float32
    return EncoderScalar(module(family, "SequenceClassification", dtype=wide, **changes), chat(), dtype)


def documents(n: int = 6, seed: int = 0) -> list[Group]:
    """Texts of different lengths, as `chat` encodes them."""
    words = ["the", "cat", "sat", "on", "mat", "what", "is", "it", "yes", "so", "no", "land", "far"]
    stream = torch.Generator().manual_seed(seed)
    texts = []
    for i in range(n):
        picked = torch.randint(len(words), (2 + 5 * i % 17,), generator=stream).tolist()
        texts.append(" ".join(words[k] for k in picked))
    return [chat().encode_document(Group(Prompt(text="", id=str(i)), (Response(text=t),))) for i, t in enumerate(texts)]


def comparisons() -> list[Group]:
    """K of 1, 2 and 3 with answers of different lengths."""
    words = ["the cat sat", "yes", "what is the land of the mat ?", "it is so", "no , far", "on the mat"]
    groups = [
        Group(
            Prompt(messages=(Message("user", words[i]),), id=str(i)),
            tuple(Response(text=words[(i + k + 1) % 6]) for k in range(1 + i % 3)),
        )
        for i in range(6)
    ]
    return chat().encode_groups(groups)
