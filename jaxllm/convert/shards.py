"""Parameters in one or several safetensors files, with the index that says which file holds which tensor."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllm.convert.header import DTYPES, Array, Entry, header_bytes, read_header
from jaxllm.core.errors import DataError
from jaxllm.core.files import read_json, write_json_atomic

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
_PIECE = 1 << 26  # bytes that are copied at a time

Report = Callable[[str, int, int], None]


# ---- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Out:
    """A tensor to write: `value` is called when its turn comes."""

    name: str
    shape: tuple[int, ...]
    value: Callable[[], Array]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def cut(tensors: Sequence[Out], dtype: str, shard_bytes: int) -> list[list[Out]]:
    """The tensors of each file, in order: as many as fit into `shard_bytes`, at least one."""
    width = DTYPES[dtype][1].itemsize
    files: list[list[Out]] = [[]]
    filled = 0
    for tensor in tensors:
        nbytes = tensor.size * width
        if files[-1] and filled + nbytes > shard_bytes:
            files.append([])
            filled = 0
        files[-1].append(tensor)
        filled += nbytes
    return files


def write_shards(
    folder: Path,
    tensors: Sequence[Out],
    dtype: str,
    *,
    exact: bool,
    shard_bytes: int = SHARD_BYTES,
    report: Report = lambda phase, done, total: None,
) -> dict[str, str]:
    """Write all tensors into `folder`, and the index if there are several files; sha256 of each file by name.

    In memory there is one tensor at a time. exact: DataError for the first tensor that `dtype` would change; otherwise
    it is rounded, and only a number beyond the largest one is refused.
    """
    files = cut(tensors, dtype, shard_bytes)
    total = sum(t.size for t in tensors)
    done, hashes, where = 0, {}, {}
    for number, inside in enumerate(files, 1):
        name = SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        digest = hashlib.sha256()
        with open(folder / name, "xb") as f:
            head = header_bytes([(t.name, t.shape) for t in inside], dtype)
            f.write(head)
            digest.update(head)
            for tensor in inside:
                report("writing tensors", done, total)
                data = stored(tensor.value(), dtype, tensor.name, exact=exact)
                if data.shape != tensor.shape:
                    raise AssertionError(f"{tensor.name}: {data.shape}, announced as {tensor.shape}")
                view = data.reshape(-1).view(np.uint8).data
                for start in range(0, len(view), _PIECE):
                    f.write(view[start : start + _PIECE])
                    digest.update(view[start : start + _PIECE])
                done += tensor.size
                where[tensor.name] = name
            f.flush()
            os.fsync(f.fileno())
        hashes[name] = digest.hexdigest()
    report("writing tensors", total, total)
    if len(files) > 1:
        nbytes = total * DTYPES[dtype][1].itemsize
        write_json_atomic(folder / INDEX, {"metadata": {"total_size": nbytes}, "weight_map": where})
    return hashes


def stored(x: Array, dtype: str, name: str, *, exact: bool) -> Array:
    """float32 `x` in C order, as `dtype`, rounded to nearest even. DataError as in `write_shards`."""
    kind = DTYPES[dtype][1]
    x = np.ascontiguousarray(x)
    if x.dtype == kind:
        return x
    with np.errstate(over="ignore"):
        narrow: Array = x.astype(kind)
    if (np.isinf(narrow) & np.isfinite(x)).any():
        largest = float(np.abs(x[np.isfinite(x)]).max())
        raise DataError(f"{name} holds {largest:.3g}, which is more than {dtype} can say; export another dtype")
    if exact and not np.array_equal(narrow.astype(x.dtype).view(np.uint32), x.view(np.uint32)):
        raise DataError(
            f"{name} is {x.dtype} and would be rounded by {dtype}; export float32, or say that rounding is wanted "
            f"(--round)"
        )
    return narrow


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_shards(folder: Path) -> dict[str, Entry]:
    """All tensors in the safetensors files of a folder by name, after every header was checked against its file.

    DataError: no such files, a missing one, a corrupted one, or an index that is not about them.
    """
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))
    if others:
        raise DataError(
            f"{folder}: the parameters are in {others[0]}, and reading a pickle runs whatever code is in it; take the "
            f"safetensors of this model, or convert it where you trust it, with save_pretrained of transformers"
        )
    raise DataError(f"{folder} has neither {SINGLE} nor {INDEX}; name a folder that holds a model")


def _indexed(folder: Path) -> dict[str, Entry]:
    place = folder / INDEX
    raw = read_json(place)
    names = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise DataError(f"{place} has no weight_map of tensors to files; download it again")
    for name in names.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise DataError(f"{place} names {name!r}, which is not a safetensors file beside it")
    files = {name: read_header(folder / name) for name in sorted(set(names.values()))}
    found: dict[str, Entry] = {}
    for name, entries in files.items():
        for tensor, entry in entries.items():
            if names.get(tensor) != name:
                says = f"in {names[tensor]}" if tensor in names else "nowhere"
                raise DataError(f"{place}: {tensor} lies in {name} and in the index {says}; download both again")
            found[tensor] = entry
    missing = sorted(set(names) - set(found))
    if missing:
        raise DataError(
            f"{folder / names[missing[0]]} does not hold {missing[0]}, as the index says; download it again"
        )
    return found


def widened(x: Array) -> Array:
    """A parameter of any type that is read, as float32: no bit is lost."""
    return x.astype(np.float32)


def files_of(entries: Mapping[str, Entry]) -> list[Path]:
    """The files that hold them, by name."""
    return sorted({e.file for e in entries.values()})
