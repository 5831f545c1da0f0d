"""One work of ours, in a process of its own: the training loop or the sampler through Tiltyard's Python API.

python -m benchmarks.speed.ours --work dpo --model bench-12m --inputs FOLDER --out FILE [--steps N] [--no-wait]
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.speed.inputs import read_pairs
from benchmarks.speed.machine import Steps, limits, wait_quiet
from benchmarks.speed.rows import STEPS, THREADS

import tiltyard
from tiltyard import (
    Algorithm,
    FunctionScorer,
    Group,
    LanguageModel,
    Models,
    NativeSampler,
    Offline,
    Online,
    Prompt,
    Response,
    RewardScorer,
    Run,
    SampleSettings,
    ScalarModel,
    fit,
    frozen_copy,
    load_language_model,
    load_scalar_model,
    ppo,
    reward_model,
    sample,
    sft,
    value_head,
)
from tiltyard.allocator import keep_freed_memory, unsupported
from tiltyard.methods import dpo, grpo, online_dpo, rloo
from tiltyard.models.adapters import adapt, without_adapters
from tiltyard.models.backbone import DType
from tiltyard.models.lora import Lora
from tiltyard.profiler import peak_memory_mib
from tiltyard.training.refcache import cache_ref_logps
from tiltyard.types import Preference

TOKENS = 128  # of a sampled response
VALUE_PROMPTS = 32  # prompts a step of PPO


class Inputs:
    """The models and data of one work, loaded when they are asked for; dtype, lora, batch, tokens: see `rows.Work`."""

    def __init__(
        self,
        folder: Path,
        model: str,
        dtype: DType = "float32",
        *,
        lora: bool = False,
        batch: int = 8,
        tokens: int | None = None,
    ):
        self.path, self.pairs = folder / "models" / model, read_pairs(folder)
        self.dtype, self.lora, self.batch = dtype, lora, batch
        self.tokens = tokens or TOKENS

    def language(self) -> LanguageModel:
        return load_language_model(self.path, device="cpu", dtype=self.dtype)

    def policy(self) -> LanguageModel:
        return adapt(self.language(), Lora()) if self.lora else self.language()

    def reference(self, policy: LanguageModel) -> LanguageModel:
        return without_adapters(policy) if self.lora else frozen_copy(policy)

    def scalar(self, *, trained: bool) -> ScalarModel:
        model = load_scalar_model(f"{self.path}-rm", device="cpu", dtype=self.dtype)
        model.module.requires_grad_(trained)
        return model

    def prompts(self, count: int = 256) -> list[Prompt]:
        return [_prompt(p, p["prompt_ids"]) for p in self.pairs[:count]]

    def comparisons(self) -> list[Group]:
        sides = [(p, tuple(Response(ids=tuple(p[key])) for key in ("chosen_ids", "rejected_ids"))) for p in self.pairs]
        return [Group(_prompt(p, p["prompt_ids"]), both, preference=Preference(ranks=(1, 2))) for p, both in sides]

    def texts(self) -> list[Group]:
        """The loss covers every token but the first, as TRL's does without a completion mask."""
        whole = [(p, [*p["prompt_ids"], *p["chosen_ids"]]) for p in self.pairs]
        return [Group(_prompt(p, ids[:1]), (Response(ids=tuple(ids[1:])),)) for p, ids in whole]


def _prompt(row: dict[str, Any], ids: list[int]) -> Prompt:
    return Prompt(text=row["raw_prompt"], ids=tuple(ids))


def different_characters(prompt: Prompt, response: Response) -> float:  # noqa: ARG001 - a rule's signature
    """The reward of the peers' script: cheap, and it differs between answers."""
    return len(set(response.text)) / 50.0


def rolled(given: Inputs, batch: int, n: int, reward: ScalarModel | None = None) -> Online:
    """Prompts that the policy answers with 128 tokens, scored by a reward model or the rule."""
    scorer = FunctionScorer(different_characters) if reward is None else RewardScorer(reward)
    return Online(given.prompts(), NativeSampler(), scorer, batch, n, SampleSettings(max_tokens=given.tokens))


