"""Every method of the table, and what else a run may be made of, alone or sharded over the processes of torchrun.

`python -m tests.distributed.sharded_runs FOLDER`: all of them. With more arguments: `NAME STEPS [KILLED [MOMENT]]`, one
run with checkpoints, whose rank 0 is killed after step KILLED, or one of whose processes fails at a MOMENT of step 4's.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the table names the modules beside it without `tests`

from tests.reference.float64 import exact_norms  # noqa: E402
from tests.sampling.engine import Engine, serving  # noqa: E402
from tests.training import ranks  # noqa: E402

from models import tiny as families  # noqa: E402
from oracles import worlds  # noqa: E402
from table import ROWS  # noqa: E402
from tiltyard.batch.forest import pack  # noqa: E402
from tiltyard.distributed import checkpoint, part_files, processes  # noqa: E402
from tiltyard.distributed.sharded import Sharded, Trunk  # noqa: E402
from tiltyard.distributed.unread import blocks_unread  # noqa: E402
from tiltyard.errors import CheckpointError, CompositionError  # noqa: E402
from tiltyard.feedback import Grade, GradeScorer, Usage  # noqa: E402
from tiltyard.inputs.measure import preference  # noqa: E402
from tiltyard.methods import dpo, grpo, iterative_dpo, ppo, rloo, sft, spin  # noqa: E402
from tiltyard.models.adapters import adapt, clone_adapter, value_adapter, without_adapters  # noqa: E402
from tiltyard.models.language import LanguageModel  # noqa: E402
from tiltyard.models.load import load_language_model  # noqa: E402
from tiltyard.models.lora import Lora, blocks_of  # noqa: E402
from tiltyard.sampling import NativeSampler, SampleSettings  # noqa: E402
from tiltyard.sampling.background import Background  # noqa: E402
from tiltyard.sampling.vllm import VllmSampler  # noqa: E402
from tiltyard.scoring import FunctionScorer, Monitors  # noqa: E402
from tiltyard.scoring.weighted import WeightedScorer  # noqa: E402
from tiltyard.training.ahead import ahead  # noqa: E402
from tiltyard.training.algorithm import Algorithm, Models  # noqa: E402
from tiltyard.training.refcache import cache_ref_logps  # noqa: E402
from tiltyard.training.source import Offline  # noqa: E402
from tiltyard.types import Group, Prompt, Response  # noqa: E402
from training import tiny  # noqa: E402

AWAY, STEPS = 3, 2


def pairs(count: int = 3) -> tiny.Given:
    return tiny.Given([worlds.mixed_pairs(count, seed) for seed in range(STEPS)])


def of_table(name: str) -> tuple[Algorithm, Models]:
    row = ROWS[name]
    source = row.live() if row.live else row.source([row.groups(5, seed) for seed in range(STEPS)])
    return row.build(source), row.models(AWAY)


def adapters() -> tuple[Algorithm, Models]:
    """Policy and value are adapters on one backbone, which is the reference."""
    policy = adapt(tiny.policy(), Lora(rank=2))
    source, _ = ranks.online(5)
    value = value_adapter(policy, Lora(rank=2))
    return ppo(source, minibatches=2), Models(policy=policy, ref=without_adapters(policy), value=value)


def renewed(adapted: bool) -> tuple[Algorithm, Models]:
    """The reference is renewed after each step."""
    policy = adapt(tiny.policy(AWAY), Lora(rank=2)) if adapted else tiny.policy(AWAY)
    ref = clone_adapter(policy, "ref") if adapted else tiny.frozen(0)
    source = worlds.Played([worlds.mixed_pairs(5, seed) for seed in range(STEPS)])
    source.every = 1
    return spin(source), Models(policy=policy, ref=ref)


def cached() -> tuple[Algorithm, Models]:
    groups = worlds.mixed_pairs(9, 0)
    cache = cache_ref_logps(tiny.policy(0), groups, None)
    return dpo(Offline(groups, 5)), Models(policy=tiny.policy(AWAY), ref_cache=cache)


def recomputed() -> tuple[Algorithm, Models]:
    policy = tiny.policy(AWAY)
    policy.checkpoint_activations()
    return dpo(pairs()), Models(policy=policy, ref=tiny.frozen(0))


def tied(frozen: int = 0) -> tuple[Algorithm, Models]:
    policy = tiny.policy(AWAY, tie_word_embeddings=True)
    for block in policy.module.model.layers[:frozen]:
        block.requires_grad_(False)
    return sft(tiny.Given([tiny.demonstrations(7)])), Models(policy=policy)


def single() -> tuple[Algorithm, Models]:
    """float32, where one process alone computes the blocks by the kernels and a sharded model by torch."""
    policy = LanguageModel(tiny.policy(AWAY).module.float(), tiny.CHAT, "float32")
    return sft(tiny.Given([tiny.demonstrations(7)])), Models(policy=policy)


def renewing_rounds() -> tuple[Algorithm, Models]:
    from tests.training import round_runs

    return iterative_dpo(round_runs.rounds(every=1), ref_update="previous"), round_runs.models()


def adapter_ahead() -> tuple[Algorithm, Models]:
    """A sampler in a thread, with a copy of a backbone that is spread too."""
    policy = adapt(tiny.policy(), Lora(rank=2))
    source, _ = ranks.online(5)
    return grpo(ahead(source, 1)), Models(policy=policy, ref=without_adapters(policy))


def weighed() -> tuple[Algorithm, Models]:
    """Dynamic sampling: the reward model is called once a try, by processes with and without groups."""
    source, models = ranks.online(3)
    rule = WeightedScorer([(0.0, source.scorer), (1.0, FunctionScorer(ranks.coin))])
    return grpo(replace(source, scorer=rule), dynamic_sampling=4), models


def watched() -> tuple[Algorithm, Models]:
    source, models = ranks.online(1)
    return rloo(replace(source, scorer=FunctionScorer(ranks.coin), watch=Monitors([source.scorer]))), models


def masked() -> tuple[Algorithm, Models]:
    """Minibatches of one prompt, some of which have no token that counts."""
    source, models = ranks.online(5)
    return grpo(replace(source, settings=SampleSettings(max_tokens=8)), mask_truncated=True, minibatches=5), models


@dataclass
class OwnJudge:
    """Grades by the policy itself, one response after the other: processes make different numbers of passes."""

    model: LanguageModel
    usage: Usage = field(default_factory=Usage)

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        return [tuple(self._grade(g.prompt, r) for r in g.responses) for g in groups]

    def _grade(self, prompt: Prompt, response: Response) -> Grade:
        forest = pack([Group(prompt, (response,))], self.model.device)
        return Grade(float(self.model.logp_R(forest)[0].detach().mean()))


def judged() -> tuple[Algorithm, Models]:
    source, models = ranks.online(1)
    return rloo(replace(source, scorer=GradeScorer(OwnJudge(models["policy"]), moving=True))), models


def padded(reason: str) -> tuple[Algorithm, Models]:
    """Models that run padded; with a reason, each row alone."""
    models = Models(policy=tiny.policy(AWAY), ref=tiny.frozen(0))
    for model in models.present().values():
        model.force_padded("a test")
        model.rows_alone = reason
    return dpo(pairs()), models


def held_out(models: Models, step: int) -> dict[str, float]:
    """What a stage measures while it trains: log-ratios of the policy to log-probs that are on disk."""
    groups = worlds.mixed_pairs(7, 3)
    ref = cache_ref_logps(tiny.policy(0), groups, None)
    return preference(groups, 60, ref)(models, step)


def from_files(adapted: bool) -> tuple[Algorithm, Models]:
    """Models of a folder whose blocks stay in it until each process takes its rows; one process reads all of it."""
    blocks: Any = "files" if processes.world() > 1 else "memory"
    folder = Path(processes.broadcast_object(tempfile.mkdtemp()))
    if processes.is_main():
        module = families.causal("llama", dtype=torch.bfloat16, vocab_size=512, tie_word_embeddings=True)
        module.save_pretrained(folder)
        families.chat().tokenizer.save_pretrained(folder)
        atexit.register(shutil.rmtree, folder)
    processes.barrier()
    policy, ref = (load_language_model(folder, device="cpu", dtype="float64", blocks=blocks) for _ in range(2))
    ref.module.requires_grad_(False)
    assert (len(blocks_unread(policy.module)) > 0) == (processes.world() > 1)
    if adapted:
        policy = adapt(policy, Lora(rank=2))
        ref = without_adapters(policy)
    return dpo(pairs()), Models(policy=policy, ref=ref)


def engine(adapted: bool) -> tuple[Algorithm, Models]:
    """Responses from an engine of our own beside the first process, to which every process gives its rows."""
    policy, ref, served_one = (families.language("llama", "float64", vocab_size=320, seed=k) for k in (AWAY, 0, 0))
    ref.module.requires_grad_(False)
    if adapted:
        policy = adapt(policy, Lora(rank=2))
        ref = without_adapters(policy)
    models = Models(policy=policy, ref=ref)
    url, work = "", ""
    if processes.is_main():
        served, work = serving(Engine(served_one)), tempfile.mkdtemp()
        url = served.__enter__()
        atexit.register(shutil.rmtree, work)
        atexit.register(served.__exit__, None, None, None)
    url, work = processes.broadcast_object((url, work))
    source, _ = ranks.online(5)
    sampler = VllmSampler(Path(work), urls=[url], bound=1e-6)
    return grpo(replace(source, sampler=sampler, scorer=FunctionScorer(ranks.coin))), models


OTHERS: dict[str, Callable[[], tuple[Algorithm, Models]]] = {
    "lonely": lambda: ranks.make("lonely"),
    "ptx": lambda: ranks.make("ptx"),
    "shared": lambda: ranks.make("shared"),
    "minibatches": lambda: ranks.make("reinforce_pp"),
    "adapters": adapters,
    "ahead": lambda: ranks.make("ahead"),
    "adapter_ahead": adapter_ahead,
    "renewed": lambda: renewed(False),
    "renewed_adapter": lambda: renewed(True),
    "cached": cached,
    "recomputed": recomputed,
    "tied": tied,
    "frozen": lambda: tied(1),
    "single": single,
    "half": single,
    "previous": renewing_rounds,
    "weighed": weighed,
    "watched": watched,
    "masked": masked,
    "judged": judged,
    "padded": lambda: padded(""),
    "alone": lambda: padded("a test"),
    "measured": cached,
    "engine": lambda: engine(False),
    "engine_adapter": lambda: engine(True),
    "files": lambda: from_files(False),
    "files_adapter": lambda: from_files(True),
}
NAMES = (*ROWS, *OTHERS)


class Killed(tiny.Record):
    """Kills a process by SIGKILL, as a machine does that runs out of memory."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def fail_at(moment: str) -> None:
    """Makes a process die, or find its disk full, while it writes the checkpoint of step 4."""
    original = {"write": part_files.save_file, "rename": checkpoint.os.rename}

    def write(tensors: Any, path: Path) -> None:
        if "unfinished-00000004" in str(path) and processes.rank() == 1:
            if moment == "rank 1 full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original["write"](tensors, path)
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        original["write"](tensors, path)

    def rename(source: Any, target: Any) -> None:
        if "unfinished-00000004" in str(source):
            os.kill(os.getpid(), signal.SIGKILL)
        original["rename"](source, target)

    if moment.startswith("rank 1"):
        part_files.save_file = write  # type: ignore[assignment]
    else:
        checkpoint.os.rename = rename  # type: ignore[assignment]


