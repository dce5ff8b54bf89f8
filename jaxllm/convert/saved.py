"""The arrays of a checkpoint, a layer at a time, without a device and without ever holding the model.

Every byte that is handed out was digested when it was read; `check` holds the sums against the manifest.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.checkpoint.layout import DamagedCheckpointError, missing_file, read_meta, step_folder
from jaxllm.convert.tensors import Array, Index
from jaxllm.core.errors import CheckpointError
from jaxllm.core.mixing import add_lanes, array_lanes, hex_lanes

_KEPT = 1 << 30  # bytes of arrays whose layers cannot be read apart, up to which tensors come layer after layer


class SavedArrays:
    """One item ('params' or 'ema') of a checkpoint. Paths are those of the model: 'blocks.attention.q'.

    What a chunk of the file holds is read at once and kept until its last layer or expert was handed out: checkpoints
    of large arrays have chunks of one layer, older ones may have chunks of many.
    """

    def __init__(self, folder: Path, step: int, item: str = "params") -> None:
        """CheckpointError if there is no such step or item, or files of it are missing."""
        self.folder, self.step, self.item = folder.absolute(), step, item
        self.manifest, _ = read_meta(self.folder, step)
        if item not in self.manifest.items:
            raise CheckpointError(f"{folder}: checkpoint {step} holds no {item!r}, only {sorted(self.manifest.items)}")
        if missing := missing_file(self.folder, step, [item]):
            raise DamagedCheckpointError(self.folder, step, missing)
        self.records = {r.name.partition(".")[2]: r for r in self.manifest.of_items([item]).values()}
        self.shapes = {path: r.shape for path, r in self.records.items()}
        for path, record in self.records.items():
            if record.dtype != "float32":
                raise CheckpointError(f"{folder}: checkpoint {step}: {path} is {record.dtype}; parameters are float32")
        self._open: dict[str, Any] = {}
        self._held: dict[str, tuple[Index, Array, set[Index]]] = {}
        self._lanes = dict.fromkeys(self.records, (0, 0))
        self._digested = dict.fromkeys(self.records, 0)

    @property
    def by_layer(self) -> bool:
        """Whether tensors may be asked for layer after layer; otherwise array after array takes much less memory."""
        whole = [p for p in self.records if p.startswith("blocks.") and self._depth(p) == 0]
        return sum(math.prod(self.shapes[p]) * 4 for p in whole) <= _KEPT

    def read(self, path: str, index: Index) -> Array:
        """array[index]: all of it, a layer, or an expert of a layer. Each is read once, layers in order.

        DamagedCheckpointError if the files cannot be read.
        """
        depth = min(self._depth(path), len(index))
        block, rest = index[:depth], index[depth:]
        held = self._held.get(path)
        if held is None or held[0] != block:
            held = (block, self._read_block(path, block), set())
        _, values, given = held
        given.add(rest)
        if len(given) < math.prod(self.shapes[path][depth : len(index)]):
            self._held[path] = held
        else:
            self._held.pop(path, None)
        return values[rest] if rest else values

    def check(self) -> None:
        """DamagedCheckpointError unless what was read is, to the bit, what was saved, and all of it."""
        for path, record in self.records.items():
            if self._digested[path] != math.prod(record.shape):
                raise AssertionError(f"{path}: {self._digested[path]} elements of {record.shape} were read")
            found = hex_lanes(self._lanes[path])
            if found != record.digest:
                raise DamagedCheckpointError(
                    self.folder, self.step, f"{record.name}: its digest is {found}, saved was {record.digest}"
                )

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _read_block(self, path: str, block: Index) -> Array:
        try:
            values = np.asarray(
                self._array(path)[block].read().result() if block else self._array(path).read().result()
            )
        except (ValueError, OSError, RuntimeError) as err:
            why = " ".join(str(err).split())[:200]
            raise DamagedCheckpointError(self.folder, self.step, f"{self.item}.{path}: cannot be read: {why}") from None
        strides = [math.prod(self.shapes[path][i + 1 :]) for i in range(len(block))]
        first = sum(i * stride for i, stride in zip(block, strides, strict=True))
        self._lanes[path] = add_lanes(self._lanes[path], array_lanes(values, first))
        self._digested[path] += values.size
        return values

    def _array(self, path: str) -> Any:
        if path not in self._open:
            import tensorstore as ts

            base = f"file://{step_folder(self.folder, self.step) / self.item}/"
            spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{path}/"}}
            try:
                array = ts.open(spec, open=True, read=True).result()
            except (ValueError, OSError, RuntimeError) as err:
                why = " ".join(str(err).split())[:200]
                raise DamagedCheckpointError(self.folder, self.step, f"{path}: cannot be read: {why}") from None
            record = self.records[path]
            if tuple(array.shape) != record.shape or array.dtype.name != record.dtype:
                raise DamagedCheckpointError(
                    self.folder, self.step, f"{path}: the files hold {array.dtype.name}{list(array.shape)}"
                )
            self._open[path] = array
        return self._open[path]

    def _depth(self, path: str) -> int:
        """How many leading indices choose whole chunks."""
        chunk = self._array(path).chunk_layout.read_chunk.shape
        return next((i for i, n in enumerate(chunk) if n != 1), len(chunk)) if path.startswith("blocks.") else 0
