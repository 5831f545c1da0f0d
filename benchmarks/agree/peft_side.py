"""PEFT's side, in an environment with peft: the logits of given ids through a base model with an adapter over it.

    PYTHON peft_side.py WORK.json OUT.safetensors

WORK holds `base`, `adapter` and `rows`, lists of ids. Nothing of Tiltyard is imported here.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def main() -> None:
    """Writes the logits [tokens, vocabulary] of each row."""
    with open(sys.argv[1]) as file:
        work = json.load(file)
    torch.set_num_threads(work["threads"])
    base = AutoModelForCausalLM.from_pretrained(work["base"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, work["adapter"]).eval()
    found = {}
    with torch.no_grad():
        for i, ids in enumerate(work["rows"]):
            found[str(i)] = model(input_ids=torch.tensor([ids])).logits[0].float().contiguous()
    save_file(found, sys.argv[2])


if __name__ == "__main__":
    main()
