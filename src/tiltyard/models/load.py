"""Getting models: from a folder or hub name, or from scratch by preset.

Weights are read from safetensors only; code from a hub is never run unless `trust_remote_code` is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from tiltyard.data.chat import Chat
from tiltyard.errors import CheckpointError, ConfigError, ModelError, nearest
from tiltyard.models.language import DType, LanguageModel, ScalarModel
from tiltyard.types import Group, Message, Prompt, Response

# width, layers, heads, key-value heads, feed-forward width: Llama shape
PRESETS: dict[str, tuple[int, int, int, int, int]] = {
    "1m": (128, 4, 4, 4, 344),
    "12m": (256, 8, 8, 8, 688),
    "60m": (512, 12, 8, 4, 1376),
}
TORCH_DTYPE: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.float32,  # weights in float32, arithmetic in bfloat16 (autocast)
    "float64": torch.float64,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports: a missing scalar head is expected here and said by us."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU. CUDA asked for where there is none is an error."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "CUDA was asked for and this machine (or this build of torch) has none",
            where="device",
            got=device,
            expected="auto or cpu",
            fix="set device=cpu, or install a CUDA build of torch; `tiltyard doctor` shows what is there",
        )
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError("unknown device", where="device", got=device, expected="auto, cpu, cuda, cuda:0") from error


def from_scratch(
    preset: str, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, context: int = 1024, dtype: DType = "float32"
) -> LanguageModel:
    """A Llama-shaped decoder with random weights and tied embeddings, sized by `preset` (1m, 12m, 60m)."""
    if preset not in PRESETS:
        raise ConfigError("unknown preset", where="arch", got=preset, fix=nearest(preset, PRESETS))
    width, layers, heads, kv_heads, inner = PRESETS[preset]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = LlamaForCausalLM(config)
    return LanguageModel(module.to(TORCH_DTYPE[dtype]), Chat(tokenizer, max_length=context), dtype)


def _resolve(source: str | Path, wanted: str = "config.json") -> str:
    path = Path(source).expanduser()
    if path.exists():
        inner = path / "model"  # a stage's folder has a config.json of its own, which is not a model's
        if (inner / wanted).exists():
            return str(inner)
        if not (path / wanted).exists():
            raise ModelError(
                "the folder holds no model",
                where=str(source),
                expected="a folder with config.json and *.safetensors",
                fix="give the folder that save_pretrained wrote (runs/NAME/STAGE/model)",
            )
        return str(path)
    if str(source).startswith((".", "/", "~", "runs/")) or str(source).count("/") > 1:
        raise ModelError(
            "no such model folder", where=str(source), fix="check the path; hub names look like owner/name"
        )
    return str(source)


@contextmanager
def _said_plainly(what: str, source: str) -> Iterator[None]:
    """Turns what transformers and safetensors raise on loading into one ModelError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the {what} could not be loaded",
            where=source,
            got=lines[0][:300],
            expected="a folder or hub name with config.json, safetensors weights and tokenizer files",
            fix="check the name and the files; models that need their own code load only with trust_remote_code=true",
        ) from error


def _from_pretrained(auto: Any, source: str, dtype: DType, trust: bool, may_miss: str = "", **kwargs: Any) -> Any:
    """The module, every weight of which came from the files but those whose name starts with `may_miss`."""
    with quiet(), _said_plainly("model", source):
        module, info = auto.from_pretrained(
            source,
            dtype=TORCH_DTYPE[dtype],
            use_safetensors=True,
            trust_remote_code=trust,
            output_loading_info=True,
            **kwargs,
        )
    missing = sorted(k for k in info["missing_keys"] if not (may_miss and k.startswith(may_miss)))
    if missing:
        raise ModelError(
            f"{len(missing)} weights of the model are not in its files",
            where=source,
            got=", ".join(missing[:4]),
            expected=f"all weights of {type(module).__name__}",
            fix="the files are incomplete, or they hold a model of another kind (a reward model has no language head)",
        )
    return module


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    name = _resolve(source, "tokenizer_config.json")
    with _said_plainly("tokenizer", name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def context_length(config: Any) -> int | None:
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)


