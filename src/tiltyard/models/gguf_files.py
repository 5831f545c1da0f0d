"""GGUF files as models: converted once into an ordinary folder of the cache, and read as that from then on.

transformers dequantises (extra `gguf`); reading the vocabulary alone takes it some 10 s, so the result is kept: float32
weights in safetensors, tokenizer, chat template and generation settings. A folder of the cache belongs to one state of
the file (path, size, time) and one version of the packages; it may be deleted at any time.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tiltyard.errors import CheckpointError, MissingDependency, ModelError
from tiltyard.files import cache_home, give_usual_mode, read_json, write_json
from tiltyard.numerals import plural

LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of all of them
SUFFIX, SOURCE, FORM = ".gguf", "source.json", "1"
FORGET = ("quantization_config", "_name_or_path", "_model_name_or_path")  # the saved weights are not quantised


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder without safetensors; else None.

    Raises:
        ModelError: a folder of several.
    """
    if path.is_file():
        return path if path.suffix.lower() == SUFFIX else None
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    found = sorted(one for one in path.iterdir() if one.suffix.lower() == SUFFIX)
    if len(found) > 1:
        raise ModelError(
            "the folder holds several GGUF files",
            where=str(path),
            got=", ".join(one.name for one in found[:8]),
            expected="one model",
            fix=f"name the file: {found[0]}",
        )
    return found[0] if found else None


def converted(file: Path) -> Path:
    """The ordinary folder of a GGUF file, made if it is not in the cache; it appears whole or not at all.

    Raises:
        MissingDependency: the package `gguf` is not installed.
        ModelError: a file that cannot be read, of a type or architecture that is not known, in parts; too little space.
    """
    _check_package(file)
    file = file.resolve()
    stat = file.stat()
    versions = [f"{name} {version(name)}" for name in ("gguf", "transformers")]
    state = "\0".join([FORM, str(file), str(stat.st_size), str(stat.st_mtime_ns), *versions])
    out = cache_home() / "gguf" / f"{file.stem}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    if (out / SOURCE).exists():
        return out
    facts = examine(file)
    _check_space(file, out, facts["parameters"])
    print(f"{file.name} is converted once, to {out}", file=sys.stderr, flush=True)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{file.stem}.", suffix=".making", dir=out.parent) as work:
            made = Path(work) / "model"
            convert(file, made, facts.pop("rope_factors"))
            write_json(made / SOURCE, {"file": str(file), **facts, "with": versions})
            give_usual_mode(made)
            if not (out / SOURCE).exists():  # another process may have been faster
                shutil.rmtree(out, ignore_errors=True)
                made.rename(out)
    except OSError as error:
        raise CheckpointError(
            "the converted GGUF file could not be written",
            where=str(out.parent),
            got=str(error),
            fix="free some space, or set TILTYARD_CACHE to a folder on another disk",
        ) from error
    return out


def source_of(folder: str) -> dict[str, Any] | None:
    """The facts about the file that a folder of the cache was made from; None for any other folder."""
    path = Path(folder)
    if path.parent != cache_home() / "gguf":
        return None
    return read_json(path / SOURCE)


def note_of(source: Mapping[str, Any]) -> str:
    """A line about a GGUF file that was read."""
    types = ", ".join(source["types"])
    return f"dequantised from {Path(source['file']).name} ({types}); trained and saved in float32"


def examine(file: Path) -> dict[str, Any]:
    """Returns what a GGUF file holds: `architecture`, `types` of its weights (most first), `parameters`, `licence`, and
    `rope_factors`, by which it divides rotary frequencies.

    Raises:
        ModelError: see `converted`.
    """
    with file.open("rb") as start:
        magic = start.read(4)
    if magic != b"GGUF":
        raise ModelError(
            "this is no GGUF file",
            where=str(file),
            got=f"{file.stat().st_size:,} bytes that do not begin with GGUF",
            expected="a file that begins with the letters GGUF",
            fix="download it again (a file of a few hundred bytes is a Git LFS pointer: `git lfs pull`)",
        )
    from gguf import GGUFReader
    from gguf.quants import _type_traits
    from transformers.modeling_gguf_pytorch_utils import read_field

    try:
        reader = GGUFReader(file)
        architecture = str(read_field(reader, "general.architecture")[0])
        parts = [int(one) for one in read_field(reader, "split.count")]
        licence = "".join(str(one) for one in read_field(reader, "general.license")[:1])
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise _unreadable(file, str(error)) from error
    if parts and parts[0] > 1:
        raise ModelError(
            "the GGUF file is one part of several",
            where=str(file),
            got=f"one of {parts[0]} parts",
            expected="a whole model in one file",
            fix=f"join them: llama-gguf-split --merge {file.name} whole.gguf",
        )
    known = {"F32", "F16", *(kind.name for kind in _type_traits)}
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        if tensor.tensor_type.name not in known:
            raise _unreadable(file, f"{tensor.name} of type {tensor.tensor_type.name}")
    types = [name for name, _ in sizes.most_common()]
    facts = {"architecture": architecture, "types": types, "parameters": sum(sizes.values()), "licence": licence}
    return facts | {"rope_factors": _rope_factors(reader, file, architecture)}


