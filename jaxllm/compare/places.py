"""Which data two runs consume apart: the rows of the first step that has other data, the places of documents that one
of them leaves out, and the edits of its stream. No jax."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxllm.compare.sides import Side
from jaxllm.compare.steps import Span, append_step
from jaxllm.core.errors import DataError
from jaxllm.data.config import Removal
from jaxllm.data.edits import Edit
from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.data.stream import Stream, stream_of_run
from jaxllm.data.windows import window_tokens
from jaxllm.ledger.find import sightings_in
from jaxllm.ledger.trace import RowTrace, documents_of_step
from jaxllm.workspace import store_at_hand

ROWS = 16  # that are shown of the first step with other data
_COUNTED = 1 << 20  # rows that are looked at, at most, for the places of a whole source


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a step in both runs: the window that it is, and its documents; "none" and empty where there is no such
    row."""

    row: int
    first: str
    second: str
    first_documents: tuple[str, ...]
    second_documents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a document, or a whole source (document is None), is left out by one run (`run`: 1 or 2) alone.

    rows: sequences of the run with a token of it from stream position `position` on; tokens: of it in those. steps: in
    which these are, as spans. counted: how many rows were looked at, None if all.
    """

    run: int
    source: str
    document: str | None
    position: int
    rows: int
    tokens: int
    steps: tuple[Span, ...]
    counted: int | None


@dataclass(frozen=True, kw_only=True)
class Apart:
    """rows: of the step asked about, `count` in all. edits: of either run, but not of both. untold: why nothing can be
    said of rows and places, None if all is."""

    count: int
    rows: tuple[Row, ...]
    places: tuple[Places, ...]
    edits: tuple[tuple[Edit, ...], tuple[Edit, ...]]
    untold: str | None

    @property
    def steps(self) -> set[int]:
        """Those that hold a place."""
        return {s for p in self.places for first, last in p.steps for s in range(first, last + 1)}


def apart(a: Side, b: Side, step: int | None) -> Apart:
    """What the stores tell, if they are here. step: the first common one with other data, if there is one.

    DataError: a run leaves out what its store does not have.
    """
    gone = [set(side.run.data.without) for side in (a, b)]
    edits = tuple(side.lineages.edits() for side in (a, b))
    alone = (_without(edits[0], edits[1]), _without(edits[1], edits[0]))
    removed = [(1, a, gone[0] - gone[1]), (2, b, gone[1] - gone[0])]
    if step is None and not any(removals for _, _, removals in removed):
        return Apart(count=0, rows=(), places=(), edits=alone, untold=None)
    found = [store_at_hand(side.run, side.folder) for side in (a, b)]
    stores = [store for store, _ in found if store is not None]
    if len(stores) < 2:
        return Apart(count=0, rows=(), places=(), edits=alone, untold=next(why for _, why in found if why is not None))
    other = [] if step is None else _rows(a, b, stores, step)
    places = tuple(
        place
        for (run, side, removals), store in zip(removed, stores, strict=True)
        for place in _places(run, side, removals, store)
    )
    return Apart(count=len(other), rows=tuple(other[:ROWS]), places=places, edits=alone, untold=None)


def _without(mine: Sequence[Edit], theirs: Sequence[Edit]) -> tuple[Edit, ...]:
    return tuple(e for e in mine if e not in theirs)


def _rows(a: Side, b: Side, stores: Sequence[Store], step: int) -> list[Row]:
    first, second = (
        {
            trace.row: trace
            for trace in documents_of_step(store, side.run.data, side.run.seed, step, side.lineages.edits())
        }
        for side, store in zip((a, b), stores, strict=True)
    )
    found = []
    for row in sorted(first.keys() | second.keys()):
        one, other = first.get(row), second.get(row)
        if _words(one) != _words(other):
            found.append(
                Row(
                    row=row,
                    first=_words(one),
                    second=_words(other),
                    first_documents=_documents(one),
                    second_documents=_documents(other),
                )
            )
    return found


def _words(row: RowTrace | None) -> str:
    if row is None:
        return "none"
    gone = [span.id for span in row.spans if span.removed]
    return f"{row.source} epoch {row.epoch} window {row.window}" + (f" without {', '.join(gone)}" if gone else "")


def _documents(row: RowTrace | None) -> tuple[str, ...]:
    return () if row is None else tuple(span.id for span in row.spans if not span.removed)


def _places(run: int, side: Side, removals: set[Removal], store: Store) -> list[Places]:
    if not removals:
        return []
    stream, table = stream_of_run(side.run.data, side.run.seed, store, side.lineages.edits())
    numbers = {source.name: k for k, source in enumerate(stream.sources)}
    ordered = sorted(removals, key=lambda r: (r.source, r.document or "", r.first))
    return [_place(run, side, r, store, stream, table, numbers.get(r.source)) for r in ordered]


def _place(
    run: int, side: Side, removal: Removal, store: Store, stream: Stream, table: StepTable, k: int | None
) -> Places:
    """k: number of the source in the stream, None if no stage draws from it."""
    data, reader, steps = side.run.data, store.sources[removal.source], list[Span]()
    rows, tokens, counted = 0, 0, None
    if k is not None and removal.document is None:
        positions = np.arange(removal.first, min(stream.total, removal.first + _COUNTED))
        counted = len(positions) if len(positions) < stream.total - removal.first else None
        there = positions[stream.rows(positions).source == k] if len(positions) else positions
        rows, tokens = len(there), len(there) * window_tokens(data.seq_len, data.windows)
        for position in there.tolist():
            append_step(steps, table.step_of(position)[0])
    elif k is not None:
        number = reader.find(removal.document or "")
        if number is None:
            raise DataError(f"the store has no document {removal.document!r} in source {removal.source!r}")
        for seen in sightings_in(reader, data, stream, table, k, number)[0]:
            if seen.position >= removal.first:
                rows, tokens = rows + 1, tokens + seen.row_stop - seen.row_start
                append_step(steps, seen.step)
    return Places(
        run=run,
        source=removal.source,
        document=removal.document,
        position=removal.first,
        rows=rows,
        tokens=tokens,
        steps=tuple(steps),
        counted=counted,
    )
