"""Which source is running."""

import subprocess
from pathlib import Path

import pytest

from jaxllm.checkpoint.revision import Revision, source_revision


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    made = tmp_path / "package"
    made.mkdir()
    (made / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    return made


def test_clean_changed_new_and_elsewhere(package: Path) -> None:
    git(package, "add", ".")
    git(package, "commit", "-qm", "x")
    commit = git(package, "rev-parse", "HEAD")
    assert source_revision(package) == Revision(commit=commit, dirty=False)
    (package.parent / "notes.txt").write_text("not the package")
    assert not source_revision(package).dirty
    (package / "new.py").write_text("")
    assert source_revision(package) == Revision(commit=commit, dirty=True)
    (package / "new.py").unlink()
    (package / "__init__.py").write_text("x = 1\n")
    assert source_revision(package) == Revision(commit=commit, dirty=True)


def test_installed_inside_somebody_elses_repository(package: Path) -> None:
    (package.parent / "README").write_text("")
    git(package.parent, "add", "README")
    git(package.parent, "commit", "-qm", "x")
    assert source_revision(package) == Revision(commit=None, dirty=False)


def test_no_git_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_revision() == Revision(commit=None, dirty=False)