def _rope_factors(reader: Any, file: Path, architecture: str) -> list[float]:
    """The factors of Llama 3 by which frequencies are divided; [] for none. transformers reads no scaling from GGUF."""
    from transformers.modeling_gguf_pytorch_utils import read_field

    kind = "".join(str(one) for one in read_field(reader, f"{architecture}.rope.scaling.type")[:1])
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith("rope_")}
    found = tensors.pop("rope_freqs.weight", None)
    if tensors or (kind not in ("", "none") and "oss" not in architecture):
        raise _scaled(file, kind or ", ".join(tensors))
    factors = [] if found is None else [float(one) for one in found.data]
    return factors if any(one != 1.0 for one in factors) else []


def _llama3(config: Any, factors: Sequence[float], file: Path) -> dict[str, Any]:
    """The settings of a Llama 3 that divide its frequencies by these factors."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta = float(config.rope_parameters["rope_theta"])
    scaling = {"rope_type": "llama3", "rope_theta": theta, "factor": max(factors), **LLAMA_3}
    trial = copy.deepcopy(config)
    trial.rope_parameters = scaling
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](trial, "cpu")
    plain = theta ** -(torch.arange(len(factors)) / len(factors))
    if len(scaled) != len(factors) or not torch.allclose(plain / scaled, torch.tensor(factors), rtol=1e-3):
        raise _scaled(file, ", ".join(f"{one:.4g}" for one in factors[:64]))
    return scaling


def _scaled(file: Path, got: str) -> ModelError:
    return ModelError(
        "the GGUF file scales its rotary frequencies in a way that is not read from it",
        where=str(file),
        got=got,
        expected="no scaling, or that of Llama 3",
        fix="take the model's own folder (safetensors), whose config.json has the scaling",
    )


def convert(file: Path, out: Path, rope_factors: Sequence[float] = ()) -> int:
    """Dequantises a GGUF file to float32 and saves model and tokenizer; returns the number of parameters.

    Args:
        rope_factors: see `examine`.

    Raises:
        ModelError: transformers cannot read it, or it lacks weights of the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tiltyard.models.pretrained import loading_errors, quiet

    folder, name = str(file.parent), file.name
    bars = redirect_stderr(io.StringIO())
    with quiet(), bars, _architecture_errors(file), loading_errors("model", str(file)):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        how: dict[str, Any] = {"gguf_file": name, "dtype": torch.float32, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **how)
        read, info = loaded
        config = {key: value for key, value in read.config.to_dict().items() if key not in FORGET}
        if rope_factors:
            config["rope_parameters"] = _llama3(read.config, rope_factors, file)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(type(read.config)(**config))
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{plural(len(missing), 'weight of the model is', 'weights of the model are')} not in the GGUF file",
            where=str(file),
            got=", ".join(missing[:4]),
            expected=f"all weights of {type(read).__name__}",
            fix="take another conversion of the model, or its own folder (safetensors)",
        )
    with quiet():
        model.generation_config = read.generation_config
        model.config.dtype = torch.float32
        model.save_pretrained(out, state_dict=read.state_dict())
        tokenizer.save_pretrained(out)
    return sum(p.numel() for p in read.parameters())


@contextmanager
def _architecture_errors(file: Path) -> Iterator[None]:
    """Context: names an architecture that transformers does not read from GGUF files."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        yield
    except ModelError as error:
        found = re.search(r"architecture (\S+) is not supported|Unknown gguf model_type: (\S+)", str(error.got))
        if found is None:
            raise
        raise ModelError(
            "transformers cannot read GGUF files of this architecture",
            where=str(file),
            got=found[1] or found[2],
            expected=", ".join(sorted(GGUF_SUPPORTED_ARCHITECTURES)),
            fix="take the model's own folder (safetensors), or a newer transformers",
        ) from error


def _unreadable(file: Path, got: str) -> ModelError:
    return ModelError(
        "the GGUF file holds a type of weights that cannot be read, or is damaged",
        where=str(file),
        got=got[:300],
        expected="F32, F16, BF16, Q4_0 to Q8_0, K-quants and the other types that the package gguf dequantises",
        fix="take a file of another type (Q8_0, Q4_K_M), a newer gguf package, or the model's own folder (safetensors)",
    )


def _check_package(file: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependency(
            "a GGUF file needs the package gguf, which is not installed",
            where=str(file),
            got="no module named gguf",
            expected="gguf 0.10 or newer",
            fix="pip install 'tiltyard[gguf]'",
        )


def _check_space(file: Path, out: Path, parameters: int) -> None:
    """Refuses what fits neither the disk (float32) nor the memory."""
    import psutil

    needed = 4 * parameters
    here = next(one for one in out.parents if one.exists())
    for what, free, fix in (
        ("disk", shutil.disk_usage(here).free, "free some space, or set TILTYARD_CACHE to a folder on another disk"),
        ("memory", psutil.virtual_memory().available, "end other programs, or take a machine with more memory"),
    ):
        if free < needed * 1.1:
            raise ModelError(
                f"there is too little {what} for the dequantised model",
                where=f"{file} -> {out.parent}" if what == "disk" else str(file),
                got=f"{free / 2**20:,.0f} MiB free",
                expected=f"{needed * 1.1 / 2**20:,.0f} MiB ({parameters:,} weights in float32)",
                fix=fix,
            )