def one(folder: Path, name: str, steps: int, killed: int = 0, moment: str = "") -> None:
    """A run of one case that is resumed from its folder; rank 0 writes its curve and its weights."""
    processes.start()
    if moment:
        fail_at(moment)
    algorithm, models = OTHERS[name]()
    how: dict[str, Any] = {"steps": steps, "lr": 1e-2, "folder": folder, "save_every": 2, "shard": True}
    try:
        tiny.fit(algorithm, models, sinks=[Killed(killed)], schedule="linear", tokens_per_microbatch=90, **how)
    except CheckpointError as error:
        (folder / f"error-{processes.rank()}.txt").write_text(f"{error}\n{error.fix}")
        raise
    if processes.is_main():
        trained = {f"{r}.{n}": t for r in algorithm.trains for n, t in models[r].trainable.state_dict().items()}
        save_file({n: t.contiguous().clone() for n, t in trained.items()}, folder / "trained.safetensors")
    processes.barrier()


@contextmanager
def noted(models: Models) -> Iterator[dict[str, set[str]]]:
    """Context: notes which models are made whole in every process, and which are sampled from."""
    roles: dict[str, set[str]] = {"whole": set(), "sampled": set()}
    make_whole, sync, submit = Trunk.make_whole, NativeSampler.sync, Background.submit

    def whole(trunk: Trunk) -> None:
        roles["whole"] |= {role for role, m in models.present().items() if any(m.module is x for x in trunk.models)}
        make_whole(trunk)

    def note(model: LanguageModel) -> None:
        own = {id(p) for p in model.module.parameters()}
        roles["sampled"] |= {r for r, m in models.present().items() if own & set(map(id, m.module.parameters()))}

    def synced(sampler: NativeSampler, model: LanguageModel, version: int) -> None:
        note(model)
        sync(sampler, model, version)

    def submitted(sampler: Background, model: LanguageModel, *rest: Any) -> Any:
        note(model)
        return submit(sampler, model, *rest)

    with (
        patch.object(Trunk, "make_whole", whole),
        patch.object(NativeSampler, "sync", synced),
        patch.object(Background, "submit", submitted),
    ):
        yield roles


