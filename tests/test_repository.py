"""What the house promises about itself: sizes, safety, documentation that runs, settings that change on purpose."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest
import typer.main
from benchmarks.structure import circles, imports, untyped_settings
from packaging.requirements import Requirement

import tiltyard
from tiltyard.cli import app
from tiltyard.cli.arguments import eval_arguments
from tiltyard.cli.judge import judge_arguments
from tiltyard.config import REQUIRED, describe
from tiltyard.data import Row, parse_row
from tiltyard.data.formats import KINDS
from tiltyard.errors import DataError
from tiltyard.files import jsonable
from tiltyard.methods import METHODS, load_method
from tiltyard.pipeline.recipe import Entry, Recipe, check, parse_recipe, read_recipe, set_key
from tiltyard.stages.base import get_stage, load_all
from tiltyard.stages.settings import method_settings
from tiltyard.yaml_values import split_assignment

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(p for p in ROOT.glob("docs/*.md") if p.stem != "lab")]
SETTINGS = ROOT / "tests/settings.json"
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
GLANCE = 12
UNTYPED_SETTINGS = 0
# "file" or "file:function" that may be longer: a method whose signature and docstring are its settings
ALLOWED: frozenset[str] = frozenset()


OFFERED = {
    name
    for path in SOURCES
    if path.name == "__init__.py"
    for name in re.findall(r'^    "(\w+)",$', path.read_text(encoding="utf-8").partition("__all__")[2], re.MULTILINE)
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    for path in SOURCES:
        yield from ((path, node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


# ---------------------------------------------------------------------------------------------------------- the code


def _first_statement(node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt:
    """Where the code of a function begins: settings and what is said about them are no reason to cut it up."""
    documented = ast.get_docstring(node) is not None and len(node.body) > 1
    return node.body[1 if documented else 0]


def test_files_and_functions_are_short() -> None:
    found = []
    for path in SOURCES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE and name_of(path) not in ALLOWED:
            found.append(f"{name_of(path)}: {lines} lines, {LONGEST_FILE} allowed")
    for path, node in nodes():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - _first_statement(node).lineno + 1
            if lines > LONGEST_FUNCTION and f"{name_of(path)}:{node.name}" not in ALLOWED:
                found.append(f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines, {LONGEST_FUNCTION} allowed")
    assert not found, "\n".join(found)


def test_public_functions_have_docstrings() -> None:
    """All that a package offers (`__all__`), and any other function that a reader cannot take in at a glance."""
    found = []
    for path in SOURCES:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            offered = node.name in OFFERED
            long = isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= GLANCE
            if (offered or long) and ast.get_docstring(node) is None:
                found.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert not found, "\n".join(found)


def test_nothing_runs_what_a_file_says() -> None:
    found = []
    for path, node in nodes():
        bad = ""
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            bad = next((m for m in modules if m.split(".")[0] in {"pickle", "dill", "marshal", "shelve"}), "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            bad = node.func.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"torch.load", "yaml.load", "os.system"}:
            bad = ast.unparse(node)
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            bad = ast.unparse(node) if getattr(node.value, "value", None) is True else ""
        if bad:
            found.append(f"{name_of(path)}:{getattr(node, 'lineno', '?')} {bad}")
    assert not found, "\n".join(found)


def test_no_host_in_the_code_and_no_machine_in_the_repository() -> None:
    """No address in the package; no package registry and no folder of somebody's machine in any file."""
    found = [
        f"{name_of(path)}:{number} {line.strip()[:80]}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"https?://\w", line)
    ]
    registries = "|".join(("py" + "pi", "python" + "hosted", "download.py" + "torch", "conda" + r"\.anaconda"))
    machine = re.compile(rf"({registries})\.(org|com|io)\b|(?<![\w./])/(home|root|wo[r]k|Users)/\w")
    for path in _tracked():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), 1):
            if machine.search(line):
                found.append(f"{name_of(path)}:{number} {line.strip()[:80]}")
    assert not found, "\n".join(found)


