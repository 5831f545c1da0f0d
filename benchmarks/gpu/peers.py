"""TRL's DPO on the same shape, pairs and machine, where it can be imported."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.report import Bench, Result, absent
from benchmarks.gpu.shapes import HALF, TINY, groups, language, tokenizer
from benchmarks.gpu.steps import SKIP, measured, work_of


def trl_beside(bench: Bench) -> Iterator[Result]:
    """The check: ours and TRL's step, or the line that TRL is not here."""
    if missing := absent("trl", "datasets", "accelerate"):
        yield Result("peers", "TRL", "not run", f"{', '.join(missing)} is not installed here")
        return
    compose, tokens, count = work_of(bench, "dpo")
    bench.forget_peak()
    theirs = trl_dpo(bench, count, steps=4 if bench.tiny else 8)
    bench.forget_peak()
    ours = measured(bench, *compose(), 3 if bench.tiny else 6)
    ratio = theirs["seconds"] / ours["seconds"]
    numbers = {"trl": theirs, "ours": ours, "ratio": ratio}
    memory = ""
    if ours["peak_mib"]:
        memory = f"; peak {ours['peak_mib']:,.0f} against {theirs['peak_mib']:,.0f} MiB"
    per_second = tokens.tree * count
    text = (
        f"dpo, {count} pairs a step: {per_second / ours['seconds']:,.0f} tokens/s against "
        f"{per_second / theirs['seconds']:,.0f}, {ratio:.2f} times as fast{memory}"
    )
    yield Result("peers", f"TRL {theirs['version']}", "measured", text, numbers)


def trl_dpo(bench: Bench, count: int, steps: int) -> dict[str, Any]:
    """TRL's trainer on token ids: the median step."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    shape, family = (TINY, "Llama") if bench.tiny else (HALF, "Qwen2")
    made = groups([(9, (12, 12)) if bench.tiny else (128, (256, 256))] * count * 4, shape[-1])
    rows = [
        {
            "prompt_ids": list(g.prompt.ids),
            "chosen_ids": list(g.responses[0].ids),
            "rejected_ids": list(g.responses[1].ids),
        }
        for g in made
    ]
    at: list[float] = []

    class Marks(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
            bench.ready()
            at.append(time.perf_counter())

    class Encoded(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
            return dataset  # it is token ids already

    module, ref = (language(family, shape, bench.device).module for _ in range(2))
    for one in (module, ref):
        one.config._attn_implementation = "sdpa"
    settings = trl.DPOConfig(
        output_dir=str(bench.folder / "trl"),
        use_cpu=bench.device.type == "cpu",
        bf16=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
        per_device_train_batch_size=count,
        max_length=1024,
        beta=0.1,
        max_steps=steps,
        learning_rate=1e-6,
        gradient_checkpointing=False,
    )
    trainer = Encoded(
        model=module,
        ref_model=ref,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[Marks()],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    seconds = statistics.median(b - a for a, b in zip(at[SKIP:-1], at[SKIP + 1 :], strict=True))
    del trainer
    torch.clear_autocast_cache()
    return {"seconds": seconds, "peak_mib": bench.peak_mib(), "version": trl.__version__}
