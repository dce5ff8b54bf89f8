"""Second pass of a preparation: chosen documents to tokens, unit by unit, and units to shards.

An encoded unit is `N.train.tokens`, `N.heldout.tokens` and, written last, `N.parquet` with a row per document. Shards
are cut between documents by a rule that knows nothing of units, so that how the work was cut leaves no trace.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from jaxllm.core.files import write_json_atomic
from jaxllm.data.document_table import write_ids, write_table
from jaxllm.data.manifest import entry_of
from jaxllm.data.scan import batches
from jaxllm.data.selection import DROPPED, HELDOUT, Choice
from jaxllm.data.tokenizer import Encoder
from jaxllm.data.work import appearing

if TYPE_CHECKING:
    import pyarrow as pa

_COPY = 1 << 24


@dataclass(frozen=True)
class Part:
    """Documents [first, stop) of one split of an encoded unit, which are its tokens [first_token, stop_token)."""

    unit: Path
    first: int
    stop: int
    first_token: int
    stop_token: int


@dataclass(frozen=True)
class ShardPlan:
    """A shard to write: `name` is the stem of its files, `start` its first token in the split, `token_width` bytes."""

    name: str
    split: str
    start: int
    token_width: int
    parts: tuple[Part, ...]

    @property
    def tokens(self) -> int:
        return sum(p.stop_token - p.first_token for p in self.parts)


def tokens_file(unit: Path, split: str) -> Path:
    """Where an encoded unit, named by its Parquet file, keeps the tokens of a split."""
    return unit.with_name(f"{unit.stem}.{split}.tokens")


# ---- encoding --------------------------------------------------------------------------------------------------------


def encode_unit(scan: Path, choice: Choice, tokenizer: Path, end_of_text: str, out: Path) -> None:
    """Tokenize the chosen documents of a scan."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoder = _encoder(tokenizer, end_of_text)
    row, tables = 0, []
    with (
        appearing(tokens_file(out, "train")) as train,
        appearing(tokens_file(out, "heldout")) as heldout,
        open(train, "wb") as train_tokens,
        open(heldout, "wb") as heldout_tokens,
    ):
        for batch in batches(scan, "id", "origin", "line", "bytes", "sha256", "text"):
            flags = choice.flags[row : row + len(batch)]
            kept = np.flatnonzero(flags != DROPPED)
            taken = batch.take(pa.array(kept))
            encoded = encoder.encode(taken.column("text").to_pylist())
            for flag, ids in zip(flags[kept], encoded, strict=True):
                (heldout_tokens if flag == HELDOUT else train_tokens).write(ids.tobytes())
            names = taken.column("id").to_pylist()
            names = [choice.renamed.get(row + int(i), name) for i, name in zip(kept, names, strict=True)]
            columns = {name: taken.column(name) for name in ("origin", "line", "bytes", "sha256")} | {
                "id": names,
                "length": [len(ids) for ids in encoded],
                "token_bytes": [int(encoder.token_bytes[ids].sum(dtype=np.int64)) for ids in encoded],
                "heldout": flags[kept] == HELDOUT,
            }
            tables.append(pa.table(columns, schema=_schema()))
            row += len(batch)
    with appearing(out) as partial:
        pq.write_table(pa.concat_tables(tables) if tables else _schema().empty_table(), partial, compression="zstd")


@lru_cache(maxsize=2)
def _encoder(path: Path, end_of_text: str) -> Encoder:
    return Encoder(path, end_of_text)


def _schema() -> "pa.Schema":
    import pyarrow as pa

    text, number = pa.large_string(), pa.int64()
    return pa.schema(
        [
            ("id", text),
            ("origin", text),
            ("line", number),
            ("bytes", number),
            ("sha256", pa.binary(32)),
            ("length", number),
            ("token_bytes", number),
            ("heldout", pa.bool_()),
        ]
    )


# ---- assembly --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitPlan:
    """One split of one source before it is written."""

    tokens: int
    bytes: int
    token_bytes: int
    ends: np.ndarray  # int64, one past the last token of each document
    shards: tuple[ShardPlan, ...]


