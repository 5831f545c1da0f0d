"""Functions that all loaders share: finding a model, loading it through transformers, naming what is wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from tiltyard.errors import CheckpointError, ConfigError, MissingDependency, ModelError, TiltyardError, nearest
from tiltyard.files import exists, user_path
from tiltyard.models import gguf_files
from tiltyard.models.backbone import DType, Origin
from tiltyard.models.blocks_in_files import unread_blocks
from tiltyard.models.folder import (
    ADAPTER,
    adapter_config,
    base_of,
    check_pointers,
    check_tokenizer,
    merge_adapter,
    origin_of,
    without_adapter,
)
from tiltyard.numerals import plural

# width, layers, heads, key-value heads, feed-forward width: Llama shape
PRESETS: dict[str, tuple[int, int, int, int, int]] = {
    "1m": (128, 4, 4, 4, 344),
    "12m": (256, 8, 8, 8, 688),
    "60m": (512, 12, 8, 4, 1376),
}
Quantize = Literal["none", "4bit"]
Blocks = Literal["memory", "files"]
TORCH_DTYPE: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.float32,  # weights in float32, arithmetic in bfloat16 (autocast)
    "float64": torch.float64,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Context: no progress bars or load reports of transformers; a missing scalar head is expected here."""
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


def preset_shape(name: str) -> tuple[int, int, int, int, int]:
    if name not in PRESETS:
        raise ConfigError("unknown preset", where="arch", got=name, fix=nearest(name, PRESETS))
    return PRESETS[name]


def resolve(source: str | Path, wanted: str = "config.json") -> str:
    """The folder that holds a model's files (of a stage's folder: its `model/`), or a hub name as it was given.

    The folder of an adapter is one too: its model is loaded and the adapter is merged into it. Of a GGUF file, or a
    folder of one, it is the folder of the cache that it was converted to.
    """
    path = user_path(source)
    if exists(path):
        inner = path / "model"  # a stage's folder has a config.json of its own, which is not a model's
        if (inner / "config.json").exists():
            return str(inner)
        if (file := gguf_files.gguf_of(path)) is not None:
            return str(gguf_files.converted(file))
        if not any((path / name).exists() for name in (wanted, "config.json", ADAPTER)):
            raise ModelError(
                "the folder holds no model",
                where=str(source),
                got=", ".join(sorted(one.name for one in path.iterdir())[:12]) if path.is_dir() else "a file",
                expected="a folder with config.json and *.safetensors, or with adapter_config.json; a .gguf file",
                fix="give the folder that save_pretrained wrote (runs/NAME/STAGE/model)",
            )
        return str(path)
    if str(source).startswith((".", "/", "~", "runs/")) or str(source).count("/") > 1:
        raise ModelError(
            "no such model folder", where=str(source), fix="check the path; hub names look like owner/name"
        )
    return str(source)


NEEDED = {
    "model": "a folder or hub name with config.json and weights in safetensors",
    "tokenizer": "tokenizer files (tokenizer.json, tokenizer_config.json) that transformers reads",
}


@contextmanager
def loading_errors(what: str, source: str) -> Iterator[None]:
    """Context: raises one ModelError for the errors of transformers and safetensors on loading."""
    try:
        yield
    except ImportError as error:
        raise MissingDependency(
            f"the {what} needs a package that is not installed",
            where=source,
            got=str(error).strip().splitlines()[0][:300],
            fix="install the package that it names, or take a model whose weights are not quantised that way",
        ) from error
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, TiltyardError):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the {what} could not be loaded",
            where=source,
            got=lines[0][:300],
            expected=NEEDED[what],
            fix="check the name and the files; models that need their own code load only with trust_remote_code=true",
        ) from error


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Context: raises one CheckpointError for the errors of a full or broken disk while a model is written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            "the model could not be written",
            where=str(folder),
            got=str(error),
            fix="free some disk space and run the same command again: it resumes from the last checkpoint",
        ) from error


