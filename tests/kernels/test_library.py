"""The compiled file: built once, loaded only from a safe place, checked, and its failures are errors with a message."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels.test_native_decoder import module
from tiltyard.cli.doctor import examine
from tiltyard.errors import ModelError
from tiltyard.kernels import abi, backend, fused_ops, library
from tiltyard.sampling.distribution import sample_from_logits

needed = pytest.mark.skipif(library.load().handle is None, reason=f"the kernels are not compiled: {library.load().why}")


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TILTYARD_KERNELS", raising=False)
    library.load.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    library.load.cache_clear()


def built(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "tiltyard").glob("kernels-*.so"))


def planted(path: Path) -> None:
    """Another file in its place; the first is loaded, so it is not overwritten."""
    path.unlink()
    path.write_bytes(b"not a library")


@pytest.fixture
def quick_compiler(afresh: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The real compiler without optimisation, to build several times."""
    afresh.setattr(library, "FLAGS", ("-O0", "-fopenmp", "-shared", "-fPIC"))
    return afresh


@needed
def test_it_is_compiled_once(quick_compiler: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not library.load.cache_info().currsize
    assert "at first use" in library.state().why
    assert library.load().handle is not None
    assert library.state() == (True, library.load().why)
    (path,) = built(tmp_path)
    first = path.stat().st_mtime_ns
    library.load.cache_clear()
    assert library.state() == (True, library.compiler())
    assert library.load().handle is not None
    assert path.stat().st_mtime_ns == first


@needed
def test_a_file_or_folder_that_others_may_write_is_not_loaded(
    quick_compiler: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert library.load().handle is not None
    (path,) = built(tmp_path)
    planted(path)
    path.chmod(0o666)
    library.load.cache_clear()
    assert library.load().handle is not None, "it is built again"
    assert path.stat().st_mode & 0o077 == 0
    path.parent.chmod(0o777)
    planted(path)
    library.load.cache_clear()
    loaded = library.load()
    assert loaded.handle is not None, "it is built in a private folder"
    assert "for this process alone" in loaded.why
    assert "writable by others (mode 777)" in loaded.why
    assert path.read_bytes() == b"not a library"
    quick_compiler.setattr(os, "geteuid", lambda: 12345678)
    path.parent.chmod(0o700)
    if path.stat().st_uid:  # root's files are trusted
        library.load.cache_clear()
        assert "belongs to user" in library.load().why


@needed
def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = (
        "from tiltyard.kernels import library; library.FLAGS = ('-O0', '-fopenmp', '-shared', '-fPIC')\n"
        "assert library.load().handle is not None, library.load().why"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TILTYARD_KERNELS"} | {"XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(built(tmp_path)) == 1
    assert {path.name for path in (tmp_path / "tiltyard").iterdir()} == {".lock", built(tmp_path)[0].name}


@needed
def test_a_structure_of_another_size_is_refused(quick_compiler: pytest.MonkeyPatch) -> None:
    class Forest(ctypes.Structure):
        _fields_ = (*abi.Forest._fields_, ("more", abi.LONG))

    quick_compiler.setattr(abi, "STRUCTURES", (Forest,))
    loaded = library.load()
    assert loaded.handle is None
    assert f"structure Forest has {ctypes.sizeof(abi.Forest)} bytes in C and {ctypes.sizeof(Forest)} here" in loaded.why


HUGE = 1 << 50
ADDRESS = 1 << 12  # never read: the allocation fails first


@needed
@pytest.mark.parametrize("name", abi.ALLOCATES)
def test_memory_that_runs_out_is_an_error(name: str) -> None:
    segments, trees = torch.tensor([[0, HUGE]]), torch.tensor([0, 1])
    forest = abi.Forest(trees.data_ptr(), segments.data_ptr(), 1, 1, 1, 8, 1.0)
    model = abi.Model(0, 0, 0, 0, 0, 8, 1, 1, 8, 1e-5)
    gradients = abi.Gradients()
    arguments = {
        "decode_step": [ADDRESS] * 3 + [ctypes.addressof(model), ADDRESS, 1, HUGE, 0],
        "sample_tokens": [ADDRESS] * 4 + [1.0, 1, HUGE],
        "tree_attention_forward": [ADDRESS] * 5 + [ctypes.addressof(forest)],
        "tree_attention_backward": [ctypes.addressof(gradients), ctypes.addressof(forest)],
        "rms_norm_backward": [ADDRESS] * 5 + [1, HUGE, 1e-5],
        "weight_grad": [ADDRESS] * 3 + [1, 1, HUGE],
    }[name]
    with pytest.raises(ModelError, match=f"{name}: memory ran out"):
        library.call(name, *arguments)


@needed
def test_wrong_arguments_are_an_error() -> None:
    with pytest.raises(ctypes.ArgumentError):
        library.call("swiglu", 1.5, 0, 0, 0)
    with pytest.raises(TypeError):
        library.call("swiglu", 0)


def test_without_a_compiler_it_is_torch_and_doctor_shows_it(afresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value, why in (
        ("CC", "no-such-cc", "no C compiler"),
        ("TILTYARD_KERNELS", "off", "TILTYARD_KERNELS=off"),
    ):
        afresh.setenv(name, value)
        library.load.cache_clear()
        assert library.load() == (None, why)
        line = next(check for check in examine() if check.name == "kernels")
        assert why in line.detail
        chosen = backend.choose(module("llama"))
        assert (chosen.ops, chosen.decoder) == ("torch", "fused")
        assert why in chosen.describe()
        logits = torch.randn(4, 37)
        assert sample_from_logits(logits, 1.0, torch.rand(4), chosen)[0].shape == (4,)
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho wrong flags >&2\nexit 1\n")
    broken.chmod(0o755)
    afresh.setenv("CC", str(broken))
    afresh.delenv("TILTYARD_KERNELS")
    library.load.cache_clear()
    assert "wrong flags" in library.load().why


def test_the_sources_are_in_the_package() -> None:
    files = importlib.resources.files("tiltyard.kernels")
    for name in ("decode.c", "tree_attention.c", "fused_ops.c", "matmul.h"):
        assert (files / name).is_file()
    assert "kernels/*.[ch]" in (Path(__file__).parents[2] / "pyproject.toml").read_text()


@needed
def test_every_function_is_declared() -> None:
    source = "".join(path.read_text() for path in library.SOURCES)
    assert set(abi.ALLOCATES) <= set(abi.SIGNATURES)
    for name in abi.SIGNATURES:
        kind = "int" if name in abi.ALLOCATES else "void"
        assert f"\n{kind} {name}(" in source, name
    assert fused_ops.swiglu(torch.zeros(3), torch.ones(3)).tolist() == [0, 0, 0]