def outside() -> str:
    """The error of a model that is called outside of a pass, in every process."""
    policy = tiny.policy()
    strategy = Sharded()
    strategy.place([policy.module], blocks_of(policy.backbone))
    try:
        policy.logp_R(pack(worlds.mixed_pairs(2, 0)))
    except CompositionError as error:
        return str(error)
    finally:
        strategy.release()
    return ""


def main(folder: Path) -> None:
    processes.start()
    found: dict[str, Any] = {}
    whole: dict[str, dict[str, list[str]]] = {}
    for name in NAMES:
        algorithm, models = OTHERS[name]() if name in OTHERS else of_table(name)
        record = tiny.Record()
        how: dict[str, Any] = {"steps": STEPS, "lr": 1e-2, "tokens_per_microbatch": 90, "shard": True}
        how["shard_dtype"] = "bfloat16" if name == "half" else "weights"
        how["evaluate"] = held_out if name == "measured" else None
        with noted(models) as roles:
            tiny.fit(algorithm, models, sinks=[record], **how)
        whole[name] = {key: sorted(value) for key, value in roles.items()}
        found[name] = record.rows
        if processes.is_main():
            trained = {f"{r}.{n}": t for r in algorithm.trains for n, t in models[r].trainable.state_dict().items()}
            save_file({n: t.contiguous().clone() for n, t in trained.items()}, folder / f"{name}.safetensors")
    if processes.is_main():
        (folder / "curves.json").write_text(json.dumps(found))
        (folder / "whole.json").write_text(json.dumps(whole))
    if processes.world() > 1:
        (folder / f"outside-{processes.rank()}.txt").write_text(outside())
    processes.barrier()


if __name__ == "__main__":
    with exact_norms():
        if len(sys.argv) > 2:
            one(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5]), *sys.argv[5:])
        else:
            main(Path(sys.argv[1]))