def load_language_model(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: DType = "float32",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Loads any decoder that `AutoModelForCausalLM` knows, with its tokenizer and chat template."""
    name = _resolve(source)
    module = _from_pretrained(AutoModelForCausalLM, name, dtype, trust_remote_code).to(pick_device(device))
    chat = Chat(load_tokenizer(name, trust_remote_code=trust_remote_code), max_length=context_length(module.config))
    return LanguageModel(module.eval(), chat, dtype)


def load_scalar_model(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: DType = "float32",
    seed: int = 0,
    trust_remote_code: bool = False,
) -> ScalarModel:
    """Loads a reward or value model. From a language model's folder, the trunk is taken and a new zero head is added.

    The new head starts at zero, so an untrained reward model scores everything 0 and a pairwise loss starts at ln 2.
    """
    name = _resolve(source)
    with _said_plainly("model", name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    fresh = not any("SequenceClassification" in a for a in (config.architectures or []))
    chat = Chat(tokenizer, max_length=context_length(config))
    # transformers reads the score at the rightmost token that is not pad: pad must not be what ends an answer
    pad = chat.pad_id if chat.pad_id != _closing_id(chat) else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _from_pretrained(
            AutoModelForSequenceClassification,
            name,
            dtype,
            trust_remote_code,
            may_miss="score." if fresh else "",
            num_labels=1,
            pad_token_id=pad,
        )
    module.to(pick_device(device))
    head = getattr(module, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError("this architecture has no scalar head in transformers", where=name)
    if fresh:
        nn.init.zeros_(head.weight)
    return ScalarModel(module.eval(), chat, dtype)


def _closing_id(chat: Chat) -> int:
    """The id that ends every encoded answer."""
    group = Group(Prompt(messages=(Message("user", "Hi"),)), (Response(text="Hi"),))
    return chat.encode_group(group).responses[0].ids[-1]


def value_from(source: ScalarModel) -> ScalarModel:
    """A value model that starts as a copy of the reward model: at the last token it says what the reward model says."""
    with source.plain():
        module = copy.deepcopy(source.module)
    return ScalarModel(module.requires_grad_(True), source.chat, source.dtype)


def scalar_from(model: LanguageModel) -> ScalarModel:
    """A reward or value model: a copy of a language model's trunk with a new scalar head that starts at zero."""
    with model.plain():
        config = copy.deepcopy(model.module.config)
    config.num_labels = 1
    config.pad_token_id = model.chat.pad_id if model.chat.pad_id != _closing_id(model.chat) else None
    module = AutoModelForSequenceClassification.from_config(config).to(model.device, TORCH_DTYPE[model.dtype])
    module.base_model.load_state_dict(model.backbone.state_dict())
    nn.init.zeros_(module.score.weight)
    return ScalarModel(module.eval(), model.chat, model.dtype)


def frozen_copy(model: LanguageModel) -> LanguageModel:
    """A reference: the same weights, no gradient, evaluation mode."""
    with model.plain():
        module = copy.deepcopy(model.module)
    return LanguageModel(module.eval().requires_grad_(False), model.chat, model.dtype)


def freeze_bottom(model: LanguageModel | ScalarModel, layers: int) -> int:
    """Freezes the embeddings and the lowest `layers` blocks; returns the number of frozen parameters.

    A head tied to the embeddings is frozen with them (that is what tying means).
    """
    if layers <= 0:
        return 0
    blocks = _blocks(model.backbone)
    if layers > len(blocks):
        raise ConfigError(
            "cannot freeze that many layers", where="freeze_layers", got=layers, expected=f"0 to {len(blocks)}"
        )
    embeddings = [part for part in model.backbone.modules() if isinstance(part, nn.Embedding)]  # positions too
    for part in [*embeddings, *blocks[:layers]]:
        part.requires_grad_(False)
    return sum(p.numel() for p in model.module.parameters() if not p.requires_grad)


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """The decoder's layers: its first list of modules, whatever the family calls it and wherever it stands."""
    return next((list(part) for part in backbone.modules() if isinstance(part, nn.ModuleList)), [])


DROPOUTS = ("attention_dropout", "hidden_dropout", "activation_dropout", "dropout", "layerdrop")


def set_dropout(module: nn.Module, p: float | Literal["model"]) -> None:
    """Sets every dropout of a model to `p`; `model` leaves the architecture's own values. 0 is the toolkit's default:
    policy, reference and value must agree at step 0, and dropout would make their log-probs differ (methods 2.1)."""
    if p == "model":
        return
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = p
        for name in DROPOUTS:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, p if name != "layerdrop" else 0.0)


def save_model(model: LanguageModel | ScalarModel, folder: Path) -> None:
    """Writes the model in Hugging Face form (safetensors, tokenizer, template): transformers, vLLM and PEFT load it."""
    settings = getattr(model.module, "generation_config", None)
    if settings is not None and isinstance(model, LanguageModel):
        settings.eos_token_id = sorted(model.chat.stop_ids)  # generate and vLLM stop where training said that turns end
    try:
        with model.plain(), quiet():
            model.module.save_pretrained(folder)
        model.chat.tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            "the model could not be written",
            where=str(folder),
            got=str(error),
            fix="free some disk space and run the same command again: it resumes from the last checkpoint",
        ) from error
