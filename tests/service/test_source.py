"""The commit that reports name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from service import source
from service.settings import Settings


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_names_its_commit_and_whether_files_were_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert source._of_checkout(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert source._of_checkout(tmp_path) == f"{commit}-dirty"


def test_a_folder_that_git_cannot_read_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere")
    assert source._of_checkout(tmp_path) is None


def test_an_installed_package_names_the_commit_that_pip_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def __init__(self, text: str | None) -> None:
            self.text = text

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return self.text

    monkeypatch.setattr(source, "_ROOT", tmp_path)
    for text, expected in (
        ('{"url": "https://h/r.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee1"}}', "c0ffee1"),
        ('{"url": "file:///src", "dir_info": {"editable": true}}', None),
        (None, None),
    ):
        source.source_commit.cache_clear()
        monkeypatch.setattr(source, "distribution", lambda name, text=text: Installed(text))
        assert source.source_commit() == expected
    source.source_commit.cache_clear()


def test_the_setting_comes_first() -> None:
    assert Settings(commit="0123abc").source_commit == "0123abc"
    with pytest.raises(ValueError, match="CDKA_COMMIT|commit"):
        Settings(commit="main")
