"""Logs samples of the policy during training, as plain text: a model's text is never interpreted as markup."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tiltyard.distributed import processes
from tiltyard.report.text import plain
from tiltyard.runs.journal import JsonlFile, length_before
from tiltyard.sampling import SampleSettings, sample
from tiltyard.training.algorithm import Models
from tiltyard.types import Prompt


class SampleLogger:
    """A sink that samples responses to a few fixed prompts every `every` steps, for the console and samples.jsonl."""

    def __init__(self, console: Console, models: Models, every: int, folder: Path, prompts: tuple[Prompt, ...]):
        self.console, self.models, self.every, self.prompts = console, models, every, prompts
        self.path = folder / "samples.jsonl"
        self.file: JsonlFile | None = None

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - protocol
        """Samples, prints and writes, if the step is one of every `every`."""
        if step % self.every or not processes.is_main():
            return
        if self.file is None:
            self.file = JsonlFile(self.path)
            self.file.truncate(length_before(self.path, step))
        rows = []
        for group in sample(self.models.get("policy"), self.prompts, 1, SampleSettings(max_tokens=64), seed=0):
            prompt = group.prompt.messages[-1].content if group.prompt.messages else group.prompt.text or ""
            response = group.responses[0].text
            rows.append({"step": step, "prompt": prompt, "answer": response})
            line = f"  step {step}  {plain(prompt)[:80]}  ->  {plain(response)[:160]}"
            self.console.print(line, markup=False, highlight=False)
        self.file.write(rows)

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()
