"""The rows of a real model: SmolLM2-135M, float32 and bfloat16, full training and LoRA, against TRL and vLLM.

`make bench BENCH="--only smol"`; `--smol` names the model's folder, by default what `python -m benchmarks.models
smollm2` makes. `--threads 1` where other work shares the machine: threads that wait for a core use CPU seconds.
"""

from __future__ import annotations

from benchmarks.speed.rows import ONLINE, Peer, Row, Work

MODEL, FOLDER = "smollm2", "smol"
TRAINED = {"train": 1.0}
# under LoRA a backward pass computes gradients of states alone: one forward pass more, and the reference's
LORA = {"logp": 3.0}
ONLINE_LORA = {"logp": 4.0}  # sampling, the reference, forward and backward
# task, with LoRA, title, ratio to be reached, passes, data
TASKS: tuple[tuple[str, bool, str, float, dict[str, float], str], ...] = (
    ("sft", False, "SFT", 2.5, TRAINED, "texts"),
    ("reward", False, "reward", 2.5, {"train_score": 1.0}, "pairs"),
    ("dpo", False, "DPO", 3.0, {"train": 1.0, "logp": 1.0}, "pairs"),
    ("dpo", True, "DPO, LoRA", 4.0, LORA, "pairs"),
    ("grpo", True, "GRPO, LoRA, 4 answers", 3.5, ONLINE_LORA, "sampled"),
    ("grpo", False, "GRPO, 4 answers", 3.5, ONLINE, "sampled"),
)


def rows(small: bool) -> tuple[Row, ...]:
    """The rows, of 8 prompts and answers of 128 tokens, or `small`: 2 prompts, answers of 32 tokens."""
    batch, tokens = (2, 32) if small else (8, 128)
    found = [_row(*task, dtype, batch, tokens) for task in TASKS for dtype in ("float32", "bfloat16")]
    return (*found, *(_sampling(dtype, batch * 4, tokens) for dtype in ("float32", "bfloat16")))


def _words(task: str, dtype: str, batch: int, tokens: int) -> tuple[str, ...]:
    sizes = {"task": task, "model": MODEL, "dtype": dtype, "batch": str(batch), "tokens": str(tokens)}
    return tuple(word for key, value in sizes.items() for word in (f"--{key}", value))


def _row(
    task: str,
    lora: bool,
    title: str,
    reach: float,
    passes: dict[str, float],
    data: str,
    dtype: str,
    batch: int,
    tokens: int,
) -> Row:
    name = f"smol-{task}{'-lora' if lora else ''}{'-bf16' if dtype == 'bfloat16' else ''}"
    work = Work(task, MODEL, dtype=dtype, lora=lora, batch=batch, tokens=tokens, folder=FOLDER)
    words = (*_words(task, dtype, batch, tokens), *(["--lora"] if lora else []))
    peer = Peer("TRL", "peer_side.py", words, folder=FOLDER)
    said = f"SmolLM2 {title}, {batch} {'prompts' if data == 'sampled' else 'rows'}, {dtype}"
    return Row(name, said, work, peer, reach, passes, data=data, groups=batch, answers=4, tokens=tokens)


def _sampling(dtype: str, rows: int, tokens: int) -> Row:
    work = Work("sample", MODEL, rows=rows, dtype=dtype, tokens=tokens, folder=FOLDER)
    peer = Peer("vLLM", "peer_side.py", _words("sample", dtype, rows, tokens), "vllm", folder=FOLDER)
    name = f"smol-sample{'-bf16' if dtype == 'bfloat16' else ''}"
    said = f"SmolLM2 sampling {rows} x {tokens} tokens, {dtype}"
    more = {"data": "sampled", "groups": rows, "answers": 1, "tokens": tokens}
    return Row(name, said, work, peer, 1.2, {"logp": 1.0}, rss=0.0, **more)
