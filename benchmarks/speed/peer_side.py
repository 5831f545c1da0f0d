"""TRL's or vLLM's side of the rows of a real model, in the peer's environment: the same ids, batch, dtype and adapters.

    PEERS_WORK=FOLDER TRL_PYTHON peer_side.py --task sft|reward|dpo|grpo|sample --model NAME [--dtype bfloat16] [--lora]

Reads FOLDER/models/NAME and FOLDER/pairs.json, which `inputs.py` wrote, and prints what `peers.py` reads: the form of
the peers' own scripts, with CPU seconds. Nothing of Tiltyard is imported here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

WORK = Path(os.environ.get("PEERS_WORK", "."))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
os.environ["HF_DATASETS_CACHE"] = str(WORK / "datasets")
warnings.filterwarnings("ignore")


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def different_characters(completions: list[str], **more: Any) -> list[float]:  # noqa: ARG001 - TRL's signature
    return [len(set(text)) / 50.0 for text in completions]


def settings(asked: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": str(WORK / "out"),
        "use_cpu": True,
        "bf16": asked.dtype == "bfloat16",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "logging_steps": 1000,
        "seed": 0,
        "max_steps": asked.steps,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": asked.batch,
    }


def made(asked: argparse.Namespace, pairs: list[dict[str, Any]]) -> Any:
    """The trainer of the task. Master weights are float32; `--dtype bfloat16` is autocast, as TRL's own `bf16`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import (
        DPOConfig,
        DPOTrainer,
        GRPOConfig,
        GRPOTrainer,
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )

    class Given(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **more: Any) -> Any:  # noqa: ARG002 - ids are given
            return dataset

    name = f"{asked.model}-rm" if asked.task == "reward" else asked.model
    folder, base = str(WORK / "models" / name), settings(asked)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loader = AutoModelForSequenceClassification if asked.task == "reward" else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=targets) if asked.lora else None
    more = {"processing_class": tokenizer, "peft_config": lora}
    if asked.task == "sft":
        rows = [{"input_ids": p["prompt_ids"] + p["chosen_ids"]} for p in pairs]
        args = SFTConfig(**base, max_length=512)
        return SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), **more)
    if asked.task == "reward":
        sides = ("chosen_ids", "rejected_ids")
        rows = [{side: p["prompt_ids"] + p[side] for side in sides} for p in pairs]
        args = RewardConfig(**base, max_length=512)
        return RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), **more)
    if asked.task == "dpo":
        rows = [{key: p[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")} for p in pairs]
        args = DPOConfig(**base, max_length=512, beta=0.1)
        return Given(model=model, args=args, train_dataset=Dataset.from_list(rows), **more)
    rows = [{"prompt": tokenizer.decode(p["prompt_ids"])} for p in pairs]
    base["per_device_train_batch_size"] = asked.batch * 4
    args = GRPOConfig(
        **base, num_generations=4, max_completion_length=asked.tokens, beta=0.05, generation_batch_size=asked.batch * 4
    )
    given = {"reward_funcs": different_characters, "args": args, "train_dataset": Dataset.from_list(rows)}
    return GRPOTrainer(model=model, **given, **more)


def trained(asked: argparse.Namespace, pairs: list[dict[str, Any]]) -> None:
    """Trains and prints the median step."""
    import torch
    import transformers
    import trl

    torch.set_num_threads(asked.threads)
    transformers.logging.set_verbosity_error()
    marks: list[tuple[float, float]] = []

    class Marks(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, **more: Any) -> None:  # noqa: ARG002
            marks.append((time.perf_counter(), cpu_seconds()))

        on_step_end = on_train_begin

    trainer = made(asked, pairs)
    trainer.add_callback(Marks())
    trainer.train()
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)]
    used = steps[1:] or steps  # the first one warms up
    wall, cpu = (statistics.median(step[i] for step in used) for i in (0, 1))
    print(f"versions trl {trl.__version__} transformers {transformers.__version__} torch {torch.__version__} |")
    print(f"median s/step {wall:.4f} cpu s/step {cpu:.4f} of {len(used)} steps")
    print(f"peak RSS MiB {peak_mib():.0f}")


def sampled(asked: argparse.Namespace, pairs: list[dict[str, Any]]) -> None:
    """Answers by vLLM in this process, none of which ends early; prints the median call."""
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        VLLM_DO_NOT_TRACK="1",
        VLLM_CACHE_ROOT=str(WORK / "vllm-cache"),
        OMP_NUM_THREADS=str(asked.threads),
    )
    import torch
    import vllm

    folder = str(WORK / "models" / asked.model)
    longest = max(len(p["prompt_ids"]) for p in pairs) + asked.tokens
    how: dict[str, Any] = {"dtype": asked.dtype, "max_model_len": longest, "max_num_seqs": 256, "seed": 0}
    engine = vllm.LLM(model=folder, enable_prefix_caching=False, enforce_eager=asked.eager, **how)
    ids = [{"prompt_token_ids": p["prompt_ids"]} for p in (pairs * asked.batch)[: asked.batch]]

    def answer(tokens: int) -> int:
        law = vllm.SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        return sum(len(o.outputs[0].token_ids) for o in engine.generate(ids, law, use_tqdm=False))

    answer(4)
    found = []
    for _ in range(asked.steps):
        wall, cpu = time.perf_counter(), cpu_seconds()
        tokens = answer(asked.tokens)
        found.append((time.perf_counter() - wall, cpu_seconds() - cpu))
    wall, cpu = (statistics.median(one[i] for one in found) for i in (0, 1))
    print(f"tokens {tokens} s {wall:.3f} tok/s {tokens / wall:.1f}")
    print(
        f"=== vLLM {vllm.__version__} torch {torch.__version__} median tok/s {tokens / wall:.1f} cpu s/step {cpu:.4f}"
    )
    print(f"RSS MiB self {peak_mib():.0f}")


def main() -> None:
    """Measures one work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=["sft", "reward", "dpo", "grpo", "sample"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--eager", action="store_true", help="vLLM without compiling")
    parser.add_argument("--batch", type=int, default=8, help="rows, pairs or prompts a step; answers of a call")
    parser.add_argument("--tokens", type=int, default=128, help="of a sampled answer")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    pairs = json.loads((WORK / "pairs.json").read_text())
    (sampled if asked.task == "sample" else trained)(asked, pairs)


if __name__ == "__main__":
    main()