def composed(task: str, given: Inputs) -> tuple[Algorithm, Models]:
    """The method and its models, with the peers' settings."""
    if task == "reward":
        return reward_model(Offline(given.comparisons(), given.batch)), Models(reward=given.scalar(trained=True))
    policy = given.policy()
    if task == "sft":
        return sft(Offline(given.texts(), given.batch)), Models(policy=policy)
    ref = given.reference(policy)
    if task == "dpo":
        return dpo(Offline(given.comparisons(), given.batch), beta=0.1), Models(policy=policy, ref=ref)
    if task == "dpo-cached":
        groups = given.comparisons()
        cache = cache_ref_logps(ref, groups, None)
        return dpo(Offline(groups, given.batch), beta=0.1), Models(policy=policy, ref_cache=cache)
    if task in ("grpo", "rloo"):
        source = rolled(given, given.batch, 4)
        method = grpo(source, beta=0.05) if task == "grpo" else rloo(source, beta=0.05, missing_eos="none")
        return method, Models(policy=policy, ref=ref)
    reward = given.scalar(trained=False)
    if task == "online_dpo":
        return online_dpo(rolled(given, 8, 2, reward), beta=0.1), Models(policy=policy, ref=ref, reward=reward)
    value = value_head(policy) if task == "ppo-shared" else given.scalar(trained=True)
    method = ppo(rolled(given, VALUE_PROMPTS, 1, reward), beta=0.05, missing_eos="none")
    return method, Models(policy=policy, ref=ref, reward=reward, value=value)


class Marks:
    """A sink of the loop: every report ends a step."""

    def __init__(self, steps: Steps):
        self.steps = steps
        self.metrics: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - a sink's signature
        self.steps.mark()
        self.metrics.append(metrics)

    def close(self) -> None:
        """Nothing is held."""


def trained(task: str, given: Inputs, steps: int, quiet: Callable[[], float]) -> dict[str, Any]:
    """Trains and gives seconds a step."""
    algorithm, models = composed(task, given)
    waited, marks = quiet(), Marks(Steps())
    fit(algorithm, models, Run(steps=steps, lr=1e-6, schedule="constant", warmup=0.0, save_every=0), sinks=[marks])
    return {"waited": waited, "last_metrics": marks.metrics[-1], **marks.steps.result()}


def sampled(given: Inputs, rows: int, steps: int, quiet: Callable[[], float]) -> dict[str, Any]:
    """Answers `rows` prompts, again and again; no answer may end before its last token, as in the peers' scripts."""
    model = given.language()
    model.chat.stop_ids = frozenset({-1})  # an id that nobody draws
    prompts, settings = given.prompts(rows), SampleSettings(max_tokens=given.tokens, max_concurrent=max(256, rows))
    sample(model, prompts[:4], 1, SampleSettings(max_tokens=4))
    waited, marks = quiet(), Steps(skip=1)
    count = 0
    for seed in range(steps):
        count = sum(len(r.ids) for g in sample(model, prompts, 1, settings, seed=seed) for r in g.responses)
        marks.mark()
    if count != rows * given.tokens:
        raise SystemExit(f"{count} tokens were sampled, {rows * given.tokens} expected")
    found = marks.result()
    return {"waited": waited, **found, "tokens_per_second": count / float(str(found["seconds"]))}


def tuned(off: bool) -> str:
    """Starts the process as the command line does, unless told not to; how it started."""
    if off:
        return "left alone: --no-tune"
    return "freed memory stays with the process" if keep_freed_memory() else unsupported()


def main() -> None:
    """Measures one work and writes what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, choices=[*STEPS, "limits"])
    parser.add_argument("--model", default="bench-12m")
    parser.add_argument("--rows", type=int, default=32, help="answers of a call")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lora", action="store_true", help="train adapters of rank 16 instead of all weights")
    parser.add_argument("--batch", type=int, default=8, help="rows, pairs or prompts a step")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a sampled answer")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--no-wait", action="store_true", help="do not wait for a quiet machine")
    parser.add_argument("--no-tune", action="store_true", help="leave the allocator alone")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    start = tuned(asked.no_tune)
    quiet: Callable[[], float] = (lambda: 0.0) if asked.no_wait else wait_quiet
    steps = asked.steps or STEPS.get(asked.work, 0)
    if asked.work == "limits":
        found: dict[str, Any] = {"waited": quiet(), **limits(asked.threads)}
    else:
        how = {"lora": asked.lora, "batch": asked.batch, "tokens": asked.tokens}
        given = Inputs(asked.inputs, asked.model, asked.dtype, **how)
        sampling = asked.work == "sample"
        found = sampled(given, asked.rows, steps, quiet) if sampling else trained(asked.work, given, steps, quiet)
    versions = {"tiltyard": tiltyard.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    found |= {
        "start": start,
        "rss_mib": peak_memory_mib(),
        "versions": {**versions, "python": platform.python_version()},
    }
    asked.out.write_text(json.dumps(found, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
