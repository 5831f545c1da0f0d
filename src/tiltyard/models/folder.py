"""The files of a model's folder: widths of weights, adapters, what is missing; read before transformers reads them."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tiltyard.errors import ModelError
from tiltyard.files import is_lfs_pointer
from tiltyard.models.backbone import Origin
from tiltyard.models.gguf_files import converted, gguf_of

ADAPTER = "adapter_config.json"
BACKBONE = "backbone.json"  # next to an adapter's weights: the hash of its backbone, and what else its model needs
TOKENIZERS = (  # any of them makes a tokenizer
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "spm.model", "source.spm", "bpe.codes", "vocab-src.json", "merges.txt", "sentencepiece.model",
)  # fmt: skip
WIDTHS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_pointers(folder: str) -> None:
    """Refuses files that git-lfs has yet to fetch.

    Raises:
        ModelError: a file of the folder is a pointer.
    """
    path = Path(folder)
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        if file.is_file() and is_lfs_pointer(file):
            raise ModelError(
                "the file is a Git LFS pointer: its content has not been fetched",
                where=str(file),
                got=f"{file.stat().st_size} bytes of text that name the content",
                expected="the file itself",
                fix="run `git lfs pull` in the folder it was cloned to, or download the file again",
            )


def check_tokenizer(folder: str) -> None:
    """Refuses a folder without a tokenizer by what is missing.

    Raises:
        ModelError: it has none of the files that a tokenizer is made of.
    """
    path = Path(folder)
    if not path.is_dir() or any((path / name).exists() for name in TOKENIZERS):
        return
    code = path / "tokenizer_config.json"
    if code.exists() and "auto_map" in _json(code):
        return  # the folder's own code reads files of its own
    if code.exists() and "Byt5" in str(_json(code).get("tokenizer_class", "")).title():
        return  # bytes need no vocabulary
    raise ModelError(
        "the folder has no tokenizer",
        where=str(path),
        got=", ".join(sorted(file.name for file in path.iterdir())[:12]),
        expected="tokenizer.json (or tokenizer.model, vocab.json, vocab.txt) beside the model",
        fix="copy the tokenizer's files (tokenizer*.json, special_tokens_map.json) from where the model comes from",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def weight_files(name: str) -> list[Path]:
    """The safetensors files of a folder, or of a hub name what the cache holds of them."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        single, index = (
            try_to_load_from_cache(name, file) for file in ("model.safetensors", "model.safetensors.index.json")
        )
        if isinstance(single, str):
            return [Path(single)]
        if not isinstance(index, str):
            return []
        folder = Path(index).parent
    shards = _json(folder / "model.safetensors.index.json").get("weight_map", {})
    single_file = folder / "model.safetensors"
    names = sorted(set(shards.values())) if shards and not single_file.exists() else [single_file.name]
    return [folder / file for file in names if (folder / file).exists()]


def origin_of(name: str) -> Origin:
    """The width of a model's weights in its files: what most bytes have, and that of each tensor."""
    found: dict[str, torch.dtype] = {}
    size: Counter[torch.dtype] = Counter()
    for file in weight_files(name):
        for key, kind, count in _header(file):
            if kind in WIDTHS:
                found[key] = WIDTHS[kind]
                size[WIDTHS[kind]] += count
    if not size:
        return Origin()
    return Origin(max(size, key=lambda one: (size[one], one.itemsize)), found)


def _header(path: Path) -> Iterator[tuple[str, str, int]]:
    """(name, dtype, bytes) of each tensor of a safetensors file, from its first bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if length < 1 << 28 else {}
        except ValueError:
            return  # broken: the loader says so
    for key, entry in header.items():
        if key != "__metadata__":
            start, end = entry["data_offsets"]
            yield key, entry["dtype"], end - start


def adapter_config(name: str) -> dict[str, Any] | None:
    """The settings of an adapter that lies in a folder or behind a hub name; None where there is none."""
    path = Path(name) / ADAPTER
    if not Path(name).is_dir():
        from transformers.utils.peft_utils import find_adapter_config_file

        try:
            found = find_adapter_config_file(name)
        except (OSError, ValueError):
            return None  # the loader names what is wrong
        if found is None:
            return None
        path = Path(found)
    return _json(path) if path.exists() else None


def base_of(name: str) -> str:
    """The folder or hub name that a model's own weights come from: of an adapter's folder the model it was trained on.

    Raises:
        ModelError: an adapter that does not name its model, or names a folder that is not there.
    """
    config = adapter_config(name)
    if config is None or ((Path(name) / "config.json").exists() and weight_files(name)):
        return name
    base = str(config.get("base_model_name_or_path") or "")
    here = Path(base).expanduser()
    for path in (here, Path(name) / here):
        file = gguf_of(path) if base else None
        if file is not None:
            return str(converted(file))
        if base and path.is_dir():
            return str(path / "model" if (path / "model" / "config.json").exists() else path)
    if base and base.count("/") <= 1 and not base.startswith((".", "/", "~")) and not here.parent.is_dir():
        return base
    raise ModelError(
        "the folder holds an adapter, and the model that it was trained on is not there",
        where=f"{name}/{ADAPTER}",
        got=f"base_model_name_or_path: {base or 'none'}",
        expected="a folder or hub name of the model under the adapter",
        fix="correct base_model_name_or_path, or give the folder of the merged model (runs/NAME/STAGE/model)",
    )


def has_scale(name: str) -> bool:
    """True for the folder of an adapter that was written here for a reward model, with the scale of its scores."""
    return "bias" in _json(Path(name) / BACKBONE)


def take_scale(model: Any, name: str) -> None:
    """Gives a scalar model the scale of scores that stands beside its adapter."""
    if has_scale(name):
        facts = _json(Path(name) / BACKBONE)
        model.bias, model.gain, model.compares = facts["bias"], facts["gain"], facts["compares"]


@contextmanager
def without_adapter(name: str) -> Iterator[str]:
    """Context: a folder with the model of a folder that holds an adapter beside it, which transformers would add."""
    folder = Path(name)
    if not (folder / ADAPTER).exists():
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="tiltyard-") as bare:
        for file in folder.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(bare) / file.name).symlink_to(file.resolve())
        yield bare


def merge_adapter(module: Any, name: str) -> Any:
    """The module with the adapter of a folder or hub name merged into its weights.

    Raises:
        ModelError: an adapter of a kind that cannot be merged, or of another model.
    """
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(name)
    config.task_type = None  # the module is what it is: a language model, or one with a scalar head
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            merged = PeftModel.from_pretrained(module, name, config=config).merge_and_unload()
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(
            "the adapter cannot be merged into its model",
            where=name,
            got=(str(error).strip().splitlines() or [type(error).__name__])[0][:300],
            expected="an adapter of weights (LoRA and its kin) that was trained on this model",
            fix="check base_model_name_or_path in adapter_config.json; merge prompt-tuned models by hand",
        ) from error
    if odd := [str(one.message) for one in said if "missing adapter keys" in str(one.message)]:
        raise ModelError(
            "the adapter's files do not hold all of its weights", where=name, got=odd[0][:300], fix="save it again"
        )
    merged.__dict__.pop("peft_config", None)
    return merged.eval().requires_grad_(True)
