"""Documents that a fork leaves out: where their tokens lie in any rows of a batch. numpy only."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from jaxllm.core.config import suggest
from jaxllm.core.errors import DataError
from jaxllm.data.config import Removal
from jaxllm.data.store import Store
from jaxllm.data.windows import document_span


@dataclass(frozen=True)
class _Spans:
    """Tokens of one source that are gone from a stream position on: sorted, apart from each other."""

    first: int
    starts: np.ndarray
    stops: np.ndarray


class Removed:
    """Where documents are gone, by source and stream position."""

    def __init__(self, removals: Iterable[Removal], store: Store) -> None:
        """DataError names a source or a document that the store does not have."""
        self._spans: dict[str, list[_Spans]] = {}
        grouped: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for removal in removals:
            grouped.setdefault((removal.source, removal.first), []).append(_tokens_of(removal, store))
        for (source, first), spans in grouped.items():
            starts, stops = (np.array(side, np.int64) for side in zip(*_apart(spans), strict=True))
            self._spans.setdefault(source, []).append(_Spans(first, starts, stops))

    def __bool__(self) -> bool:
        return bool(self._spans)

    def mask(self, source: str, positions: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
        """bool [N, width]: which tokens of rows at these stream positions are gone. starts: where the rows' windows
        begin in the source."""
        gone = np.zeros((len(starts), width), bool)
        for spans in self._spans.get(source, ()):
            low = np.searchsorted(spans.stops, starts, "right")
            high = np.searchsorted(spans.starts, starts + width, "left")
            for row in np.flatnonzero((low < high) & (positions >= spans.first)).tolist():
                for start, stop in zip(
                    spans.starts[low[row] : high[row]], spans.stops[low[row] : high[row]], strict=True
                ):
                    gone[row, max(start - starts[row], 0) : stop - starts[row]] = True
        return gone

    def covers(self, source: str, position: int, start: int) -> bool:
        """Whether the token `start` of a source is gone in a row at a stream position."""
        return bool(self.mask(source, np.array([position]), np.array([start]), 1)[0, 0])


def sources_of(document: str, store: Store) -> list[str]:
    """The sources that have a document to train on. DataError if none has."""
    found = [name for name, reader in store.sources.items() if reader.find(document) is not None]
    if not found:
        raise DataError(f"the store trains on no document {document!r}; ids are as `jaxllm data step` prints them")
    return found


def _apart(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same tokens as spans that neither overlap nor touch, sorted."""
    apart: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if apart and start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(stop, apart[-1][1]))
        else:
            apart.append((start, stop))
    return apart


def _tokens_of(removal: Removal, store: Store) -> tuple[int, int]:
    if removal.source not in store.sources:
        raise DataError(
            f"data.without names source {removal.source!r}, which the store does not have"
            + suggest(removal.source, store.sources)
        )
    reader = store.sources[removal.source]
    if removal.document is None:
        return 0, reader.tokens
    number = reader.find(removal.document)
    if number is None:
        raise DataError(f"data.without names document {removal.document!r}, which {removal.source!r} does not have")
    span = document_span(reader.ends, number)
    return span.start, span.stop
