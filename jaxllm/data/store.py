"""The token store: documents as flat tokens on disk, read at any place in constant time.

A store is a folder, written once by `prepare` and never changed (NAME is a source, SPLIT is train or heldout):

    manifest.json                       what is here, from what it was made, size and sha256 of every file
    tokenizer.json                      as trained, or as given
    token_bytes.bin                     u16 per token id: UTF-8 bytes of text that the token stands for, 0 if special
    inputs.jsonl                        every input file with its size and sha256
    NAME.SPLIT-00000.tokens.bin         token ids: u16 up to 65,536 of them in the vocabulary, else u32
    NAME.SPLIT-00000.documents.parquet  the ledger: a row per document (document_table.py)
    NAME.SPLIT-00000.ids.bin            the ledger's index by id
    NAME.SPLIT.ends.bin                 u64 per document: one past its last token, counted over all shards of the split

Everything is little-endian. A shard holds whole documents; every document ends with the end-of-text token. To its
readers a split is one stream of tokens, and a window may begin in one shard and end in the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxllm.core.errors import DataError
from jaxllm.data.document_table import DocumentTable
from jaxllm.data.manifest import (
    FileEntry,
    Manifest,
    ShardEntry,
    SplitEntry,
    check_sizes,
    read_manifest,
    verify_files,
)
from jaxllm.data.mapped import map_numbers

Split = Literal["train", "heldout"]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document of a source: tokens [start, stop) of its split, the last of them end-of-text.

    `bytes` and `sha256` (hex) are those of the text; `origin` and `line` (a row, in a .parquet) say where it came from.
    """

    id: str
    source: str
    start: int
    stop: int
    bytes: int
    sha256: str
    origin: str
    line: int = 1
    split: Split = "train"


