"""What a release is made of: names, roles, and release.json as a value. No jax.

    release.json                  the seal: every file, every checkpoint, the heads of the chains
    README.md DATA.md LICENSE croissant.json mof.json       for people, and for programs that read cards
    record/                       the run folder without its checkpoints, byte for byte
    metrics/                      every step, held-out score, speed and event as tables; tensorboard/
    data/                         the order of the stream, the store's manifest and ledgers, what each interval saw
    environment/                  lock.txt, fingerprints.json, source.json, source.tar.gz
    checkpoints/BRANCH/           hf/ (safetensors), state/ (all that continues the run), evaluation.json

The bytes of release.json are a function of the value (sealed.render), and what a file is for is one of its path.
"""

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jaxllm.core.config import Json, config, decode, encode
from jaxllm.core.errors import ConfigError, LedgerError
from jaxllm.release.sealed import HEX64, RELEASE, read_sealed, render

FORMAT = "jaxllm-release"
SCHEMA = 1

README, DATA_CARD, LICENCE, CROISSANT, MOF = "README.md", "DATA.md", "LICENSE", "croissant.json", "mof.json"
RECORD, METRICS, DATA, ENVIRONMENT, CHECKPOINTS = "record", "metrics", "data", "environment", "checkpoints"
TENSORBOARD, LEDGERS, CHUNKS = f"{METRICS}/tensorboard", f"{DATA}/ledgers", f"{DATA}/chunks"
STEPS_CSV, STEPS_PARQUET, HELDOUT = f"{METRICS}/steps.csv", f"{METRICS}/steps.parquet", f"{METRICS}/heldout.csv"
SPEEDS, EVENTS = f"{METRICS}/speeds.csv", f"{METRICS}/events.csv"
ORDER, STORE_MANIFEST, INTERVALS = f"{DATA}/order.json", f"{DATA}/manifest.json", f"{DATA}/intervals.json"
LOCK, FINGERPRINTS = f"{ENVIRONMENT}/lock.txt", f"{ENVIRONMENT}/fingerprints.json"
SOURCE, SOURCE_TAR = f"{ENVIRONMENT}/source.json", f"{ENVIRONMENT}/source.tar.gz"
HF, STATE, EVALUATION = "hf", "state", "evaluation.json"  # in checkpoints/BRANCH

# What can be asked for beside what every release holds.
EXTRAS: Mapping[str, str] = {
    "optimizer": "the whole training state of every checkpoint, which continues the run",
    "data": "the tokens of every interval between checkpoints, in the order in which they were consumed",
    "tensorboard": "the run's TensorBoard files",
    "abandoned": "checkpoints of lineages that the run has left",
}
NOT_STATED = "not stated"

# Path pattern -> role; the first that fits. A star crosses folders.
ROLES: Mapping[str, str] = {
    README: "model card",
    DATA_CARD: "data card",
    LICENCE: "licence",
    CROISSANT: "metadata",
    MOF: "metadata",
    f"{RECORD}/run.json": "configuration",
    f"{RECORD}/journal.jsonl": "journal",
    f"{RECORD}/metrics.jsonl": "metrics",
    f"{RECORD}/steps/*": "step records",
    f"{RECORD}/losses/*": "losses",
    f"{RECORD}/*": "tokenizer",
    f"{TENSORBOARD}/*": "tensorboard",
    f"{METRICS}/*": "metrics",
    f"{LEDGERS}/*": "document ledger",
    f"{CHUNKS}/*": "tokens",
    f"{DATA}/*": "data order",
    f"{ENVIRONMENT}/source*": "source code",
    f"{ENVIRONMENT}/*": "environment",
    f"{CHECKPOINTS}/*/{HF}/*.safetensors*": "weights",
    f"{CHECKPOINTS}/*/{HF}/*": "model configuration",
    f"{CHECKPOINTS}/*/{STATE}/*": "training state",
    f"{CHECKPOINTS}/*/{EVALUATION}": "evaluation",
}

_BRANCH = re.compile(r"(lineage\d+-)?step\d+-tokens\d+")
_HEX16 = re.compile(r"[0-9a-f]{16}")


def branch_name(step: int, tokens: int, lineage: int | None = None) -> str:
    """The branch and folder of a checkpoint; lineage: of one that the run has left, None along the live path."""
    return ("" if lineage is None else f"lineage{lineage}-") + f"step{step}-tokens{tokens}"


def role_of(path: str) -> str:
    """What a file of a release is for. ConfigError if nothing has its place there."""
    for pattern, role in ROLES.items():
        if fnmatch.fnmatchcase(path, pattern):
            return role
    raise ConfigError(f"{path}: a release has no file of this name")


@config
class FileEntry:
    """A file: its path in the release, with slashes."""

    path: str
    sha256: str
    bytes: int
    role: str

    def __post_init__(self) -> None:
        pure = PurePosixPath(self.path)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != self.path or "\\" in self.path:
            raise ValueError(f"path={self.path!r} is no plain path inside the release")
        if self.path == RELEASE:
            raise ValueError(f"path={self.path!r} does not list itself")
        if not HEX64.fullmatch(self.sha256) or self.bytes < 0:
            raise ValueError(f"{self.path}: sha256={self.sha256!r}, bytes={self.bytes}: 64 hex digits and a size")
        if (due := role_of(self.path)) != self.role:
            raise ValueError(f"{self.path}: role={self.role!r} should be {due!r}")


@config
class ScoreEntry:
    """A held-out loss: of `source` after `step` updates, over `tokens` labels; null where it was not finite."""

    step: int
    source: str
    nats_per_token: float | None
    bits_per_byte: float | None
    tokens: int


