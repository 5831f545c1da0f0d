"""Figures of the package's structure, now and at another commit, and the picture of its dependencies.

    python -m benchmarks.structure [--old COMMIT] [--json FILE] [--png docs/images/structure.png]

Counted from the source (syntax trees) and by importing the package in a process of its own. How each figure is counted
is printed below the table. The picture: packages as boxes in layers (pyproject.toml, `tool.importlinter`), lines of
code, an arrow from a package to one that it imports; the lowest layers, which nearly all import, have none.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HEAD = re.compile(
    r"""^(what|whether|how|which|where|who|whom|whose|why|when)\b
    |\b(says?|said|tells?|told|asks|knows?|speaks?|hears?|believes?|wants?|looks)\b""",
    re.IGNORECASE | re.VERBOSE,
)
PRINTED = {
    "name",
    "formula",
    "oracle",
    "paper",
    "watch",
    "pitfalls",
    "tuned",
    "defaults_from",
}  # fields of texts for people
DOORS = ("kernels()", "library.load()")  # calls that return the compiled library


class Figure(NamedTuple):
    """A row of the table: its name, how it is counted, the aim of the plan."""

    name: str
    counted: str
    aim: str


FIGURES = {
    "settings_any": Figure(
        "`settings: Any` in signatures", "parameters named settings annotated Any, in src/tiltyard", "0"
    ),
    "declared_strings": Figure(
        "reads in stages/ of a string that a method declares",
        "attribute reads in stages/*.py named like a str or Literal field of `Method`, texts for people left out",
        "about 10",
    ),
    "declared_strings_files": Figure("  in so many files", "files of the row above", "-"),
    "methods": Figure("methods", "entries of tiltyard.methods.METHODS", "-"),
    "importable": Figure("methods importable from `tiltyard`", "names of METHODS with an attribute in tiltyard", "all"),
    "ppo_settings": Figure("settings of a PPO stage", "leaves of its settings record, nested ones included", "-"),
    "ppo_flat": Figure("  at the top level", "fields of the record itself, nested records counted once", "15 + 4"),
    "beta_names": Figure(
        "names of pi*'s beta",
        "settings of ppo, a2c, reinforce, grpo, dpo, ipo, rso, spin that are it (of old: kl, beta, tau, gamma, lam)",
        "1",
    ),
    "rewards_by_path": Figure("reward functions by path", "a registry with load_function", "any"),
    "heads": Figure(
        "docstring heads in the private idiom", "first lines that match HEAD (benchmarks/structure.py)", "0"
    ),
    "docstrings": Figure("  of docstrings", "modules, classes and functions with a docstring", "-"),
    "packings": Figure("forests packed for one PPO step", "6 groups, 3 micro-batches, 4 epochs (tests/batch)", "4"),
    "doors": Figure(
        "calls of the doors to the C kernels",
        f"{' and '.join(DOORS)} in src/tiltyard; now: the choice of a model's backend, doctor, the measurement",
        "1",
    ),
    "doors_files": Figure("  in so many files", "files of the row above", "1"),
    "circles": Figure("import circles between packages", "strongly connected components of the import graph", "0"),
    "longest_file": Figure("lines of the longest file", "of src/tiltyard", "400"),
    "files": Figure("files", "of src/tiltyard", "-"),
    "lines": Figure("lines", "of src/tiltyard", "-"),
}


def sources(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Yields every module of the package and its syntax tree."""
    for path in sorted((root / "src/tiltyard").rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def figures_of(root: Path) -> dict[str, Any]:
    """Computes all figures of a checkout."""
    trees = list(sources(root))
    heads = [text.split("\n")[0] for _, tree in trees for text in _docstrings(tree)]
    reads = _declared_reads(root)
    doors = Counter(str(path) for path, tree in trees for node in ast.walk(tree) if _is_door(node))
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path, _ in trees]
    return {
        "settings_any": untyped_settings(root),
        "declared_strings": sum(reads.values()),
        "declared_strings_files": len(reads),
        "heads": sum(bool(HEAD.search(head)) for head in heads),
        "docstrings": len(heads),
        "doors": sum(doors.values()),
        "doors_files": len(doors),
        "circles": len(circles(imports(root))),
        "longest_file": max(lines),
        "files": len(lines),
        "lines": sum(lines),
        **_probed(root),
    }


