"""Cached reference log-probs are the live reference's, are found again, and are never those of something else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiltyard import files
from tiltyard.batch.batch import Batch
from tiltyard.errors import CompositionError
from tiltyard.methods import dpo
from tiltyard.models.language import LanguageModel
from tiltyard.training import refcache
from tiltyard.training.algorithm import Models
from tiltyard.training.prepare import RefLogp
from tiltyard.training.refcache import cache_ref_logps, content_hash, group_key
from tiltyard.training.source import Offline
from tiltyard.types import Group, Preference, Prompt, Response

from . import tiny

EXACT = 1e-12


def pairs(n: int, seed: int = 0) -> list[Group]:
    """Pairs of which every third prefers the second answer; the first has a token without loss."""
    found = []
    for i, group in enumerate(tiny.rankings(n, seed)):
        first, second = group.responses[:2]
        ids = (*first.ids, 3, 4, tiny.EOS)
        first = replace(first, ids=ids, loss_spans=((0, 1), (2, len(ids))))
        ranks = (2, 1) if i % 3 == 0 else (1, 2)
        found.append(
            replace(group, responses=(first, second), preference=Preference(ranks=ranks), origin=f"f.jsonl:{i + 1}")
        )
    return found


def spoken(template: str) -> LanguageModel:
    """The tiny model with a chat template."""
    model = tiny.frozen()
    chat = SimpleNamespace(**vars(tiny.CHAT) | {"tokenizer": SimpleNamespace(chat_template=template)})
    return LanguageModel(model.module, chat, "float64")


def key_of(ref: LanguageModel, groups: list[Group]) -> str:
    return content_hash(ref, [group_key(g) for g in groups])


def direct(ref: LanguageModel, groups: list[Group]) -> torch.Tensor:
    """What the live reference says, group by group."""
    with torch.no_grad():
        return torch.cat([ref.logp_R(Batch.of([g], [0], 1).forest)[0] for g in groups])


# ----------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("budget", [8192, 40, 1])
def test_the_cache_says_what_the_reference_says(tmp_path: Path, budget: int) -> None:
    groups = pairs(9)
    ref = tiny.frozen()
    ref.module.train()  # a trained model that stands for its own start comes in this state, perhaps with dropout
    cache = cache_ref_logps(ref, groups, tmp_path, budget)
    assert ref.module.training
    ref.module.eval()
    tiny.assert_same(cache.logp_R(groups), direct(ref, groups), EXACT)
    mixed = [groups[i] for i in (7, 2, 2, 0)]  # any order, as batches come
    tiny.assert_same(cache.logp_R(mixed), direct(ref, mixed), EXACT)
    assert cache.logp_R([]).shape == (0,)  # a process without groups in this step


@pytest.mark.parametrize("slab", [1, 4, 9])
def test_written_slab_by_slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    """The file that grows while it is computed is the one that safetensors itself would have written."""
    groups = pairs(9)
    monkeypatch.setattr(refcache, "SLAB", slab)
    cache = cache_ref_logps(tiny.frozen(), groups, tmp_path)
    assert cache.path is not None
    tiny.assert_same(load_file(cache.path)["logp"], direct(tiny.frozen(), groups), EXACT)
    tiny.assert_same(cache.logp_R(groups[::-1]), direct(tiny.frozen(), groups[::-1]), EXACT)


def test_keys_that_begin_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the hash finds the place in the table, the other half decides."""
    groups = pairs(9)
    real = refcache.group_key
    for half in (lambda key: bytes(8) + key[8:], lambda key: key[:8] + bytes(8)):
        monkeypatch.setattr(refcache, "group_key", lambda group, half=half: half(real(group)))
        cache = cache_ref_logps(tiny.frozen(), groups, None)
        assert len(cache.table) == 9
        tiny.assert_same(cache.logp_R(groups[::-1]), direct(tiny.frozen(), groups[::-1]), EXACT)


def test_a_file_that_is_cut_while_it_is_used(tmp_path: Path) -> None:
    cache = cache_ref_logps(tiny.frozen(), pairs(6), tmp_path)
    assert cache.path is not None
    cache.path.write_bytes(cache.path.read_bytes()[:-8])
    with pytest.raises(CompositionError, match=r"changed while they were in use[\s\S]*computed anew"):
        cache.logp_R(pairs(6))


def test_dropout_of_the_trained_model_stays_out_of_the_cache(tmp_path: Path) -> None:
    groups = pairs(4)
    wet = tiny.policy(attention_dropout=0.5)
    wet.module.train()
    tiny.assert_same(cache_ref_logps(wet, groups, tmp_path).logp_R(groups), direct(tiny.frozen(), groups), EXACT)


