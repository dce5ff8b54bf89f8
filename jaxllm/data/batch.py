"""Windows of a store -> the arrays of a batch, and the digest of what they hold. numpy only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxllm.core.errors import DataError
from jaxllm.core.mixing import add_lanes, batch_digest
from jaxllm.data.config import Data
from jaxllm.data.steps import StepTable
from jaxllm.data.store import SourceReader, Store
from jaxllm.data.stream import Stream
from jaxllm.data.windows import document_at, window_tokens

Arrays = dict[str, np.ndarray]
Weigh = Callable[[int, np.ndarray], np.ndarray]  # step, positions of its rows -> float32 [rows]


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """The rows of one step's batch that this process feeds, and their share of the batch's digest.

    arrays, all [rows, S]: inputs int32; labels int32; segments int32, the number of the document within the row, from
    0; positions int32; loss_mask bool, which labels count. rows: where these rows lie in the global batch, which has
    `sequences`. lanes: two uint32 sums that add over processes, modulo 2^32, to the digest of the global batch.
    """

    step: int
    cursor: int
    stage: int
    sequences: int
    rows: slice
    arrays: Mapping[str, np.ndarray]
    lanes: tuple[int, int]


def all_rows(batch_size: int) -> slice:
    """The rows of a process that reads the whole batch."""
    return slice(0, batch_size)


def host_batch(
    store: Store,
    stream: Stream,
    table: StepTable,
    data: Data,
    step: int,
    rows: Callable[[int], slice] = all_rows,
    counted: Callable[[int], Sequence[slice]] | None = None,
    weigh: Weigh | None = None,
) -> HostBatch:
    """The batch of `step`, 1..table.steps; rows: global batch size -> the rows to read, without a stride; counted:
    those among them whose lanes are this process's to give, all by default. weigh: adds the array `weights`.

    DataError if a source cannot be read there.
    """
    first, count, stage = table.span(step)
    mine = rows(count)
    positions = np.arange(first + mine.start, first + mine.stop)
    at = stream.rows(positions)
    tokens = np.zeros((len(at), window_tokens(data.seq_len, data.windows)), np.uint32)
    opens = np.zeros(tokens.shape, bool)
    gone = np.zeros(tokens.shape, bool) if stream.removed else None
    for k in np.unique(at.source).tolist():
        here = np.flatnonzero(at.source == k)
        reader = store.sources[stream.sources[k].name]
        tokens[here], opens[here] = _read(reader, at.window[here], data, f"step {step}, ")
        if gone is not None:
            starts = at.window[here] * data.seq_len
            gone[here] = stream.removed.mask(reader.name, positions[here], starts, tokens.shape[1])
    if gone is not None:
        tokens[gone] = store.end_of_text_id
    arrays = _arrays(tokens, opens, data, gone)
    covered, own = flags(arrays), [mine] if counted is None else counted(count)
    local = [(slice(s.start - mine.start, s.stop - mine.start), s.start) for s in own]
    lanes = add_lanes(*(batch_digest(tokens[here], covered[here], start) for here, start in local))
    if weigh is not None:
        arrays["weights"] = np.repeat(weigh(step, positions)[:, None], data.seq_len, axis=1)
    return HostBatch(step=step, cursor=first, stage=stage, sequences=count, rows=mine, arrays=arrays, lanes=lanes)


def assemble(reader: SourceReader, windows: np.ndarray, data: Data) -> Arrays:
    """The arrays of HostBatch for any windows (int [rows]) of one source."""
    return _arrays(*_read(reader, np.asarray(windows, np.int64), data, ""), data)


def flags(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint32 [rows, S], what the digest covers beside the tokens: segment << 1 | loss_mask."""
    return arrays["segments"].astype(np.uint32) << np.uint32(1) | arrays["loss_mask"].astype(np.uint32)


def _read(reader: SourceReader, window: np.ndarray, data: Data, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens uint32 [rows, width] of windows, and `_opens` of them."""
    width = window_tokens(data.seq_len, data.windows)
    start = window * data.seq_len
    try:
        tokens = reader.gather(start, width)
    except (OSError, ValueError, IndexError) as err:
        raise DataError(f"{where}{_complaint(reader, start, width)}: {err}") from err
    if tokens.shape != (len(window), width):
        raise DataError(f"{where}{_complaint(reader, start, width)}: it is shorter than its manifest says")
    return tokens.astype(np.uint32), _opens(reader.ends, start, width)


def _complaint(reader: SourceReader, start: np.ndarray, width: int) -> str:
    low, high = (int(start.min()), int(start.max()) + width) if start.size else (0, 0)
    return (
        f"source {reader.name!r} cannot be read within tokens {low} to {high - 1}; check the store with "
        f"`jaxllm data info STORE --verify`"
    )


def _opens(ends: np.ndarray, start: np.ndarray, width: int) -> np.ndarray:
    """bool [rows, width]: whether a document other than that of the row's first token opens at this token."""
    first, last = document_at(ends, start), document_at(ends, start + width - 1)
    count = last - first
    row = np.repeat(np.arange(len(start)), count)
    before = np.cumsum(count) - count
    ended = first[row] + np.arange(len(row)) - before[row]
    opens = np.zeros((len(start), width), bool)
    opens[row, ends[ended].astype(np.int64) - start[row]] = True
    return opens


def _arrays(tokens: np.ndarray, opens: np.ndarray, data: Data, gone: np.ndarray | None = None) -> Arrays:
    rows, S = len(tokens), data.seq_len
    inputs_BS = tokens[:, :S].astype(np.int32)
    labels_BS = np.zeros((rows, S), np.int32)
    mask_BS = np.zeros((rows, S), bool)
    scored = tokens.shape[1] - 1  # the last position of a disjoint window has no label
    labels_BS[:, :scored] = tokens[:, 1:]
    mask_BS[:, :scored] = ~opens[:, 1:] if data.loss == "document" else True
    if gone is not None:  # nothing is learnt about what is gone, nor from it
        mask_BS[:, :scored] &= ~gone[:, 1:] & ~gone[:, :scored]
    column_S = np.arange(S, dtype=np.int32)
    if data.attention == "document":
        opens_BS = opens[:, :S]
        segments_BS = np.cumsum(opens_BS, axis=1, dtype=np.int32)
        positions_BS = column_S - np.maximum.accumulate(np.where(opens_BS, column_S, np.int32(0)), axis=1)
    else:
        # What is gone is a segment of its own; what stands before and behind it still see each other.
        segments_BS = np.zeros((rows, S), np.int32) if gone is None else gone[:, :S].astype(np.int32)
        positions_BS = np.broadcast_to(column_S, (rows, S)).copy()
    return {
        "inputs": inputs_BS,
        "labels": labels_BS,
        "segments": segments_BS,
        "positions": positions_BS,
        "loss_mask": mask_BS,
    }
