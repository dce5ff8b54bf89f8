"""A token store in memory, with the readers' interface of jaxllm.data.store."""

from collections.abc import Sequence

import numpy as np

from jaxllm.data.store import Document, SourceReader, Store


class FakeReader(SourceReader):
    """Documents of given lengths (0 is allowed) with ids `<name>-<number>`; token t of the source is `first + t`."""

    def __init__(self, name: str, lengths: Sequence[int], first: int = 0) -> None:
        self.name = name
        self.stream = np.arange(first, first + sum(lengths), dtype=np.uint16)
        self.tokens, self.documents = len(self.stream), len(lengths)
        self.fake_ends = np.cumsum(np.asarray(lengths, np.int64))

    @property
    def ends(self) -> np.ndarray:
        return self.fake_ends

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.stream[start:stop]

    def gather(self, starts: np.ndarray | Sequence[int], length: int) -> np.ndarray:
        return self.stream[np.asarray(starts)[:, None] + np.arange(length)]

    def document(self, index: int) -> Document:
        start = int(self.fake_ends[index - 1]) if index else 0
        return Document(
            id=f"{self.name}-{index}",
            source=self.name,
            start=start,
            stop=int(self.fake_ends[index]),
            bytes=0,
            sha256="",
            origin="",
        )

    def find(self, doc_id: str) -> int | None:
        name, _, number = doc_id.rpartition("-")
        return int(number) if name == self.name and int(number) < self.documents else None


class FakeStore(Store):
    """Sources and held-out documents, as readers."""

    def __init__(self, sources: Sequence[FakeReader], heldout: Sequence[FakeReader] = ()) -> None:
        self.sources = {reader.name: reader for reader in sources}
        self.fakes = {reader.name: reader for reader in sources}
        self.heldout = {reader.name: reader for reader in heldout}
        self.manifest_sha256 = "0" * 64


def document_lengths(seed: int, count: int, longest: int) -> list[int]:
    """Lengths of documents, some of which are empty or span several windows."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest // 4, count)
    lengths[rng.integers(0, count, max(count // 10, 1))] = longest
    lengths[rng.integers(1, count - 1, max(count // 20, 1))] = 0
    return lengths.tolist()