def test_training_with_the_cache_is_training_with_the_reference(tmp_path: Path) -> None:
    """Every metric of every step, and the parameters; from the policy itself and from another model."""
    groups = pairs(11)
    ends = []
    for other in (0, 7):
        ref = tiny.frozen(other)
        live = Models(policy=tiny.policy(), ref=ref)
        rows = tiny.train(dpo(Offline(groups, 5), beta=0.3), live, steps=8)
        for _ in range(2):  # computed, then read
            cached = Models(policy=tiny.policy(), ref_cache=cache_ref_logps(ref, groups, tmp_path))
            found = tiny.train(dpo(Offline(groups, 5), beta=0.3), cached, steps=8)
            for row in (found[0], rows[0]) if other == 0 else ():
                row.pop("accuracy", None)  # at the start every margin is zero, give or take its last bit
            tiny.assert_same(found, rows, 1e-9)
            tiny.assert_same(tiny.parameters(cached.policy), tiny.parameters(live.policy), 1e-9)
        ends.append(rows[-1]["loss"])
    assert abs(ends[0] - ends[1]) > 1e-3


def test_no_reference_is_needed_beside_the_cache(tmp_path: Path) -> None:
    groups = pairs(3)
    cache = cache_ref_logps(tiny.frozen(), groups, tmp_path)
    batch = RefLogp()(Models(ref_cache=cache), Batch.of(groups, range(3), 3))
    tiny.assert_same(batch["ref_logp_R"], direct(tiny.frozen(), groups), EXACT)


def test_gradients_do_not_reach_the_policy_that_stands_for_its_start(tmp_path: Path) -> None:
    policy = tiny.policy()
    cache = cache_ref_logps(policy, pairs(3), tmp_path)
    assert not cache.logp_R(pairs(3)).requires_grad
    assert all(p.grad is None for p in policy.module.parameters())


# -------------------------------------------------------------------------------------------------------------- the key


def first_of(groups: list[Group], change: Callable[[Group], Group]) -> list[Group]:
    return [change(groups[0]), *groups[1:]]


def answer(group: Group, **changes: Any) -> Group:
    return replace(group, responses=(replace(group.responses[0], **changes), *group.responses[1:]))


CHANGED_DATA: dict[str, Callable[[list[Group]], list[Group]]] = {
    "a prompt's token": lambda gs: first_of(gs, lambda g: replace(g, prompt=replace(g.prompt, ids=(9, *g.prompt.ids)))),
    "an answer's token": lambda gs: first_of(gs, lambda g: answer(g, ids=(16, *g.responses[0].ids[1:]))),
    "the loss spans": lambda gs: first_of(gs, lambda g: answer(g, loss_spans=((0, 1),))),
    "no spans": lambda gs: first_of(gs, lambda g: answer(g, loss_spans=None)),
    "the answers swapped": lambda gs: first_of(gs, lambda g: replace(g, responses=g.responses[::-1])),
    "a group less": lambda gs: gs[:-1],
    "a group more": lambda gs: [*gs, pairs(1, seed=5)[0]],
    "another order": lambda gs: gs[::-1],
}


@pytest.mark.parametrize("change", CHANGED_DATA)
def test_other_data_have_another_key(change: str) -> None:
    groups = pairs(5)
    assert key_of(tiny.frozen(), CHANGED_DATA[change](groups)) != key_of(tiny.frozen(), groups)


def test_where_the_prompt_ends_is_part_of_the_key() -> None:
    one = Group(Prompt(ids=(2, 3)), (Response(ids=(4, 5)), Response(ids=(6,))))
    two = Group(Prompt(ids=(2, 3, 4)), (Response(ids=(5,)), Response(ids=(6,))))
    three = Group(Prompt(ids=(2, 3)), (Response(ids=(4,)), Response(ids=(5, 6))))
    assert len({group_key(g) for g in (one, two, three)}) == 3


def _nudged() -> LanguageModel:
    model = tiny.frozen()
    weight = next(iter(model.module.parameters()))
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0, dtype=weight.dtype))
    return model


def _shaped(**settings: Any) -> LanguageModel:
    model = tiny.frozen()
    for name, value in settings.items():
        setattr(model.module.config, name, value)
    return model


def _in(dtype: Any) -> LanguageModel:
    return LanguageModel(tiny.frozen().module, tiny.CHAT, dtype)


def _padded() -> LanguageModel:
    model = tiny.frozen()
    model.force_padded("a test")
    return model


CHANGED_MODELS: dict[str, Callable[[], LanguageModel]] = {
    "one weight by one bit": _nudged,
    "another seed": lambda: tiny.frozen(1),
    "the config": lambda: _shaped(rms_norm_eps=1e-3),
    "the arithmetic": lambda: _in("bfloat16"),
    "padded": _padded,
    "a template": lambda: spoken("{{ messages }}"),
}


@pytest.mark.parametrize("change", CHANGED_MODELS)
def test_another_reference_has_another_key(change: str) -> None:
    groups = pairs(2)
    assert key_of(CHANGED_MODELS[change](), groups) != key_of(tiny.frozen(), groups)


