"""What publishing a release comes to: branches of a repository, and the files of each. No jax, no network.

Every checkpoint is a branch whose root is a model folder, so that `from_pretrained(repo, revision=branch)` opens it.
`main` is the release itself, file by file, so that `jaxllm verify` holds of what was downloaded; its release.json goes
last of all, so that a repository that has one is complete.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxllm.core.errors import ConfigError
from jaxllm.core.files import sha256_file
from jaxllm.release.layout import HF, LICENCE, README, Release
from jaxllm.release.sealed import RELEASE

MAIN = "main"
# A commit holds at most this much, so that a publication that is killed has most of what it sent behind it.
COMMIT_FILES, COMMIT_BYTES = 100, 20 * 2**30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file: where it lies here, its path in the branch."""

    source: Path
    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A branch and all that it holds beside what a hub puts there itself. message: the first line of its commits."""

    name: str
    message: str
    files: tuple[Upload, ...]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(f.bytes for f in self.files)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A repository of models, and its branches in the order in which they are sent."""

    repository: str
    private: bool
    release: Release
    branches: tuple[Branch, ...]


def plan_of(folder: Path, release: Release, repository: str, *, private: bool) -> Plan:
    """ConfigError: `repository` is no ORG/NAME."""
    if not _NAME.fullmatch(repository) or "--" in repository or ".." in repository:
        raise ConfigError(
            f"--to {repository}: write ORG/NAME, each of letters, digits, '-', '_' and '.', beginning with one of the "
            f"first two"
        )
    shared = [f for f in release.files if f.path in (README, LICENCE)]
    branches = []
    for checkpoint in release.checkpoints:
        root, files = f"{checkpoint.folder}/", {}
        for entry in (*shared, *release.files_of(checkpoint)):
            path = entry.path.removeprefix(root).removeprefix(f"{HF}/")
            files[path] = Upload(source=folder / entry.path, path=path, sha256=entry.sha256, bytes=entry.bytes)
        message = f"{release.run.name}: step {checkpoint.step}, state {checkpoint.state_digest[:12]}"
        branches.append(Branch(name=checkpoint.branch, message=message, files=tuple(files.values())))
    whole = [Upload(source=folder / f.path, path=f.path, sha256=f.sha256, bytes=f.bytes) for f in release.files]
    seal = folder / RELEASE
    whole.append(Upload(source=seal, path=RELEASE, sha256=sha256_file(seal), bytes=seal.stat().st_size))
    message = f"{release.run.name}: the release of {release.run.steps} steps"
    branches.append(Branch(name=MAIN, message=message, files=tuple(whole)))
    return Plan(repository=repository, private=private, release=release, branches=tuple(branches))


def commits(files: tuple[Upload, ...]) -> Iterator[tuple[Upload, ...]]:
    """Files, in their order, in portions of a commit each."""
    portion: list[Upload] = []
    for file in files:
        size = sum(f.bytes for f in portion)
        if portion and (len(portion) == COMMIT_FILES or size + file.bytes > COMMIT_BYTES):
            yield tuple(portion)
            portion = []
        portion.append(file)
    if portion:
        yield tuple(portion)


def lines(plan: Plan) -> list[str]:
    """The calls that a publication to an empty repository makes, for people."""
    kind = "private" if plan.private else "public"
    said = [f"create the {kind} repository {plan.repository}, unless it is there"]
    for branch in plan.branches:
        if branch.name != MAIN:
            said.append(f"create branch {branch.name}")
        for portion in commits(branch.files):
            size = sum(f.bytes for f in portion)
            said.append(f"commit to {branch.name}: {len(portion)} files, {size:,} bytes: {branch.message}")
    return said
