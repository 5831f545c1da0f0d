"""The commits that a run keeps."""

from __future__ import annotations

import subprocess

from tiltyard.pipeline import commits as module


def test_the_working_folder_s_commit_and_whether_it_has_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module.commits.cache_clear()
    assert "folder" not in module.commits()

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "recipe.yaml").write_text("name: a")
    git("add", "recipe.yaml")
    git("commit", "-m", "a recipe")
    module.commits.cache_clear()
    assert module.commits()["folder"] == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "recipe.yaml").write_text("name: b")
    module.commits.cache_clear()
    assert module.commits()["folder"].endswith("+changes")
    module.commits.cache_clear()


def test_without_git_nothing_is_kept(monkeypatch):
    monkeypatch.setenv("PATH", "")
    module.commits.cache_clear()
    assert module.commits() == {}
    module.commits.cache_clear()
