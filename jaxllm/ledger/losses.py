"""The loss of every sequence that was trained on, by its position in the stream."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm.core.errors import LedgerError
from jaxllm.core.files import make_folder, read_json

if TYPE_CHECKING:
    import numpy as np

NEVER = -1  # in tokens, where nothing was recorded; a sequence without a label that counts has 0

_BUFFERED = 1 << 18  # positions held in memory at most: 2 MB
_FILES = 1024  # per array, as long as the chunks stay below _LARGEST
_SMALLEST, _LARGEST = 1 << 12, 1 << 20


def chunk_of(positions: int) -> int:
    """Positions in a chunk (a file per array): a power of two, so large that a whole run makes few files."""
    return min(max(_SMALLEST, 1 << (-(-positions // _FILES) - 1).bit_length()), _LARGEST)


class LossLog:
    """Loss sums (float32, nats) and label counts (int32) of one lineage, two zarr v3 arrays over stream positions.

    Positions that were never recorded hold NaN and NEVER. What is written is held in memory until `flush`, or until
    there is much of it; a chunk is replaced as a whole, so a writer killed in a flush leaves each position as it was or
    as it was to be. A position whose tokens are not NEVER has its sum. Nothing is created before there is something to
    write.
    """

    def __init__(self, folder: Path | str, positions: int, lineage: int) -> None:
        """`positions` is the number of sequences of the whole run. LedgerError if the arrays there have another one."""
        self.positions = positions
        self._folder = Path(folder) / str(lineage)
        self._arrays: dict[str, Any] = {}
        self._writing = False
        self._start = 0
        self._sums: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._held = 0
        for path in self._metadata():
            shape = _metadata_of(path).get("shape")
            if shape != [positions]:
                raise LedgerError(
                    f"{path.parent} holds losses of {shape} positions, the run has {positions}; a run with other "
                    f"stages or batch sizes needs another name"
                )

    def write(self, position: int, sums: "np.ndarray", counts: "np.ndarray") -> None:
        """The sequences at `position` and after it: float32 sums [n], int32 counts [n]. Writing again replaces."""
        import numpy as np

        if sums.dtype != np.float32 or not np.can_cast(counts.dtype, np.int32):
            raise ValueError(f"sums are float32 and counts int32, not {sums.dtype} and {counts.dtype}")
        if sums.ndim != 1 or sums.shape != counts.shape:
            raise ValueError(f"sums {sums.shape} and counts {counts.shape} are vectors of one length")
        sums, counts = np.array(sums), np.array(counts, np.int32)  # copies: the caller may use its buffers again
        if not 0 <= position <= position + len(sums) <= self.positions:
            raise LedgerError(
                f"{self._folder}: {len(sums)} positions from {position} on lie outside the run's {self.positions}"
            )
        if self._held and (position != self._start + self._held or self._held + len(sums) > _BUFFERED):
            self.flush()
        if not self._held:
            self._start = position
        self._sums.append(sums)
        self._counts.append(counts)
        self._held += len(sums)

    def flush(self) -> None:
        """Return when everything written so far would survive a power cut. OSError: the disk is full."""
        if not self._held:
            return
        import numpy as np

        span = slice(self._start, self._start + self._held)
        arrays = self._open(writing=True)
        # tensorstore syncs each chunk and its folder before it reports back (file_io_sync). One array after the other:
        # where tokens are there, so is the sum, whenever the writer is killed.
        try:
            arrays["sum"][span].write(np.concatenate(self._sums)).result()
            arrays["tokens"][span].write(np.concatenate(self._counts)).result()
        except ValueError as err:
            raise _os_error(err) from None
        self._sums, self._counts, self._held = [], [], 0

    def read(self, start: int, stop: int) -> "tuple[np.ndarray, np.ndarray]":
        """(float32 sums, int32 counts) of positions start to stop, with what is still in memory.

        LedgerError if a chunk does not have its checksum.
        """
        import numpy as np

        if not 0 <= start <= stop <= self.positions:
            raise LedgerError(f"{self._folder}: positions {start} to {stop} lie outside the run's {self.positions}")
        self.flush()
        arrays = self._open(writing=False)
        if not arrays:
            return np.full(stop - start, np.nan, np.float32), np.full(stop - start, NEVER, np.int32)
        try:
            futures = [arrays[name][start:stop].read() for name in ("sum", "tokens")]
            sums, counts = (future.result() for future in futures)
        except ValueError as err:  # a checksum, a truncated chunk
            raise LedgerError(f"{self._folder}: {err}; restore the file from a copy") from None
        return sums, counts

    def _metadata(self) -> Iterator[Path]:
        for name in ("sum", "tokens"):
            if (path := self._folder / name / "zarr.json").is_file():
                yield path

    def _open(self, writing: bool) -> dict[str, Any]:
        """The two arrays; none if they are not both there and not to be created."""
        if not writing and len(list(self._metadata())) < 2:
            return {}
        for name, dtype, fill in (("sum", "float32", "NaN"), ("tokens", "int32", NEVER)):
            if writing and not self._writing:
                make_folder(self._folder / name / "c")  # tensorstore would not sync the entry of this folder
                _remove_half_written(self._folder / name)
            if name not in self._arrays:
                self._arrays[name] = _open_array(self._folder / name, self.positions, dtype, fill)
        self._writing = self._writing or writing
        return self._arrays


def _remove_half_written(folder: Path) -> None:
    """Remove what a killed writer left beside the chunks; only the run's one writer may.

    tensorstore 0.1.86 writes a chunk to `NAME.__lock` and renames it. Over such a file that is there already and longer
    it writes without truncating, and the chunk ends in the old one's bytes.
    """
    for left in [*folder.glob("*.__lock"), *folder.glob("c/*.__lock")]:
        left.unlink()


def _open_array(folder: Path, positions: int, dtype: str, fill: str | int) -> Any:
    import tensorstore as ts

    chunk = chunk_of(positions)
    if (folder / "zarr.json").is_file():  # another version may have chosen another chunk
        chunk = _chunk_shape(folder / "zarr.json")
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"},
        "context": {"file_io_sync": True, "cache_pool": {"total_bytes_limit": 0}},
        "store_data_equal_to_fill_value": True,  # a chunk of recorded NaNs is not a chunk that was never recorded
        "metadata": {
            "shape": [positions],
            "data_type": dtype,
            "fill_value": fill,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 1}},
                {"name": "crc32c"},
            ],
        },
    }
    try:
        return ts.open(spec, open=True, create=True).result()
    except ValueError as err:
        raise LedgerError(f"{folder}: {err}; move losses/ aside if another program wrote it") from None


def _metadata_of(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise LedgerError(f"{path} does not describe an array; restore it from a copy")
    return found


def _chunk_shape(path: Path) -> int:
    match _metadata_of(path):
        case {"chunk_grid": {"configuration": {"chunk_shape": [int(chunk)]}}} if chunk > 0:
            return chunk
        case _:
            raise LedgerError(f"{path} does not say how its array is cut; restore it from a copy")


def _os_error(err: ValueError) -> Exception:
    """tensorstore says everything in ValueErrors; what the operating system refused is an OSError like elsewhere."""
    code = re.search(r"os_error_code='(\d+)'", str(err))
    return OSError(int(code[1]), str(err)) if code else err