class SourceReader:
    """One split of one source as a stream of tokens. Maps files at first use; travels by pickle without its maps."""

    _ends: np.ndarray | None
    _shards: dict[int, np.ndarray]
    _tables: dict[int, DocumentTable]

    def __init__(self, folder: Path, name: str, split: Split, entry: SplitEntry, dtype: str) -> None:
        self.name, self.split = name, split
        self.tokens, self.documents, self.bytes = entry.tokens, entry.documents, entry.bytes
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._folder, self._entry = folder, entry
        self._token_bounds = _bounds([s.tokens for s in entry.shards])
        self._document_bounds = _bounds([s.documents for s in entry.shards])
        if (self._token_bounds[-1], self._document_bounds[-1]) != (entry.tokens, entry.documents):
            raise DataError(
                f"{folder}: the shards of {name!r} ({split}) do not add up; prepare or copy the store again"
            )
        self._forget()

    @property
    def ends(self) -> np.ndarray:
        """int64[documents], a map of the file: one past the last token of each document, ascending."""
        if self._ends is None:
            path = self._folder / self._entry.ends_file
            ends = map_numbers(path, np.dtype("<i8"), self.documents)  # u64 on disk; token counts stay far below 2^63
            if self.documents and int(ends[-1]) != self.tokens:
                raise DataError(
                    f"{path}: its documents do not end at token {self.tokens}; prepare or copy the store again"
                )
            self._ends = ends
        return self._ends

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as uint16 or uint32; a view of the map where one shard holds them all."""
        self._check(start, stop)
        parts = []
        for shard in range(self._shard_of(start), len(self._entry.shards)):
            first, last = self._token_bounds[shard], self._token_bounds[shard + 1]
            if first >= stop:
                break
            parts.append(self._shard(shard)[max(start, first) - first : min(stop, last) - first])
        if not parts:
            return np.empty(0, self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def gather(self, starts: np.ndarray | Sequence[int], length: int) -> np.ndarray:
        """The windows [starts[i], starts[i] + length) as uint16 or uint32 [n, length], in the order asked for."""
        firsts = np.asarray(starts, np.int64)
        if not len(firsts) or not length:
            return np.empty((len(firsts), length), self.dtype)
        self._check(int(firsts.min()), int(firsts.max()) + length)
        if len(self._entry.shards) == 1:
            return self._windows(0, length)[firsts]
        out = np.empty((len(firsts), length), self.dtype)
        shards = np.searchsorted(self._token_bounds, firsts, "right") - 1
        crossing = firsts + length > self._token_bounds[shards + 1]
        for i in np.flatnonzero(crossing):
            out[i] = self.read(int(firsts[i]), int(firsts[i]) + length)
        for shard in np.unique(shards[~crossing]):
            rows = np.flatnonzero((shards == shard) & ~crossing)
            out[rows] = self._windows(int(shard), length)[firsts[rows] - self._token_bounds[shard]]
        return out

    def document(self, index: int) -> Document:
        """Document `index`, counted from 0 over all shards. IndexError if there is none."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.name!r} ({self.split}), which has {self.documents}")
        shard = int(np.searchsorted(self._document_bounds, index, "right")) - 1
        row = self._table(shard).row(index - int(self._document_bounds[shard]))
        return Document(
            id=row["id"],
            source=self.name,
            start=row["start"],
            stop=row["start"] + row["length"],
            bytes=row["bytes"],
            sha256=row["sha256"].hex(),
            origin=row["origin"],
            line=row["line"],
            split=self.split,
        )

    def find(self, doc_id: str) -> int | None:
        """The number of the document with this id, by which `document` and `ends` know it; None if there is none."""
        for shard in range(len(self._entry.shards)):
            row = self._table(shard).find(doc_id)
            if row is not None:
                return row + int(self._document_bounds[shard])
        return None

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.name!r} ({self.split}), which has {self.tokens}")

    def _shard_of(self, token: int) -> int:
        return max(0, int(np.searchsorted(self._token_bounds, token, "right")) - 1)

    def _windows(self, shard: int, length: int) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(self._shard(shard), length)

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._shards:
            entry = self._entry.shards[shard]
            self._shards[shard] = map_numbers(self._folder / entry.tokens_file, self.dtype, entry.tokens)
        return self._shards[shard]

    def _table(self, shard: int) -> DocumentTable:
        if shard not in self._tables:
            e: ShardEntry = self._entry.shards[shard]
            self._tables[shard] = DocumentTable(self._folder / e.documents_file, self._folder / e.ids_file, e.documents)
        return self._tables[shard]

    def _forget(self) -> None:
        self._ends, self._shards, self._tables = None, {}, {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ends": None, "_shards": {}, "_tables": {}}


class Store:
    """An opened store. Make it with `Store.open`.

    `sources` and `heldout` are readers by name in the recipe's order; a source is in `heldout` if documents of it are.
    """

    def __init__(self, folder: Path, manifest: Manifest, manifest_sha256: str) -> None:
        self.path, self.manifest, self.manifest_sha256 = folder, manifest, manifest_sha256
        self.tokenizer_path = folder / manifest.tokenizer.file
        self.tokenizer_identity = manifest.tokenizer.identity
        self.vocab_size = manifest.tokenizer.vocab_size
        self.end_of_text = manifest.tokenizer.end_of_text
        self.end_of_text_id = manifest.tokenizer.end_of_text_id
        self.sources: dict[str, SourceReader] = {}
        self.heldout: dict[str, SourceReader] = {}
        for source in manifest.sources:
            self.sources[source.name] = SourceReader(folder, source.name, "train", source.train, manifest.dtype)
            if source.heldout.documents:
                self.heldout[source.name] = SourceReader(folder, source.name, "heldout", source.heldout, manifest.dtype)

    @classmethod
    def open(cls, path: str | Path, expect_manifest: str | None = None) -> "Store":
        """Open a local store: manifest and file sizes are checked, no data is read.

        DataError if a file is missing or has another size, or if the manifest's sha256 is not `expect_manifest`.
        """
        folder = Path(path)
        manifest, found = read_manifest(folder)
        if expect_manifest is not None and found != expect_manifest:
            raise DataError(
                f"{folder}: its manifest is {found[:12]}, not {expect_manifest[:12]}; name the store that was meant"
            )
        check_sizes(folder, manifest)
        return cls(folder, manifest, found)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """uint16[vocab_size]: UTF-8 bytes of text that each token stands for, 0 for special tokens."""
        path = self.path / self.manifest.tokenizer.token_bytes_file
        return np.array(map_numbers(path, np.dtype("<u2"), self.vocab_size))

    def verify(self) -> None:
        """Hash every file. DataError names the first that is not what the manifest says."""
        verify_files(self.path, self.manifest)

    def files(self) -> tuple[FileEntry, ...]:
        """Every file but the manifest itself."""
        return self.manifest.files


def describe(store: Store) -> dict[str, Any]:
    """What a store holds, as a JSON value: for `jaxllm data info`. `sources` has a row per source and split."""
    manifest = store.manifest
    rows = [
        {
            "name": source.name,
            "split": split,
            "documents": entry.documents,
            "tokens": entry.tokens,
            "bytes": entry.bytes,
            "bytes_per_token": round(entry.bytes / entry.tokens, 4) if entry.tokens else None,
            "shards": len(entry.shards),
        }
        for source in manifest.sources
        for split, entry in (("train", source.train), ("heldout", source.heldout))
    ]
    return {
        "path": str(store.path),
        "manifest": store.manifest_sha256,
        "recipe": manifest.recipe.name,
        "dtype": manifest.dtype,
        "vocab_size": store.vocab_size,
        "end_of_text": store.end_of_text,
        "tokenizer": store.tokenizer_identity,
        "python": manifest.versions.python,
        "sources": rows,
        "left_out": [
            {
                "name": s.name,
                "duplicates": s.duplicates,
                "empty": s.empty,
                "bad": s.bad,
                "listed": [f"{b.origin}:{b.line}: {b.why}" if b.line else f"{b.origin}: {b.why}" for b in s.bad_listed],
            }
            for s in manifest.sources
        ],
        "documents": sum(x.documents for s in manifest.sources for x in (s.train, s.heldout)),
        "tokens": sum(x.tokens for s in manifest.sources for x in (s.train, s.heldout)),
        "bytes": sum(f.size for f in manifest.files),
    }


def _bounds(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).astype(np.int64)
