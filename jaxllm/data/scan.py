"""First pass of a preparation: every unit of input becomes one file of documents with their hashes.

A scan is a Parquet file with a row per document that holds text, in order, and the counts of what was left out in its
metadata. Later passes read scans only, so that broken input is met once and inputs may change afterwards.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm.core.errors import DataError
from jaxllm.data.document_table import id_key
from jaxllm.data.documents import Bad, Found, Piece, read_piece
from jaxllm.data.inputs import Unit
from jaxllm.data.manifest import BadEntry
from jaxllm.data.work import appearing

if TYPE_CHECKING:
    import pyarrow as pa

# The first bad inputs are listed, all of them are counted.
LISTED = 1000
_GROUP_BYTES = 8 << 20
_COUNTS = b"jaxllm"


@dataclass(frozen=True)
class Reading:
    """How a source is read: the fields of its records, and whether bad ones are passed over."""

    text_field: str
    id_field: str | None
    skip_bad: bool


@dataclass(frozen=True)
class Counts:
    """What one unit left out."""

    empty: int
    bad: int
    listed: tuple[BadEntry, ...]


def schema() -> "pa.Schema":
    """Columns of a scan. `key` is the document_table.id_key of the id."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.large_string()),
            ("key", pa.uint64()),
            ("origin", pa.large_string()),
            ("line", pa.int64()),
            ("bytes", pa.int64()),
            ("sha256", pa.binary(32)),
            ("text", pa.large_string()),
        ]
    )


def scan_unit(unit: Unit, reading: Reading, out: Path) -> None:
    """Read a unit into the scan `out`. DataError names file and line of the first bad input, unless it is skipped."""
    import pyarrow.parquet as pq

    empty, bad, held = 0, 0, 0
    listed: list[list[str | int]] = []
    columns: dict[str, list[Any]] = {name: [] for name in schema().names}
    with (
        appearing(out) as partial,
        pq.ParquetWriter(partial, schema(), compression="zstd", compression_level=1) as writer,
    ):
        for piece in unit.pieces:
            for item in read_piece(piece, reading.text_field, reading.id_field):
                if isinstance(item, Bad):
                    bad += 1
                    _tolerate(piece, item, reading)
                    if len(listed) < LISTED:
                        listed.append([piece.origin, item.line, item.why])
                elif not item.text or item.text.isspace():
                    empty += 1
                else:
                    held += _append(columns, piece, item)
                    if held >= _GROUP_BYTES:
                        _write(writer, columns)
                        held = 0
        _write(writer, columns)
        writer.add_key_value_metadata({_COUNTS: json.dumps({"empty": empty, "bad": bad, "listed": listed})})


def read_counts(scan: Path) -> Counts:
    """What the unit of a scan left out."""
    import pyarrow.parquet as pq

    raw = json.loads((pq.read_metadata(scan).metadata or {})[_COUNTS])
    listed = tuple(BadEntry(origin=o, line=n, why=w) for o, n, w in raw["listed"])
    return Counts(raw["empty"], raw["bad"], listed)


def read_columns(scan: Path, *names: str) -> "pa.Table":
    """Some columns of a scan, all rows."""
    import pyarrow.parquet as pq

    return pq.read_table(scan, columns=list(names), use_threads=False)


def batches(scan: Path, *names: str) -> Iterator["pa.RecordBatch"]:
    """Some columns of a scan in batches of at most 1,024 rows, in order, read as they are asked for."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(scan) as file:
        yield from file.iter_batches(1024, columns=list(names), use_threads=False)


def _append(columns: dict[str, list[Any]], piece: Piece, item: Found) -> int:
    text = item.text.encode()
    identifier = f"{piece.origin}:{item.line}" if item.id is None else item.id
    columns["id"].append(identifier)
    columns["key"].append(id_key(identifier))
    columns["origin"].append(piece.origin)
    columns["line"].append(item.line)
    columns["bytes"].append(len(text))
    columns["sha256"].append(hashlib.sha256(text).digest())
    columns["text"].append(item.text)
    return len(text)


def _write(writer: Any, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa

    if columns["id"]:
        writer.write_table(pa.table(columns, schema=schema()))
        for values in columns.values():
            values.clear()


def _tolerate(piece: Piece, item: Bad, reading: Reading) -> None:
    # Nobody can mend the modules of their own Python: one that does not parse is counted and passed over.
    if reading.skip_bad or piece.format in ("python_prose", "python_code"):
        return
    place = f"{piece.origin}:{item.line}" if item.line else piece.origin
    raise DataError(f"{place}: {item.why}; mend it, or pass over bad input with --skip-bad")
