"""Samples printed while a policy trains: the model's words are data, shown literally, never obeyed."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from tiltyard.distributed import processes
from tiltyard.files import atomic_write
from tiltyard.report.text import plain
from tiltyard.sampling import SampleSettings, sample
from tiltyard.training.algorithm import Models
from tiltyard.types import Prompt


class Samples:
    """Every `every` steps: answers to a few fixed prompts, on the console and in samples.jsonl."""

    def __init__(self, console: Console, models: Models, every: int, folder: Path, prompts: tuple[Prompt, ...]):
        self.console, self.models, self.every, self.prompts = console, models, every, prompts
        self.path, self.new = folder / "samples.jsonl", True

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - protocol
        if step % self.every or not processes.is_main():
            return
        if self.new:
            self._forget(step)
        groups = sample(self.models.get("policy"), self.prompts, 1, SampleSettings(max_tokens=64), seed=0)
        with self.path.open("a", encoding="utf-8") as file:
            for group in groups:
                asked = group.prompt.messages[-1].content if group.prompt.messages else group.prompt.text or ""
                answer = group.responses[0].text
                file.write(json.dumps({"step": step, "prompt": asked, "answer": answer}) + "\n")
                self.console.print(
                    f"  step {step}  {plain(asked)[:80]}  ->  {plain(answer)[:160]}", markup=False, highlight=False
                )

    def _forget(self, step: int) -> None:
        """Cuts off what a killed attempt wrote at this step and later; a run that begins anew has a new folder."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        with atomic_write(self.path) as file:
            file.writelines(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step)
        self.new = False

    def close(self) -> None:
        """Nothing is held open."""
