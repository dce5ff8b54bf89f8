"""Which source code is running. No jax."""

import hashlib
import subprocess
from pathlib import Path

import jaxllm
from jaxllm.core.config import config

_PATIENCE_SECONDS = 10


@config
class Revision:
    """commit: git hash of the checkout the package runs from, None for an installed package. dirty: the package differs
    from that commit (changed, new or deleted files)."""

    commit: str | None
    dirty: bool


def source_revision(package: Path | None = None) -> Revision:
    """The revision of `package`, by default jaxllm itself.

    A package that lies in somebody else's repository without being tracked by it (a virtual environment inside a
    project) has no commit.
    """
    package = package or Path(jaxllm.__file__).parent
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    commit = None if tracked is None else _git(package, "rev-parse", "HEAD")
    if commit is None:
        return Revision(commit=None, dirty=False)
    # Without the optional locks a status of ours never stands in the way of somebody's commit.
    changed = _git(package, "--no-optional-locks", "status", "--porcelain", "--", ".")
    return Revision(commit=commit, dirty=changed is None or bool(changed))


def package_sha256(package: Path | None = None) -> str:
    """Of the names and contents of all Python files of `package`, by default jaxllm itself: equal ones run equal code,
    whatever git knows of them."""
    package = package or Path(jaxllm.__file__).parent
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(
            f"{path.relative_to(package).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return total.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None where git is missing, slow or says no."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
