"""manifest.json of a token store: what the store holds, what it was made from, and the sha256 of every file.

It has neither clock nor machine in it: the same inputs, recipe and library versions give the same bytes, however many
processes prepared it and however often they were killed.
"""

import hashlib
import importlib.metadata
import json
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from jaxllm.core.config import Json, config, decode, encode
from jaxllm.core.errors import ConfigError, DataError
from jaxllm.core.files import sha256_file, write_atomic
from jaxllm.data.config import DataRecipe

MANIFEST = "manifest.json"
SCHEMA = 1


@config
class FileEntry:
    """A file of the store: a bare name, its size in bytes, its sha256 in hex."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or self.name in ("", ".", "..") or "\\" in self.name:
            raise ValueError(f"name={self.name!r} is not the name of a file in the store's own folder")


@config
class ShardEntry:
    """A stretch of whole documents of a source, in order."""

    tokens: int
    documents: int
    tokens_file: str
    documents_file: str
    ids_file: str


@config
class SplitEntry:
    """The documents of a source that train, or those that are held out.

    `bytes` is their text in UTF-8; `token_bytes` the sum of the tokenizer's byte table over their tokens: the same
    number, if the tokenizer loses nothing.
    """

    documents: int
    tokens: int
    bytes: int
    token_bytes: int
    ends_file: str
    shards: tuple[ShardEntry, ...]


@config
class BadEntry:
    """An input that was passed over: file, line (0 for the file as a whole) and reason."""

    origin: str
    line: int
    why: str


@config
class SourceEntry:
    """One source: its two splits and what was left out. `bad_listed` holds the first of the `bad`."""

    name: str
    train: SplitEntry
    heldout: SplitEntry
    input_files: int
    input_bytes: int
    duplicates: int
    empty: int
    bad: int
    bad_listed: tuple[BadEntry, ...]


@config
class SpecialToken:
    content: str
    id: int


@config
class TokenizerEntry:
    """`identity` is the sha256 of the canonical tokenizer.json with its special tokens and the end-of-text token."""

    file: str
    token_bytes_file: str
    identity: str
    vocab_size: int
    end_of_text: str
    end_of_text_id: int
    special: tuple[SpecialToken, ...]


@config
class Versions:
    """What may move a byte of the store: Python's own text, the readers, the tokenizer, the Parquet writer."""

    python: str
    jaxllm: str
    numpy: str
    pyarrow: str
    tokenizers: str
    zstandard: str


@config
class Manifest:
    format: Literal["jaxllm-store"] = "jaxllm-store"
    schema: int = SCHEMA
    recipe: DataRecipe
    shard_tokens: int
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerEntry
    sources: tuple[SourceEntry, ...]
    inputs_file: str
    versions: Versions
    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        known = {f.name for f in self.files}
        for name in self.referenced():
            if name not in known:
                raise ValueError(f"files does not list {name!r}")

    def referenced(self) -> list[str]:
        """Every file that some part of the manifest names."""
        names = [self.tokenizer.file, self.tokenizer.token_bytes_file, self.inputs_file]
        for split in (x for s in self.sources for x in (s.train, s.heldout)):
            names.append(split.ends_file)
            names += [f for x in split.shards for f in (x.tokens_file, x.documents_file, x.ids_file)]
        return names


def versions() -> Versions:
    """The versions at work in this process."""
    libraries = ("jaxllm", "numpy", "pyarrow", "tokenizers", "zstandard")
    return Versions(python=platform.python_version(), **{name: importlib.metadata.version(name) for name in libraries})


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write manifest.json; its sha256."""
    raw = (json.dumps(encode(manifest), indent=1, sort_keys=True) + "\n").encode()
    write_atomic(folder / MANIFEST, raw)
    return hashlib.sha256(raw).hexdigest()


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """(manifest, its sha256). DataError if there is none, or none that this jaxllm reads."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        unfinished = folder.with_name(folder.name + ".building").exists()
        raise DataError(
            f"{path}: no such file, so {folder} is not a token store"
            + ("; its preparation was interrupted: run it again to go on" if unfinished else "")
        ) from None
    try:
        value: Json = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: not JSON ({err}); the store is damaged: prepare or copy it again") from None
    if not isinstance(value, dict) or value.get("format") != "jaxllm-store":
        raise DataError(f"{path}: not the manifest of a token store")
    if value.get("schema") != SCHEMA:
        raise DataError(f"{path}: schema {value.get('schema')!r}, but this jaxllm reads {SCHEMA}; update jaxllm")
    try:
        return decode(Manifest, value, "manifest"), hashlib.sha256(raw).hexdigest()
    except ConfigError as err:
        raise DataError(f"{path}: {err}") from None


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """DataError names the first file that is missing or has another size. Reads nothing."""
    for entry in manifest.files:
        _check_size(folder, entry)


def verify_files(folder: Path, manifest: Manifest, threads: int = 4) -> None:
    """DataError names the first file whose bytes are not those that were written. Reads everything."""

    def check(entry: FileEntry) -> str | None:
        _check_size(folder, entry)
        found = sha256_file(folder / entry.name)
        return None if found == entry.sha256 else f"{folder / entry.name}: sha256 {found[:12]}, not {entry.sha256[:12]}"

    with ThreadPoolExecutor(threads) as pool:
        for problem in pool.map(check, manifest.files):
            if problem:
                raise DataError(f"{problem}; the store is damaged: prepare or copy it again")


def entry_of(path: Path) -> FileEntry:
    """The entry of a file that has just been written."""
    return FileEntry(name=path.name, size=path.stat().st_size, sha256=sha256_file(path))


def _check_size(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.name
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(f"{path}: missing from the store; prepare or copy it again") from None
    if size != entry.size:
        raise DataError(f"{path}: {size} bytes, not {entry.size}; the store is damaged: prepare or copy it again")
