"""Step -> documents: what each row of a batch was made of. No jax."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from jaxllm.data.config import Data
from jaxllm.data.edits import Edit
from jaxllm.data.store import SourceReader, Store
from jaxllm.data.stream import stream_of_run
from jaxllm.data.windows import document_span, documents_of, span


@dataclass(frozen=True, kw_only=True)
class DocSpan:
    """Tokens of one document in a row.

    start, stop: those tokens in the stream of their source. row_start, row_stop: the same tokens in the row's window,
    whose token i is input i and label i - 1. document_start: where they begin within the document, which has
    document_tokens. document: its number in the source. removed: they were replaced, and nothing was learnt from them.
    """

    id: str
    document: int
    start: int
    stop: int
    row_start: int
    row_stop: int
    document_start: int
    document_tokens: int
    removed: bool = False


@dataclass(frozen=True, kw_only=True)
class RowTrace:
    """One row of a step's batch: where it lies in the stream, the window it is, and the documents in it, in order."""

    row: int
    position: int
    source: str
    epoch: int
    window: int
    spans: tuple[DocSpan, ...]


def documents_of_step(store: Store, data: Data, seed: int, step: int, edits: Iterable[Edit] = ()) -> list[RowTrace]:
    """The rows of step 1..steps, in the order of the batch, by the edits of a lineage.

    RunError for a step that the run does not have.
    """
    stream, table = stream_of_run(data, seed, store, edits)
    first, count, _ = table.span(step)
    rows = stream.rows(np.arange(first, first + count))
    traces = []
    for row, (k, epoch, window) in enumerate(
        zip(rows.source.tolist(), rows.epoch.tolist(), rows.window.tolist(), strict=True)
    ):
        reader = store.sources[stream.sources[k].name]
        traces.append(
            RowTrace(
                row=row,
                position=first + row,
                source=reader.name,
                epoch=epoch,
                window=window,
                spans=tuple(
                    replace(span, removed=stream.removed.covers(reader.name, first + row, span.start))
                    for span in spans_of_window(reader, data, window)
                ),
            )
        )
    return traces


def spans_of_window(reader: SourceReader, data: Data, window: int) -> tuple[DocSpan, ...]:
    """The documents with a token in a window, in order; documents without tokens are in none."""
    inside = span(window, data.seq_len, data.windows)
    first, last = documents_of(reader.ends, *inside)
    spans = []
    for number in range(first, last + 1):
        document = document_span(reader.ends, number)
        start, stop = max(document.start, inside.start), min(document.stop, inside.stop)
        if start >= stop:
            continue
        spans.append(
            DocSpan(
                id=reader.document(number).id,
                document=number,
                start=start,
                stop=stop,
                row_start=start - inside.start,
                row_stop=stop - inside.start,
                document_start=start - document.start,
                document_tokens=document.stop - document.start,
            )
        )
    return tuple(spans)
