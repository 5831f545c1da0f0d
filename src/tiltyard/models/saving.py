"""Writing a model as a folder that transformers, vLLM and PEFT load: of the source's width, and tried before step 1."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from tiltyard.distributed import processes
from tiltyard.distributed.parts import state_of
from tiltyard.errors import ModelError, TiltyardError
from tiltyard.files import give_usual_mode
from tiltyard.models.backbone import Backbone
from tiltyard.models.encoder import Encoder
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.lora import dequantized, merged_adapters
from tiltyard.models.pretrained import quiet, write_errors
from tiltyard.models.saving_spread import plan_of
from tiltyard.models.vocabulary import spare_pad

SaveDType = Literal["source", "float32", "bfloat16", "float16"]


def save_model(model: Backbone, folder: Path, *, dtype: SaveDType = "source") -> None:
    """Writes the model in Hugging Face form (safetensors, tokenizer, template): transformers, vLLM and PEFT load it.

    Args:
        dtype: width of the weights; `source`: each tensor as wide as in the files that the model came from, a new model
            as it is in memory. New scalar heads are written in float32.
    """
    with write_errors(folder):
        _write(model, folder, dtype)
        give_usual_mode(folder)


def save_spread(model: Backbone, folder: Path, *, dtype: SaveDType = "source") -> bool:
    """Writes what `save_model` writes of a model that is spread over processes; every process calls it.

    Each tensor is gathered by itself, and rank 0 writes it; no process holds the model. False, and nothing is written,
    of a model that must be whole: one on a backbone with adapters, one whose embeddings get a row for padding, and one
    whose weights are joined or cut when they are written.
    """
    module: Any = model.module
    if model.binding is not None or _needs_row(model):
        return False
    if isinstance(model, ScalarModel):
        model.fold()
    plan = plan_of(module, state_of(module), _width_of(model, dtype, saved_width(model, dtype)))
    if plan is None:
        return False
    with write_errors(folder):
        if processes.is_main():
            _write(model, folder, dtype, weights=False)
            (folder / "model.safetensors").unlink(missing_ok=True)  # an empty one
        plan.write(folder)
        if processes.is_main():
            give_usual_mode(folder)
    return True


def _needs_row(model: Backbone) -> bool:
    if not isinstance(model, ScalarModel) or isinstance(model, Encoder) or model.pad_id is not None:
        return False
    size = len(model.module.get_input_embeddings().weight)  # type: ignore[arg-type]
    return int(_padded(model, copy.deepcopy(model.module.config), {}).pad_token_id) >= size


def check_saving(model: Backbone, *, dtype: SaveDType = "source") -> None:
    """Writes all of the model but its weights into a folder that is removed again, before anything is trained.

    Raises:
        ModelError: what was read cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="tiltyard-") as folder, write_errors(Path(folder)):
            remove_tied_weights_from_state_dict(state_of(model.module), model.module)
            _write(model, Path(folder), dtype, weights=False)
    except TiltyardError:
        raise
    except Exception as error:
        raise ModelError(
            "the model can be loaded and not be saved again",
            where=str(model.chat.tokenizer.name_or_path),
            got=f"{type(error).__name__}: {error}",
            expected="files that transformers writes as it reads them",
            fix="correct config.json, generation_config.json or the tokenizer's files as it says",
        ) from error


def _write(model: Backbone, folder: Path, dtype: SaveDType, *, weights: bool = True) -> None:
    module: Any = model.module
    if isinstance(model, ScalarModel) and weights:
        model.fold()
    settings = getattr(module, "generation_config", None)
    if settings is not None and isinstance(model, LanguageModel):
        settings.eos_token_id = sorted(model.chat.stop_ids)  # generate and vLLM stop where training said that turns end
    width = saved_width(model, dtype)
    merged = merged_adapters(model.backbone, model.adapters) if weights else nullcontext()
    with model.plain(), merged, dequantized(module), quiet():
        tensors = _tensors(model, dtype, width) if weights else {}
        config, tokenizer = copy.deepcopy(module.config), model.chat.tokenizer
        if isinstance(model, ScalarModel) and not isinstance(model, Encoder) and model.pad_id is None:
            tokenizer = _padded(model, config, tensors)
        module.save_pretrained(folder, state_dict=tensors)
    for part in (config, config.get_text_config()):
        part.dtype = width  # save_pretrained wrote the width in memory
    config.architectures = [type(module).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _padded(model: ScalarModel, config: Any, tensors: dict[str, Tensor]) -> Any:
    """Gives a model without padding one in its config and in the copy of its tokenizer that is returned.

    transformers scores a batch of a decoder only where the config names a padding token. Where the tokenizer has none
    to spare, a new token gets one more row of the embeddings (zeros: no state is ever computed from it that is read).
    """
    module: Any = model.module
    table = module.get_input_embeddings().weight
    tokenizer = copy.deepcopy(model.chat.tokenizer)
    tokenizer.add_special_tokens({"pad_token": spare_pad(model.chat, len(table))})
    pad = int(tokenizer.pad_token_id)
    for part in (config, config.get_text_config()):
        part.pad_token_id = pad
    if pad >= len(table):
        for name, parameter in module.named_parameters():
            if parameter is table and name in tensors:
                more = tensors[name].new_zeros(pad + 1 - len(table), table.shape[1])
                tensors[name] = torch.cat([tensors[name], more])
        for part in (config, config.get_text_config()):
            part.vocab_size = pad + 1
    return tokenizer


def saved_width(model: Backbone, dtype: SaveDType) -> torch.dtype:
    """The width of most numbers in the folder that is written of a model."""
    if dtype != "source":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    return model.origin.width or next(p.dtype for p in model.module.parameters() if p.is_floating_point())


def _tensors(model: Backbone, dtype: SaveDType, width: torch.dtype) -> dict[str, Tensor]:
    """The module's tensors in the width of the folder; tied ones stay tied."""
    width_of = _width_of(model, dtype, width)
    done: dict[tuple[Any, ...], Tensor] = {}
    tensors = {}
    for name, tensor in state_of(model.module).items():
        asked = width_of(name, tensor)
        if tensor.dtype == asked:
            tensors[name] = tensor
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), asked)
        done[key] = tensors[name] = done[key] if key in done and tensor.numel() else tensor.to(asked)
    return tensors


def _width_of(model: Backbone, dtype: SaveDType, width: torch.dtype) -> Callable[[str, Tensor], torch.dtype]:
    """The width that a tensor of the module has in the folder, by its name."""
    widths: Mapping[str, torch.dtype] = model.origin.widths if dtype == "source" else {}
    wide = _kept_wide(model)

    def width_of(name: str, tensor: Tensor) -> torch.dtype:
        if not tensor.is_floating_point():
            return tensor.dtype
        return widths.get(name, torch.float32 if any(part in name for part in wide) else width)

    return width_of


def _kept_wide(model: Backbone) -> list[str]:
    """Names of parts that stay float32 if their width is in no file: those of the family's list, and scalar heads."""
    module: Any = model.module
    names = [*(getattr(module, "_keep_in_fp32_modules", None) or ())]
    names += getattr(module, "_keep_in_fp32_modules_strict", None) or ()
    if isinstance(model, ScalarModel):
        heads = [name for name, part in module.named_children() if part is not model.backbone]
        names += [f"{name}." for name in heads]
    return names