def plan_split(source: str, split: str, units: Sequence[Path], shard_tokens: int, token_width: int) -> SplitPlan:
    """Cut a split into shards: each takes documents while they fit into `shard_tokens`, and at least one."""
    lengths, sums = [], np.zeros(2, np.int64)
    for unit in units:
        table = _rows(unit, split, ["length", "bytes", "token_bytes", "heldout"])
        lengths.append(table.column("length").to_numpy())
        sums += [table.column(c).to_numpy().sum(dtype=np.int64) for c in ("bytes", "token_bytes")]
    ends = np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]), dtype=np.int64)
    bounds = np.concatenate([[0], np.cumsum([len(x) for x in lengths])]).astype(np.int64)
    shards: list[ShardPlan] = []
    first = 0
    while first < len(ends):
        start = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, start + shard_tokens, "right")))
        parts = tuple(_parts(units, lengths, bounds, first, stop))
        shards.append(ShardPlan(f"{source}.{split}-{len(shards):05}", split, start, token_width, parts))
        first = stop
    total = int(ends[-1]) if len(ends) else 0
    return SplitPlan(total, int(sums[0]), int(sums[1]), ends, tuple(shards))


def write_shard(plan: ShardPlan, folder: Path, done: Path) -> None:
    """Write the three files of a shard into `folder`, then their entries for the manifest as JSON into `done`."""
    files = [folder / f"{plan.name}.{kind}" for kind in ("tokens.bin", "documents.parquet", "ids.bin")]
    with appearing(files[0]) as partial, open(partial, "wb") as out:
        for part in plan.parts:
            _copy_tokens(part, plan.split, plan.token_width, out)
    with appearing(files[1]) as partial:
        documents = write_table(partial, _ledger(plan))
    with appearing(files[2]) as partial:
        columns = (_part_rows(part, plan.split).column("id") for part in plan.parts)
        write_ids(partial, (name for column in columns for name in column.to_pylist()))
    entries = [entry_of(f) for f in files]
    write_json_atomic(
        done,
        {
            "shard": {
                "tokens": plan.tokens,
                "documents": documents,
                "tokens_file": files[0].name,
                "documents_file": files[1].name,
                "ids_file": files[2].name,
            },
            "files": [{"name": e.name, "size": e.size, "sha256": e.sha256} for e in entries],
        },
    )


def _parts(
    units: Sequence[Path], lengths: Sequence[np.ndarray], bounds: np.ndarray, first: int, stop: int
) -> Iterator[Part]:
    """The parts of units that make up documents [first, stop) of a split; `bounds[u]` documents come before unit u."""
    unit = int(np.searchsorted(bounds, first, "right")) - 1
    while unit < len(units) and bounds[unit] < stop:
        a, b = max(first - int(bounds[unit]), 0), min(stop - int(bounds[unit]), len(lengths[unit]))
        if a < b:
            before = int(lengths[unit][:a].sum())
            yield Part(units[unit], a, b, before, before + int(lengths[unit][a:b].sum()))
        unit += 1


def _rows(unit: Path, split: str, columns: list[str] | None = None) -> "pa.Table":
    """The rows of one split of an encoded unit."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(unit, columns=columns, use_threads=False)
    heldout = table.column("heldout")
    return table.filter(heldout if split == "heldout" else pc.invert(heldout)).combine_chunks()


def _part_rows(part: Part, split: str) -> "pa.Table":
    return _rows(part.unit, split).slice(part.first, part.stop - part.first)


def _ledger(plan: ShardPlan) -> Iterator["pa.Table"]:
    """The rows of a shard's ledger, with the place of each document among the tokens of the split."""
    import pyarrow as pa

    start = plan.start
    for part in plan.parts:
        table = _part_rows(part, plan.split)
        lengths = table.column("length").to_numpy()
        starts = start + np.cumsum(lengths) - lengths
        start += int(lengths.sum())
        yield table.append_column("start", pa.array(starts, pa.int64()))


def _copy_tokens(part: Part, split: str, width: int, out: BinaryIO) -> None:
    path = tokens_file(part.unit, split)
    with open(path, "rb") as file:
        file.seek(part.first_token * width)
        left = (part.stop_token - part.first_token) * width
        while left:
            chunk = file.read(min(left, _COPY))
            assert chunk, f"{path} is shorter than its documents"
            out.write(chunk)
            left -= len(chunk)
