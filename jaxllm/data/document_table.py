"""The document ledger of a shard: which document its tokens belong to, found by number and by id.

`.documents.parquet` has a row per document in token order, in row groups of ROWS so that one document costs one small
read. `.ids.bin` finds a row by id: the sorted u64 keys of all ids (`id_key`), then the u32 row of each, little-endian.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.core.errors import DataError
from jaxllm.data.mapped import map_numbers

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS = 4096
_HELD_GROUPS = 64  # row groups kept in memory by a reader, about 0.5 MB each


def schema() -> "pa.Schema":
    """id; origin (input file); line in it (row of a .parquet), from 1; first token in the source; tokens, the closing
    end-of-text token among them; UTF-8 bytes and sha256 of the text."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.large_string()),
            ("origin", pa.large_string()),
            ("line", pa.int64()),
            ("start", pa.int64()),
            ("length", pa.int64()),
            ("bytes", pa.int64()),
            ("sha256", pa.binary(32)),
        ]
    )


def id_key(identifier: str) -> int:
    """The 64-bit key under which an id is found."""
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "little")


def write_table(path: Path, tables: Iterable["pa.Table"]) -> int:
    """Write rows that come in tables of any size; the bytes depend on the rows alone. The number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    held, rows = schema().empty_table(), 0
    with pq.ParquetWriter(path, schema(), compression="zstd") as writer:
        for table in tables:
            held = pa.concat_tables([held, table.select(schema().names).cast(schema())]).combine_chunks()
            rows += len(table)
            whole = len(held) - len(held) % ROWS
            if whole:
                writer.write_table(held.slice(0, whole), row_group_size=ROWS)
                held = held.slice(whole).combine_chunks()
        if len(held) or not rows:
            writer.write_table(held, row_group_size=ROWS)
    return rows


def write_ids(path: Path, ids: Iterable[str]) -> None:
    """Write the index by id. Equal keys keep the order of their rows."""
    keys = np.fromiter((id_key(x) for x in ids), dtype="<u8")
    order = np.argsort(keys, kind="stable")
    with open(path, "wb") as file:
        file.write(keys[order].tobytes())
        file.write(order.astype("<u4").tobytes())


class DocumentTable:
    """Reads the ledger of one shard. Opens its files at first use; travels by pickle without them."""

    _file: "pq.ParquetFile | None"
    _index: tuple[np.ndarray, np.ndarray] | None
    _groups: OrderedDict[int, dict[str, list[Any]]]

    def __init__(self, table: Path, ids: Path, documents: int) -> None:
        self._table_path, self._ids_path, self._documents = table, ids, documents
        self._forget()

    def row(self, index: int) -> dict[str, Any]:
        """The row of document `index` of the shard, columns as in `schema`."""
        group, within = divmod(index, ROWS)
        return {name: column[within] for name, column in self._group(group).items()}

    def find(self, identifier: str) -> int | None:
        """The row of the document with this id."""
        if self._index is None:
            n = self._documents
            keys = map_numbers(self._ids_path, np.dtype("<u8"), n, after=4 * n)
            self._index = keys, map_numbers(self._ids_path, np.dtype("<u4"), n, 8 * n)
        keys, rows = self._index
        key = np.uint64(id_key(identifier))
        first, last = np.searchsorted(keys, key, "left"), np.searchsorted(keys, key, "right")
        return next((r for r in rows[first:last].tolist() if self.row(r)["id"] == identifier), None)

    def _group(self, group: int) -> dict[str, list[Any]]:
        if group in self._groups:
            self._groups.move_to_end(group)
            return self._groups[group]
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            if self._file is None:
                self._file = pq.ParquetFile(self._table_path, memory_map=True)
            columns = self._file.read_row_group(group, use_threads=False).to_pydict()
        except (pa.ArrowException, OSError) as err:
            raise DataError(f"{self._table_path}: cannot be read ({err}); prepare or copy the store again") from None
        self._groups[group] = columns
        if len(self._groups) > _HELD_GROUPS:
            self._groups.popitem(last=False)
        return columns

    def _forget(self) -> None:
        self._file = None
        self._index = None
        self._groups = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_table_path": self._table_path, "_ids_path": self._ids_path, "_documents": self._documents}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
