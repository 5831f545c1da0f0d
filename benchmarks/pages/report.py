"""Takes the report's page at desktop and phone width, light and dark: part of `make screenshots`.

`python -m benchmarks.pages.report out/screenshots [RUN]`; without a run one is made of a tiny recipe first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.pages.serving import browser

SIZES = {"desktop": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
RECIPE = """name: example
defaults: {device: cpu, prompts_per_step: 16}
stages:
  - world: {}
  - pretrain:
      {data: world/corpus.jsonl, arch: {preset: 1m, vocab: 1024, context: 256}, max_length: 128, steps: 300, lr: 3e-3}
  - sft: {model: pretrain, data: world/demonstrations.jsonl, lr: 5e-4, steps: 80, max_length: 256}
  - label: {model: sft, prompts: world/prompts.jsonl, k: 4, limit: 200}
  - reward: {model: sft, data: label/rankings.groups.jsonl, lr: 1e-3, steps: 60, max_length: 256}
  - ppo: {model: sft, reward: reward, prompts: world/prompts.jsonl, steps: 20, lr: 3e-4, max_tokens: 40}
  - evaluate: {models: [pretrain, sft, ppo], reward: reward, prompts: world/held_out.jsonl, limit: 100, max_tokens: 48}
"""


def main(folder: Path, run: Path | None = None) -> None:
    """Writes report-SIZE.png and report-SIZE-dark.png, each of the whole page."""
    from tiltyard.report.html import write_report

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        path, _ = write_report([run or example_run(Path(work))], Path(work) / "report.html")
        with browser() as chrome:
            for size, viewport in SIZES.items():
                for scheme in ("light", "dark"):
                    context = chrome.new_context(viewport=viewport, color_scheme=scheme)
                    page = context.new_page()
                    page.goto(f"file://{path.resolve()}")
                    page.wait_for_selector("html[data-ready=yes]")
                    page.wait_for_timeout(300)  # pictures are drawn once their width is known
                    dark = "-dark" if scheme == "dark" else ""
                    page.screenshot(path=folder / f"report-{size}{dark}.png", full_page=True)
                    context.close()


def example_run(folder: Path) -> Path:
    """Runs the tiny recipe: a minute or two."""
    from rich.console import Console

    from tiltyard.pipeline import run_recipe

    recipe = folder / "example.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return Path(run_recipe(str(recipe), [], runs_root=folder / "runs", console=Console(quiet=True))["folder"])


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else "out/screenshots"), Path(sys.argv[2]) if len(sys.argv) > 2 else None
    )
