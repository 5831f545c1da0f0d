"""TRL's side, in its own environment and process: trains on token ids that are given and prints what it computed.

    TRL_PYTHON trl_side.py WORK.json OUT.json

WORK holds the jobs and the data (`benchmarks.agree.peer`); nothing of Tiltyard is imported here.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl import (  # noqa: E402
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

Rows = list[dict[str, Any]]


class Recorded:
    """Keeps the loss of every step unrounded, and what the trainer logs."""

    def compute_loss(self, *args: Any, **more: Any) -> Any:
        found = super().compute_loss(*args, **more)
        loss = found[0] if isinstance(found, tuple) else found
        self.__dict__.setdefault("losses", []).append(float(loss))
        return found

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        super().log(logs, *args, **more)  # adds what the trainer measured
        if "grad_norm" in logs:
            known = {k: float(v) for k, v in self.state.log_history[-1].items() if isinstance(v, int | float)}
            self.__dict__.setdefault("logged", []).append(known)


class GivenIds:
    """Takes token ids as they are, where the trainer would make them from text."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **more: Any) -> Any:  # noqa: ARG002
        return dataset

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:  # noqa: ARG002
        row: dict[str, Any] = {}
        prompt = feature["prompt_ids"]
        for side in ("chosen", "rejected"):
            ids = feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + ids
            row[f"{side}_attention_mask"] = [1] * len(prompt + ids)
            row[f"{side}_labels"] = [-100] * len(prompt) + ids
        return {**row, "prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}


class AnswersAlone:
    """ORPO with the likelihood of the chosen answers alone, each answer alike."""

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        found = super().concatenated_forward(model, batch)
        return (*found[:4], -found[0].mean(), *found[5:])


TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
    "cpo": (CPOTrainer, CPOConfig),
    "reward": (RewardTrainer, RewardConfig),
}
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,
    "train_sampling_strategy": "sequential",
    "max_length": 4096,
    "seed": 0,
}


def sft_row(row: dict[str, Any]) -> dict[str, Any]:
    prompt, answer = row["prompt_ids"], row["chosen_ids"]
    return {"input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + [1] * len(answer)}


def dataset_of(trainer: str, rows: Rows) -> Any:
    """The rows as the trainer takes them."""
    if trainer == "sft":
        return Dataset.from_list([sft_row(row) for row in rows])
    if trainer == "reward":
        sides = ("chosen_ids", "rejected_ids")
        return Dataset.from_list([{side: row["prompt_ids"] + row[side] for side in sides} for row in rows])
    if trainer == "kto":
        rows = rows[::-1]
        answers = [row["chosen_ids" if row["label"] else "rejected_ids"] for row in rows]
        others = [answers[-1], *answers[:-1]]  # as KTOTrainer does with a batch
        return Dataset.from_list(
            [
                {
                    "prompt_ids": row["prompt_ids"],
                    "completion_ids": own,
                    "KL_completion_ids": other,
                    "label": row["label"],
                }
                for row, own, other in zip(rows, answers, others, strict=True)
            ]
        )
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    words = {"prompt": "", "chosen": "", "rejected": ""} if trainer in ("orpo", "cpo") else {}
    return Dataset.from_list([{**words, **{key: row[key] for key in keys}} for row in rows])


def model_of(job: dict[str, Any], kind: str, folder: str) -> Any:
    loader = AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32)
    if job["padding_learns"]:
        model.get_input_embeddings().padding_idx = None
    return model


def run(job: dict[str, Any], data: dict[str, Any], out: str) -> dict[str, Any]:
    """One job: the numbers of every step."""
    kind, rows = job["trainer"], data[job["rows"]]
    trainer, config = TRAINERS[kind]
    bases = [Recorded]
    bases += [AnswersAlone] if job["changed"] == "orpo_likelihood" else []
    bases += [GivenIds] if kind not in ("sft", "reward") else []
    made = type("Trainer", (*bases, trainer), {})
    settings = {
        **COMMON,
        "output_dir": out,
        "learning_rate": job["lr"],
        "per_device_train_batch_size": job["batch"],
        "max_steps": job["steps"],
        **job["settings"],
    }
    more = {"ref_model": model_of(job, kind, job["ref"])} if kind in ("dpo", "kto") else {}
    if kind == "sft":
        settings["completion_only_loss"] = True
    folder = job["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dataset = dataset_of(kind, rows)
    args = config(**settings)
    run = made(model=model_of(job, kind, folder), args=args, train_dataset=dataset, processing_class=tokenizer, **more)
    run.train()
    steps = [
        {**{k: v for k, v in logged.items() if k not in ("loss", "epoch", "step")}, "loss": loss}
        for logged, loss in zip(run.logged, run.losses, strict=True)
    ]
    return {"steps": steps, "pad": run.processing_class.pad_token_id}


def ids_of_text(data: dict[str, Any], model: str, out: str) -> Rows:
    """The ids that TRL makes of the same conversations."""
    words = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in data["conversations"]]
    tokenizer = AutoTokenizer.from_pretrained(model)
    args = DPOConfig(**COMMON, output_dir=out, max_steps=1)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    given = Dataset.from_list(words)
    trainer = DPOTrainer(model=loaded, ref_model=None, args=args, train_dataset=given, processing_class=tokenizer)
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{key: row[key] for key in keys} for row in trainer.train_dataset]


def main() -> None:
    """Does every job and writes the results."""
    with open(sys.argv[1]) as file:
        work = json.load(file)
    torch.set_num_threads(work["threads"])
    transformers.logging.set_verbosity_error()
    data, out = work["data"], sys.argv[2]
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    found: dict[str, Any] = {"versions": versions, "jobs": {}}
    if work["ids_of"]:
        found["ids"] = ids_of_text(data, work["ids_of"], out + ".out")
    for job in work["jobs"]:
        found["jobs"][job["name"]] = run(job, data, out + ".out")
        print(job["name"], "done", flush=True)
        with open(out, "w") as file:
            json.dump(found, file)
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