@config
class CheckpointEntry:
    """A checkpoint: the state after `step` updates, which had read `tokens` input positions.

    lineage: in which it was written. parent: the branch of the chosen checkpoint before it on its path, null for the
    first. first, last: the positions of the stream first..last-1 that were consumed since. state_digest: of all arrays;
    parameters_digest: of the parameters alone. folder: in the release. items: 'hf', and 'state' if it can be continued.
    """

    branch: str
    lineage: int
    step: int
    tokens: int
    first: int
    last: int
    parent: str | None
    state_digest: str
    parameters_digest: str
    folder: str
    items: tuple[Literal["hf", "state"], ...]
    scores: tuple[ScoreEntry, ...]

    def __post_init__(self) -> None:
        if not _BRANCH.fullmatch(self.branch) or self.folder != f"{CHECKPOINTS}/{self.branch}":
            raise ValueError(f"branch={self.branch!r}, folder={self.folder!r}: not the names of a checkpoint")
        if self.branch not in (branch_name(self.step, self.tokens), branch_name(self.step, self.tokens, self.lineage)):
            raise ValueError(f"branch={self.branch!r} is not that of step {self.step}, {self.tokens} tokens")
        if not 0 <= self.first <= self.last:
            raise ValueError(f"{self.branch}: first={self.first}, last={self.last} are no span of the stream")
        if not (HEX64.fullmatch(self.state_digest) and HEX64.fullmatch(self.parameters_digest)):
            raise ValueError(f"{self.branch}: state_digest and parameters_digest have 64 hex digits")
        if self.items not in (("hf",), ("hf", "state")):
            raise ValueError(f"{self.branch}: items={list(self.items)} are ['hf'] or ['hf', 'state']")


@config
class EditEntry:
    """An edit of the stream (data/edits.py)."""

    kind: Literal["skip", "defer"]
    first: int
    count: int


@config
class LineageEntry:
    """A line of history. step: the last one that it shares with its parent."""

    lineage: int
    parent: int | None
    step: int
    edits: tuple[EditEntry, ...]


@config
class RunEntry:
    """The run. steps, tokens: finished in the record, of planned_steps; model: what it is called in Hugging Face."""

    name: str
    identity: str
    model: str
    parameters: int
    steps: int
    planned_steps: int
    tokens: int
    finished: bool


@config
class StepsChain:
    """The step records: number of segments, and the hash of the last line (zeros before the first)."""

    segments: int
    head: str


@config
class Chains:
    """Where the chains end. journal_head: the hash of the last event."""

    journal_head: str
    journal_events: int
    steps: StepsChain

    def __post_init__(self) -> None:
        if not HEX64.fullmatch(self.journal_head) or not _HEX16.fullmatch(self.steps.head):
            raise ValueError("journal_head and steps.head are the hashes of last lines")


@config
class MadeWith:
    """The program that built the release. package: sha256 over its Python files."""

    jaxllm: str
    package: str


@config
class Release:
    """release.json, without its last member. licence, data_licence: SPDX expressions, or 'not stated' for data.

    contents: what of EXTRAS is in it. checkpoints: by lineage and step; files: by path.
    """

    format: Literal["jaxllm-release"] = "jaxllm-release"
    schema: int = SCHEMA
    made_with: MadeWith
    run: RunEntry
    licence: str
    data_licence: str
    contents: tuple[str, ...]
    chains: Chains
    lineages: tuple[LineageEntry, ...]
    checkpoints: tuple[CheckpointEntry, ...]
    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        if unknown := [c for c in self.contents if c not in EXTRAS]:
            raise ValueError(f"contents: {unknown[0]!r} is none of {', '.join(EXTRAS)}")
        paths = [f.path for f in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("files are listed by path, each once")
        keys = [(c.lineage, c.step) for c in self.checkpoints]
        if keys != sorted(set(keys)):
            raise ValueError("checkpoints are listed by lineage and step, each once")
        branches = {c.branch for c in self.checkpoints}
        if orphans := [c for c in self.checkpoints if c.parent is not None and c.parent not in branches]:
            raise ValueError(f"{orphans[0].branch}: its parent {orphans[0].parent!r} is not in the release")

    def files_of(self, checkpoint: CheckpointEntry) -> tuple[FileEntry, ...]:
        """The files in the folder of a checkpoint."""
        return tuple(f for f in self.files if f.path.startswith(f"{checkpoint.folder}/"))


def encode_release(release: Release) -> bytes:
    """The bytes of release.json."""
    return render(encode(release))


def decode_release(raw: Json, where: str = RELEASE) -> Release:
    """The content of release.json, with or without its last member. ConfigError names the field at fault; LedgerError
    another schema, or a spelling that `encode_release` does not give."""
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise LedgerError(f"{where} is not that of a release; name a folder that `jaxllm release` made")
    if raw.get("schema") != SCHEMA:
        raise LedgerError(f"{where}: schema {raw.get('schema')!r}, this jaxllm reads {SCHEMA}; update jaxllm")
    plain: dict[str, Any] = {name: value for name, value in raw.items() if name != "sha256"}
    release = decode(Release, plain, where)
    if list(encode(release)) != list(plain) or encode(release) != plain:
        raise LedgerError(f"{where}: a field is missing or not in its place; restore the file from a copy")
    return release


def read_release(folder: Path) -> Release:
    """The release in a folder, its seal held. RunError: there is none; CheckFailed: its bytes were changed."""
    return decode_release(read_sealed(folder))
