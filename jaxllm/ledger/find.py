"""Document -> steps: which updates saw a document, or why none did. No jax."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxllm.core.errors import DataError
from jaxllm.data.config import Data
from jaxllm.data.edits import Edit
from jaxllm.data.steps import StepTable
from jaxllm.data.store import SourceReader, Store
from jaxllm.data.stream import Stream, stream_of_run
from jaxllm.data.windows import document_span, span, windows_of_document


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A row that held tokens row_start..row_stop-1 of its window from the document, start..stop-1 of the source.

    removed: they were replaced by then, and nothing was learnt from them.
    """

    step: int
    row: int
    position: int
    source: str
    epoch: int
    window: int
    row_start: int
    row_stop: int
    start: int
    stop: int
    removed: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """Every sighting of a document, by step and row; `never` says why there is none.

    tail_tokens: tokens of it behind the last whole window of its source, which no step can see.
    """

    sightings: tuple[Sighting, ...]
    never: str | None
    tail_tokens: int = 0


def steps_of_document(
    store: Store, data: Data, seed: int, document: str, *, source: str | None = None, edits: Iterable[Edit] = ()
) -> Found:
    """Where the run sees the document with this id, in one source or in all, by the edits of a lineage.

    DataError if the store has no such id.
    """
    stream, table = stream_of_run(data, seed, store, edits)
    numbers = {stream.sources[k].name: k for k in range(len(stream.sources))}
    sightings: list[Sighting] = []
    reasons: list[str] = []
    unread = 0
    for name in _names(store, source):
        if name in store.heldout and store.heldout[name].find(document) is not None:
            reasons.append(f"held out of source {name!r}")
        number = store.sources[name].find(document) if name in store.sources else None
        if number is None:
            continue
        if name not in numbers:
            reasons.append(f"source {name!r} is in no stage's mixture")
            continue
        seen, why, behind = sightings_in(store.sources[name], data, stream, table, numbers[name], number)
        sightings += seen
        reasons += [why] if why else []
        unread += behind
    if not sightings and not reasons:
        raise DataError(f"the store has no document {document!r} in {source or ', '.join(_names(store, None))}")
    sightings.sort(key=lambda s: (s.step, s.row))
    return Found(sightings=tuple(sightings), never=None if sightings else "; ".join(reasons), tail_tokens=unread)


def _names(store: Store, source: str | None) -> list[str]:
    known = sorted({*store.sources, *store.heldout})
    if source is None:
        return known
    if source not in known:
        raise DataError(f"the store has no source {source!r}; it has {', '.join(known)}")
    return [source]


def sightings_in(
    reader: SourceReader, data: Data, stream: Stream, table: StepTable, k: int, number: int
) -> tuple[list[Sighting], str | None, int]:
    """The sightings of document `number` of the source with this reader, which is source `k` of the stream; else why
    there is none; and its tokens in the tail."""
    document = document_span(reader.ends, number)
    where = windows_of_document(reader.ends, number, data.seq_len, data.windows)
    found = []
    for position, epoch, window in stream.uses(k, where.windows):
        inside = span(window, data.seq_len, data.windows)
        start, stop = max(document.start, inside.start), min(document.stop, inside.stop)
        step, row = table.step_of(position)
        found.append(
            Sighting(
                step=step,
                row=row,
                position=position,
                source=reader.name,
                epoch=epoch,
                window=window,
                row_start=start - inside.start,
                row_stop=stop - inside.start,
                start=start,
                stop=stop,
                removed=stream.removed.covers(reader.name, position, start),
            )
        )
    if found:
        return found, None, where.tail_tokens
    if where.windows:
        drawn, size = stream.order.drawn(k), stream.sources[k].windows
        if len(stream.order.uses(k, where.windows).sample):
            return [], f"left out: every window of source {reader.name!r} with it was skipped", where.tail_tokens
        why = f"not drawn: the run takes {drawn:,} of the {size:,} windows of source {reader.name!r}, none with it"
        return [], why, where.tail_tokens
    if document.start == document.stop:
        return [], f"it has no tokens in source {reader.name!r}", 0
    return [], f"in the tail of source {reader.name!r}, behind its last whole window", where.tail_tokens