def from_pretrained(
    auto: Any,
    source: str,
    dtype: DType,
    trust: bool,
    *,
    device: str,
    quantize: Quantize = "none",
    blocks: Blocks = "memory",
    may_miss: Callable[[str], bool] | None = None,
    **kwargs: Any,
) -> tuple[Any, Origin]:
    """Loads a module onto its device; only weights whose name `may_miss` allows may be missing in the files.

    Returns it with what its files were like.

    Raises:
        ModelError: weights that are missing, that no part of the model uses, or of another shape.
    """
    where = pick_device(device)
    four = quantize == "4bit"
    more = {"quantization_config": in_four_bits(where, dtype), "device_map": {"": where}} if four else {}
    base, adapted = base_of(source), adapter_config(source) is not None
    if four and adapted:
        raise ConfigError(
            "an adapter cannot be merged into weights of 4 bits",
            where="quantize",
            got=f"quantize=4bit for the adapter {source}",
            fix="merge it first (give the stage's model/), or set quantize=none",
        )
    check_pointers(base)
    with quiet(), loading_errors("model", base), without_adapter(base) as bare:
        how: dict[str, Any] = {
            "dtype": TORCH_DTYPE[dtype],
            "use_safetensors": True,
            "trust_remote_code": trust,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,  # they are errors too, and named below
            **more,
            **kwargs,
        }
        unread = blocks == "files" and not (four or adapted)
        module, info = (unread_blocks(auto, bare, how, where) if unread else None) or auto.from_pretrained(bare, **how)
    made = gguf_files.source_of(base)
    module.config._name_or_path = module.name_or_path = base if made is None else made["file"]
    notes = [*([] if made is None else [gguf_files.note_of(made)]), *_check_weights(module, info, base, may_miss)]
    origin = replace(origin_of(base), notes=tuple(notes))
    if adapted:
        with quiet(), loading_errors("model", source):
            module = merge_adapter(module, source)
        origin = replace(origin, notes=(*origin.notes, f"an adapter, merged into its model {base}"))
    if not four:  # 4 bits were put there as they were made
        module = _aligned(module._apply(lambda t: t if t.is_meta else t.to(where)))
    return module, origin


def _check_weights(module: Any, info: Any, source: str, may_miss: Callable[[str], bool] | None) -> list[str]:
    """Refuses weights that do not fit the model; returns a line about those of another head, which are left out."""
    kind = type(module).__name__
    if wrong := sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{plural(len(wrong), 'weight has', 'weights have')} another shape than the model",
            where=source,
            got=", ".join(f"{name} {tuple(found)}" for name, found, _ in wrong[:4]),
            expected=", ".join(f"{name} {tuple(made)}" for name, _, made in wrong[:4]),
            fix="config.json and the weights are not of one model: correct config.json (vocab_size, sizes, num_labels)",
        )
    missing = sorted(k for k in info["missing_keys"] if not (may_miss and may_miss(k)))
    if missing:
        raise ModelError(
            f"{plural(len(missing), 'weight of the model is', 'weights of the model are')} not in its files",
            where=source,
            got=", ".join(missing[:4]),
            expected=f"all weights of {kind}",
            fix="the files are incomplete, or they hold a model of another kind (a reward model has no language head)",
        )
    surplus = sorted(info["unexpected_keys"])
    inside = [key for key in surplus if _of_backbone(module, key)]
    if inside:
        raise ModelError(
            f"{plural(len(inside), 'weight in the files is', 'weights in the files are')} used by no part of the model",
            where=source,
            got=", ".join(inside[:4]),
            expected=f"the weights of {kind} as config.json describes it",
            fix="config.json describes a smaller model than the weights: correct it (num_hidden_layers, architectures)",
        )
    if not surplus or may_miss:
        return []
    return [
        f"{plural(len(surplus), 'weight of another head is', 'weights of another head are')} left out: "
        f"{', '.join(surplus[:4])}"
    ]


def _of_backbone(module: Any, key: str) -> bool:
    """True if a weight is none of a head, of which a folder may have others than the model that is made of it."""
    prefix, first = f"{module.base_model_prefix}.", key.split(".", 1)[0]
    if "pooler" in key:
        return False
    return key.startswith(prefix) or first in dict(module.base_model.named_children())


def _aligned(module: Any) -> Any:
    """Weights moved to where torch would have put them: in a file they begin wherever its header ends, and products of
    the same numbers from an odd place differ in their last bits."""
    for one in (*module.parameters(), *module.buffers()):
        if one.device.type == "cpu" and one.data_ptr() % 64:
            one.data = one.data.clone()
    return module


def in_four_bits(device: torch.device, dtype: DType) -> Any:
    """The configuration with which transformers loads a backbone in 4 bits (QLoRA's NormalFloat, its scales in 8 bits).

    Raises:
        ConfigError: no CUDA device, or no bitsandbytes.
    """
    if device.type != "cuda":
        raise ConfigError(
            "weights in 4 bits need a CUDA device",
            where="quantize",
            got=f"quantize=4bit on {device}",
            expected="a machine with CUDA",
            fix="set quantize=none; lora alone already leaves out gradients and moments of the backbone",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "weights in 4 bits need bitsandbytes, which is not installed",
            where="quantize",
            got="quantize=4bit",
            fix="pip install 'tiltyard[qlora]', or set quantize=none",
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "bfloat16" else TORCH_DTYPE[dtype],
    )


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; of an adapter's folder without one that of its model."""
    name = resolve(source, "tokenizer_config.json")
    if (Path(name) / ADAPTER).exists() and not (Path(name) / "tokenizer_config.json").exists():
        name = base_of(name)
    check_pointers(name)
    check_tokenizer(name)
    with loading_errors("tokenizer", name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def context_length(config: Any) -> int | None:
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)


def load_config(name: str, trust: bool) -> Any:
    base = base_of(name)
    check_pointers(base)
    with loading_errors("model", base):
        return AutoConfig.from_pretrained(base, trust_remote_code=trust)
