"""The tokens of an interval in the order in which they were consumed, in the format of LLM360's chunks. No jax.

A line is one sequence: {"token_ids": [seq_len + 1 ids, or seq_len of disjoint windows], "source": ...}, which is what
readers of Amber's and K2's data take, and more about it: its step and position, epoch and window, and its documents
with the tokens of the row that are theirs. A token that a fork left out is there as it was fed, as end-of-text, and
listed.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.data.windows import span, window_tokens
from jaxllm.ledger.trace import spans_of_window
from jaxllm.release.selection import Chosen
from jaxllm.release.spans import Streams

Report = Callable[[str, int, int], None]
ROWS = 1 << 14  # sequences in a file
_AT_A_TIME = 1 << 10
_LEVEL = 10  # of zstd
_BYTES_PER_TOKEN = 4  # a bound of what a token takes when compressed


def write_chunks(streams: Streams, chosen: Chosen, out: Path, report: Report) -> None:
    """chunk-00000.jsonl.zst, ... of the positions that a checkpoint saw since its parent. DataError: a source cannot be
    read."""
    import zstandard

    out.mkdir(parents=True)
    total = chosen.last - chosen.first
    for number, start in enumerate(range(chosen.first, chosen.last, ROWS)):
        stop = min(start + ROWS, chosen.last)
        packer = zstandard.ZstdCompressor(level=_LEVEL)
        with (
            (out / f"chunk-{number:05d}.jsonl.zst").open("wb") as raw,
            packer.stream_writer(raw, closefd=False) as packed,
            io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
        ):
            for i, line in enumerate(lines(streams, chosen.lineage, start, stop)):
                file.write(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")
                if i % _AT_A_TIME == 0:
                    report("token chunks", start + i - chosen.first, total)
    report("token chunks", total, total)


def lines(streams: Streams, lineage: int | None, first: int, last: int) -> Iterator[dict[str, Any]]:
    """A value per position first..last-1, in order."""
    data, store, table, stream = streams.run.data, streams.store, streams.table, streams.of(lineage)
    width = window_tokens(data.seq_len, data.windows)
    for start in range(first, last, _AT_A_TIME):
        positions = np.arange(start, min(start + _AT_A_TIME, last))
        rows = stream.rows(positions)
        for position, k, epoch, window in zip(
            positions.tolist(), rows.source.tolist(), rows.epoch.tolist(), rows.window.tolist(), strict=True
        ):
            reader = store.sources[stream.sources[k].name]
            begin = span(window, data.seq_len, data.windows).start
            tokens = reader.read(begin, begin + width).astype(np.int64)
            said: dict[str, Any] = {}
            if stream.removed:
                gone = stream.removed.mask(reader.name, np.array([position]), np.array([begin]), width)[0]
                tokens[gone] = store.end_of_text_id
                said = {"removed": np.flatnonzero(gone).tolist()} if gone.any() else {}
            yield {
                "token_ids": tokens.tolist(),
                "source": reader.name,
                "step": table.step_of(position)[0],
                "position": position,
                "epoch": epoch,
                "window": window,
                "documents": [
                    {"id": d.id, "start": d.row_start, "stop": d.row_stop}
                    for d in spans_of_window(reader, data, window)
                ],
                **said,
            }


def chunk_bytes(streams: Streams, chosen: Chosen) -> int:
    """What they will take at most, about."""
    width = window_tokens(streams.run.data.seq_len, streams.run.data.windows)
    return (chosen.last - chosen.first) * width * _BYTES_PER_TOKEN