def _tracked() -> list[Path]:
    """The files of the repository; of an unpacked archive without git, those that such a repository would have."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        paths = [*ROOT.glob("*.*"), *(p for top in ("src", "tests", "docs") for p in (ROOT / top).rglob("*.*"))]
    return [p for p in paths if p.is_file() and p.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".json", ""}]


def test_no_package_imports_itself_through_another() -> None:
    assert circles(imports(ROOT)) == []


def test_settings_have_types() -> None:
    """Parameters named settings that are annotated `Any`; the number may only fall."""
    assert untyped_settings(ROOT) <= UNTYPED_SETTINGS


def test_importing_is_light() -> None:
    code = (
        "import sys, tiltyard, tiltyard.cli; tiltyard.cli.main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_exist() -> None:
    assert list(tiltyard.__all__) == sorted(tiltyard.__all__)
    for name in tiltyard.__all__:
        assert getattr(tiltyard, name) is not None
    assert set(dir(tiltyard)) >= set(tiltyard.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = tiltyard.fitt


# ------------------------------------------------------------------------------------------------------ the repository


def test_the_licence_is_here() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert metadata("tiltyard")["License-Expression"] == "Apache-2.0"


def test_tested_versions_lie_in_the_ranges() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    pins = {_plain(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        requirement = Requirement(text)
        assert _plain(requirement.name) in pins, f"constraints.txt has no {requirement.name}"
        assert requirement.specifier.contains(pins[_plain(requirement.name)]), text


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_settings_change_on_purpose() -> None:
    """`TILTYARD_UPDATE=1 pytest tests/test_repository.py` accepts what is there now."""
    now = {
        name: {
            s.key: f"{s.type} = {'required' if s.default is REQUIRED else json.dumps(jsonable(s.default))}"
            for s in describe(stage.settings)
        }
        for name, stage in sorted(load_all().items())
        if stage.run.__module__.startswith("tiltyard.")
    }
    if os.environ.get("TILTYARD_UPDATE"):
        SETTINGS.write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    before = json.loads(SETTINGS.read_text(encoding="utf-8"))
    changes = [
        f"{stage}.{key}: {before.get(stage, {}).get(key, 'absent')} -> {now.get(stage, {}).get(key, 'absent')}"
        for stage in sorted({*before, *now})
        for key in sorted({*before.get(stage, {}), *now.get(stage, {})})
        if before.get(stage, {}).get(key) != now.get(stage, {}).get(key)
    ]
    assert not changes, "\n".join([*changes, "if this is meant: TILTYARD_UPDATE=1 (see CONTRIBUTING)"])


# --------------------------------------------------------------------------------------------------- the documentation


def blocks(path: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands(path: Path) -> Iterator[str]:
    """Every `tiltyard ...` of a page: lines of `sh` blocks, lines after `$` of `console` blocks."""
    for text in blocks(path, "sh"):
        yield from re.findall(r"(?:^|\| )(tiltyard .*)$", text, re.MULTILINE)
    for text in blocks(path, "console"):
        yield from re.findall(r"^\$ (tiltyard .*)$", text, re.MULTILINE)


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with what the pages' commands name."""
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for text in blocks(page, "sh", "console", "yaml"):
            for name in re.findall(r"(?<![\w/])(?:runs/[\w/.]+\.jsonl|[\w.]+\.(?:jsonl|csv|txt))", text):
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).touch()
            for name in re.findall(r"(?<![\w/])runs/\w+/\w+(?![\w./])", text):
                Path(name).mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        for text in blocks(page, "python", "yaml"):
            if named := re.match(r"# (\w+\.(?:py|yaml))\n", text):
                Path(named[1]).write_text(text, encoding="utf-8")
    recipe = next(iter(blocks(ROOT / "docs/recipes.md", "yaml")))
    Path("rlhf.yaml").write_text(recipe, encoding="utf-8")
    return tmp_path


def test_there_are_commands_and_every_verb_has_a_page() -> None:
    verbs = {shlex.split(command, comments=True)[1] for _, command in COMMANDS}
    known = set(typer.main.get_command(app).commands)
    assert verbs >= known, f"no page shows {known - verbs}"


@pytest.mark.parametrize(("page", "command"), COMMANDS)
@pytest.mark.usefixtures("desk")
def test_commands_of_the_pages_are_right(page, command) -> None:
    _, verb, *words = shlex.split(command, comments=True)
    known = typer.main.get_command(app).commands[verb]
    if hasattr(known, "commands"):
        known, words = known.commands[words[0]], words[1:]
    parsed = known.make_context(verb, words).params
    if verb == "run":
        check(read_recipe(parsed["recipe"], parsed["overrides"] or []))
    elif verb in ("train", "eval", "judge"):
        if verb == "judge":
            kind, pairs = judge_arguments(parsed["action"], parsed["settings"])
        else:
            kind, pairs = eval_arguments(parsed.get("reward", ""), parsed["settings"], Path("runs"))
        kind = parsed.get("method") or kind
        values: dict = {}
        for pair in pairs:
            key, value = split_assignment(pair)
            values = values if key == "name" else set_key(values, key, value, page)
        name = kind.rpartition(":")[2]  # of a method of a file: its function
        check(Recipe(name, (Entry(name, kind, values, page),)))
    elif verb == "show":
        assert get_stage(parsed["kind"])


@pytest.mark.usefixtures("desk")
def test_recipes_are_right() -> None:
    texts = [(page.name, text) for page in PAGES for text in blocks(page, "yaml")]
    packaged = sorted((ROOT / "src/tiltyard/recipes").rglob("*.yaml"))
    assert len(texts) >= 2
    for name, text in texts:
        assert check(parse_recipe(text, name, folder=Path.cwd()))
    for path in packaged:
        assert read_recipe(path).entries


def test_rows_of_the_data_page_are_read() -> None:
    lines = [line for text in blocks(ROOT / "docs/data.md", "json") for line in text.splitlines()]
    read = set()
    for number, line in enumerate(lines, 1):
        kinds = [kind for kind in KINDS if _reads(Row(json.loads(line), f"data.md:{number}"), kind)]
        assert kinds, line
        read |= set(kinds)
    assert read == set(KINDS)


def _reads(row: Row, kind) -> bool:
    try:
        return bool(parse_row(row, kind))
    except DataError:
        return False


@pytest.mark.usefixtures("desk")
def test_the_method_of_the_page_is_one() -> None:
    method, path = load_method("my_methods.py:focal_sft")
    fields = method_settings(method).model_fields
    assert (fields["gamma"].default, fields["lr"].default) == (2.0, 3e-5)
    assert path.name == "my_methods.py"
    assert "focal_sft" not in METHODS  # a file of one's own adds nothing to the package


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"\w+:", target) and not target.endswith(".png"):  # pictures come from the demo
            assert (page.parent / target).exists(), target
