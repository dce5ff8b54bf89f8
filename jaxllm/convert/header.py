"""One safetensors file, its header checked before a byte of data is believed.

A file is eight bytes of little-endian length, a JSON object {name: {dtype, shape, data_offsets}} of that length, and
the data, without gaps (https://github.com/huggingface/safetensors). Written here in pieces and not by the library,
which wants all tensors of a file in memory.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.core.errors import DataError

Array = np.ndarray[Any, Any]

# What a parameter may be stored as, by our name of the type and by theirs.
DTYPES: Mapping[str, tuple[str, np.dtype[Any]]] = {
    "float32": ("F32", np.dtype(np.float32)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float16": ("F16", np.dtype(np.float16)),
}
_READABLE = dict(DTYPES.values())
# Bytes of an element of every type there is: a file may hold tensors that nobody asks for.
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2}
_SIZES |= {"BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8}

_LENGTH = 8
_MOST = 100_000_000  # bytes of a header that the library accepts


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: where its bytes begin in the file, and what they are."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def check_type(self) -> None:
        """DataError for a type that parameters do not have."""
        if self.dtype not in _READABLE:
            able = ", ".join(_READABLE)
            raise DataError(f"{self.file}: {self.name} is of type {self.dtype}; parameters are read as {able}")

    def read(self) -> Array:
        """The tensor, of a type that `check_type` passes."""
        dtype = _READABLE[self.dtype]
        with open(self.file, "rb") as f:
            f.seek(self.start)
            data = np.fromfile(f, np.uint8, self.nbytes)
        if data.size != self.nbytes:
            raise DataError(f"{self.file}: {self.name} ends early; the file was changed while it was read")
        return data.view(dtype).reshape(self.shape)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name. DataError if it is not a whole safetensors file."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(_LENGTH), "little")
            if size < _LENGTH or not 2 <= length <= min(_MOST, size - _LENGTH):
                raise _corrupt(path, f"its {size} bytes cannot hold a header of {length}")
            raw = json.loads(f.read(length), object_pairs_hook=_no_duplicates)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; download it again") from None
    except (ValueError, RecursionError) as err:
        if isinstance(err, DataError):
            raise
        raise _corrupt(path, f"its header is not JSON ({err})") from None
    if not isinstance(raw, dict):
        raise _corrupt(path, "its header is not a JSON object")
    raw.pop("__metadata__", None)
    data = _LENGTH + length
    found = {name: _entry(path, name, fields, data) for name, fields in raw.items()}
    end = data
    for entry in sorted(found.values(), key=lambda e: (e.start, e.nbytes)):
        if entry.start != end:
            raise _corrupt(path, f"{entry.name} begins at byte {entry.start}, not at {end}")
        end += entry.nbytes
    if end != size:
        raise _corrupt(path, f"it has {size} bytes and its header describes {end}")
    return found


def header_bytes(tensors: Iterable[tuple[str, Sequence[int]]], dtype: str) -> bytes:
    """What stands before the data of a file with these tensors (name, shape) of one type, in this order."""
    code, kind = DTYPES[dtype]
    raw: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it, transformers refuses the file
    at = 0
    for name, shape in tensors:
        end = at + math.prod(shape) * kind.itemsize
        raw[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(raw, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)  # data begins at a multiple of eight
    return len(text).to_bytes(_LENGTH, "little") + text


def _entry(path: Path, name: str, fields: Any, data: int) -> Entry:
    try:
        dtype, shape, (start, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _corrupt(path, f"{name} has no dtype, shape and data_offsets") from None
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise _corrupt(path, f"{name} has shape {list(shape)} and data_offsets [{start}, {end}]")
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise DataError(f"{path}: {name} is of type {dtype!r}, which is not known here")
    if end - start != math.prod(shape) * _SIZES[dtype]:
        raise _corrupt(path, f"{name} is {dtype}{list(shape)} in {end - start} bytes")
    return Entry(name, path, dtype, shape, data + start, end - start)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _corrupt(path: Path, why: str) -> DataError:
    return DataError(f"{os.fspath(path)} is not a whole safetensors file: {why}; download it again")