def test_two_templates_have_two_keys() -> None:
    groups = pairs(2)
    assert key_of(spoken("a"), groups) == key_of(spoken("a"), groups) != key_of(spoken("b"), groups)


def test_what_changes_no_number_changes_no_key() -> None:
    """Labels, texts, names, where the model's files lie, and whether it is in training."""
    groups = pairs(5)
    said = [replace(g, preference=Preference(shares=(0.2, 0.8)), scores=(0.0, 1.0), origin="elsewhere") for g in groups]
    said = [
        replace(answer(g, text="?", finish="length"), prompt=replace(g.prompt, id="?", meta={"a": 1})) for g in said
    ]
    model = _shaped(_name_or_path="somewhere/else")
    model.module.train()
    assert key_of(model, said) == key_of(tiny.frozen(), groups)


# ------------------------------------------------------------------------------------------------------------ the files


def test_a_second_run_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = pairs(6)
    first = cache_ref_logps(tiny.frozen(), groups, tmp_path)
    assert first.fresh
    assert first.path is not None
    assert first.path.exists()
    monkeypatch.setattr(refcache, "_compute", lambda *a: pytest.fail("it was on the disk"))
    again = cache_ref_logps(tiny.frozen(), groups, tmp_path)
    assert not again.fresh
    tiny.assert_same(again.logp_R(groups), first.logp_R(groups), 0)


def test_another_reference_or_other_data_lie_in_other_files(tmp_path: Path) -> None:
    made = [
        cache_ref_logps(tiny.frozen(seed), groups, tmp_path)
        for seed in (0, 1)
        for groups in (pairs(4), pairs(4, seed=3))
    ]
    assert all(cache.fresh for cache in made)
    assert len(list(tmp_path.iterdir())) == 4


def _wrong_key(path: Path) -> None:
    save_file({"logp": torch.zeros_like(load_file(path)["logp"])}, path, metadata={"content": "0" * 64})


def _no_key(path: Path) -> None:
    save_file({"logp": torch.zeros_like(load_file(path)["logp"])}, path)


def _no_numbers(path: Path) -> None:
    save_file({"other": torch.zeros(1)}, path, metadata={"content": key_of(tiny.frozen(), pairs(6))})


SPOILT: dict[str, Callable[[Path], Any]] = {
    "a wrong key inside": _wrong_key,
    "no key inside": _no_key,
    "no numbers inside": _no_numbers,
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_bytes(b"\x93NUMPY" + bytes(200)),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_file_is_made_anew(how: str, tmp_path: Path) -> None:
    groups = pairs(6)
    first = cache_ref_logps(tiny.frozen(), groups, tmp_path)
    assert first.path is not None
    said = first.logp_R(groups)
    SPOILT[how](first.path)
    second = cache_ref_logps(tiny.frozen(), groups, tmp_path)
    assert second.fresh
    tiny.assert_same(second.logp_R(groups), said, 0)
    assert not cache_ref_logps(tiny.frozen(), groups, tmp_path).fresh  # mended on the disk too


def test_killed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are computed and on their way to the disk: afterwards there is no cache, rather than half of one."""
    groups = pairs(6)
    child = os.fork()
    if not child:
        monkeypatch.setattr(files.os, "fsync", lambda handle: os.kill(os.getpid(), signal.SIGKILL))
        cache_ref_logps(tiny.frozen(), groups, tmp_path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".safetensors"]
    found = cache_ref_logps(tiny.frozen(), groups, tmp_path)
    assert found.fresh
    tiny.assert_same(found.logp_R(groups), direct(tiny.frozen(), groups), EXACT)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = cache_ref_logps(tiny.frozen(), pairs(3), None)
    assert found.path is None
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- what it holds


def test_duplicates_are_computed_once(tmp_path: Path) -> None:
    groups = pairs(4)
    twice = [*groups, *(replace(g, preference=Preference(ranks=(2, 1)), origin="again") for g in groups)]
    cache = cache_ref_logps(tiny.frozen(), twice, tmp_path)
    assert len(cache.table) == 4
    half = len(cache.logp)
    assert half == len(direct(tiny.frozen(), groups))
    found = cache.logp_R(twice)
    tiny.assert_same(found[:half], found[half:], 0)
    assert not cache_ref_logps(tiny.frozen(), groups, tmp_path).fresh  # the same content


def test_a_group_that_it_does_not_cover_is_an_error(tmp_path: Path) -> None:
    groups = pairs(5)
    cache = cache_ref_logps(tiny.frozen(), groups[:4], tmp_path)
    with pytest.raises(CompositionError, match=r"f\.jsonl:5[\s\S]*do not cover[\s\S]*ref_cache=false"):
        cache.logp_R(groups)
    other = first_of(groups, lambda g: answer(g, loss_spans=None))  # the same tokens, more of them in the loss
    with pytest.raises(CompositionError, match=r"f\.jsonl:1"):
        cache.logp_R(other[:1])