def untyped_settings(root: Path) -> int:
    """Counts the parameters named settings that are annotated Any."""
    return sum(_is_any(node) for _, tree in sources(root) for node in ast.walk(tree))


def _docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield text


def _is_any(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.arg)
        and node.arg == "settings"
        and node.annotation is not None
        and ast.unparse(node.annotation) == "Any"
    )


def _is_door(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return ast.unparse(node) in DOORS


def _declared_reads(root: Path) -> Counter[str]:
    """Returns {file in stages/: reads of the string fields that a method declares}."""
    base = next(p for p in (root / f"src/tiltyard/{n}/base.py" for n in ("methods", "algorithms")) if p.exists())
    tree = ast.parse(base.read_text(encoding="utf-8"))
    literals = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and "Literal" in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    } | {"str", "Kind"}
    record = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Method")
    fields = {
        node.target.id
        for node in record.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and literals & set(re.findall(r"\w+", ast.unparse(node.annotation)))
    } - PRINTED
    found: Counter[str] = Counter()
    for path in sorted((root / "src/tiltyard/stages").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in fields:
                found[path.name] += 1
    return found


# ----------------------------------------------------------------------------------------- figures by importing it

PROBE = """
import json, tiltyard
found = {}
try:
    from tiltyard.methods import METHODS
except ImportError:
    from tiltyard.algorithms import METHODS
from pydantic import BaseModel
from tiltyard.stages.base import load_all
stages = load_all()
found["methods"] = len(METHODS)
offered = {"reward" if n == "reward_model" else n for n in tiltyard.__all__}
found["importable"] = len(offered & METHODS.keys())
def leaves(record):
    count = 0
    for field in record.model_fields.values():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        count += leaves(kind) if nested else 1
    return count
found["ppo_flat"] = len(stages["ppo"].settings.model_fields)
found["ppo_settings"] = leaves(stages["ppo"].settings)
names = {"ppo": "kl", "a2c": "kl", "reinforce": "kl", "grpo": "kl", "dpo": "beta", "ipo": "tau",
         "rso": "gamma", "spin": "lam"}
fields = {m: stages[m].settings.model_fields for m in names if m in stages}
declared = {names[m] if names[m] in f else "beta" for m, f in fields.items() if names[m] in f or "beta" in f}
found["beta_names"] = len(declared)
try:
    from tiltyard.scoring.registry import load_function
    found["rewards_by_path"] = "any"
except ImportError:
    found["rewards_by_path"] = "none"
print(json.dumps(found))
"""
PACKINGS = """
import torch
from tests.training import tiny
from tiltyard import sampling
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import RewardScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.fit import Run, fit
from tiltyard.training.source import Online
from tiltyard.types import Prompt
try:
    from tiltyard.methods import ppo
    from tiltyard.batch import batch as batches
    budget = {"tokens_per_microbatch": 38}
except ImportError:
    from tiltyard.algorithms import ppo
    from tiltyard.training import batch as batches
    budget = {"micro_tokens": 38}
name = "pack" if hasattr(batches, "pack") else "plant"
real, count = getattr(batches, name), []
setattr(batches, name, lambda *a, **k: count.append(1) or real(*a, **k))
g = torch.Generator().manual_seed(0)
prompts = [Prompt(id=str(i), ids=tiny.ids(1 + i % 5, g)) for i in range(6)]
models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar(3), reward=tiny.scalar(3))
scorer = RewardScorer(models.get("reward"))
sampler = sampling.NativeSampler() if hasattr(sampling, "NativeSampler") else sampling.sample
source = Online(prompts, sampler, scorer, 6, 2, SampleSettings(max_tokens=6), seed=2)
fit(ppo(source, ppo_epochs=4, minibatches=1), models, Run(steps=1, **budget))
print(len(count))
"""


def _probed(root: Path) -> dict[str, Any]:
    """Runs the probes on a checkout; a figure that cannot be measured is None."""
    found: dict[str, Any] = dict.fromkeys(("methods", "importable", "ppo_flat", "ppo_settings", "beta_names"))
    found |= json.loads(_run(root, PROBE) or "{}")
    packings = _run(root, PACKINGS)
    return found | {"packings": int(packings) if packings.isdigit() else None}


def _run(root: Path, code: str) -> str:
    paths = {"PYTHONPATH": f"{root / 'src'}:{root}", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=paths, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return ""
    return done.stdout.strip().splitlines()[-1]


# ------------------------------------------------------------------------------------------------------- the imports


def imports(root: Path) -> dict[str, Counter[str]]:
    """Returns package -> {package that it imports: number of import statements}, those for type checking left out."""
    graph: dict[str, Counter[str]] = {}
    for path, tree in sources(root):
        package = _package(path.relative_to(root / "src").with_suffix("").parts)
        graph.setdefault(package, Counter())
        for node in _imports_of(tree):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                parts = (module or "").split(".")
                if parts[0] != "tiltyard":
                    continue
                others = [_package(tuple(parts))] if len(parts) > 1 else [a.name for a in node.names]
                graph[package].update(other for other in others if other != package)
    known = set(graph)
    return {package: Counter({o: n for o, n in found.items() if o in known}) for package, found in graph.items()}


def _imports_of(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from _imports_of(node)


def _package(parts: tuple[str, ...]) -> str:
    return parts[1] if len(parts) > 1 else parts[0]


def circles(graph: dict[str, Counter[str]]) -> list[set[str]]:
    """Returns the strongly connected components of more than one package (the package's root left out)."""
    reach = {p: reached(p, graph) for p in graph if p not in ("tiltyard", "__init__")}
    found: list[set[str]] = []
    for one, others in reach.items():
        circle = {other for other in reach if other in others and one in reach[other]}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def reached(package: str, graph: dict[str, Counter[str]]) -> set[str]:
    """Returns the packages that a package imports, directly or through others."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        for other in graph.get(waiting.pop(), ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def layers(root: Path) -> list[list[str]]:
    """Returns the layers of pyproject.toml, the highest first."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [[name.strip().removeprefix("tiltyard.") for name in re.split("[|:]", row)] for row in contract["layers"]]


# ----------------------------------------------------------------------------------------------------------- output


def checkout(commit: str, folder: Path) -> Path:
    """Unpacks src and tests of a commit."""
    archive = subprocess.run(
        ["git", "archive", commit, "src", "tests", "pyproject.toml"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def table(now: dict[str, Any], old: dict[str, Any] | None) -> str:
    """Returns the table as Markdown, and below it how each figure is counted."""
    rows = ["| | before | now | aim |", "|---|---:|---:|---|"]
    for key, figure in FIGURES.items():
        before = "" if old is None else _cell(old.get(key))
        rows.append(f"| {figure.name} | {before} | {_cell(now.get(key))} | {figure.aim} |")
    notes = [f"* {figure.name.strip()}: {figure.counted}" for figure in FIGURES.values()]
    return "\n".join([*rows, "", *notes])


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Prints the table, and writes what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--old", default="", help="a commit to compare with")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--png", type=Path, help="draw the dependencies into this file, and print no table")
    options = parser.parse_args()
    if options.png:
        from benchmarks.structure_plot import draw

        print(draw(options.png, ROOT))
        return
    now, old = figures_of(ROOT), None
    if options.old:
        with tempfile.TemporaryDirectory() as folder:
            old = figures_of(checkout(options.old, Path(folder)))
    if options.json:
        options.json.write_text(json.dumps({"now": now, "before": old}, indent=1) + "\n", encoding="utf-8")
    print(table(now, old))


if __name__ == "__main__":
    main()
