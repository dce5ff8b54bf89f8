"""float32 values as the bits they are, for records that must be exact."""

import math
import struct
from typing import Any


def float32_bits(x: Any) -> str:
    """The IEEE 754 bits of one float32 as 8 hex digits, most significant first: 1.0 is '3f800000'.

    x: a numpy float32 (a NaN keeps its payload), or any number that is exactly one. ValueError otherwise: rounding here
    would make a record claim bits that nobody computed.
    """
    import numpy as np

    value = np.asarray(x)
    if value.shape != ():
        raise ValueError(f"one number has bits, not an array of shape {value.shape}")
    with np.errstate(over="ignore"):
        single = value.astype(np.float32)
    if value.dtype != np.float32 and not (single == value or math.isnan(value)):
        raise ValueError(f"{value} ({value.dtype}) is not a float32; its nearest is {single}")
    return f"{int(single.view(np.uint32)):08x}"


def float32_of(bits: str) -> float:
    """The value whose bits these are. ValueError if `bits` is not what `float32_bits` writes."""
    if len(bits) != 8 or not set(bits) <= set("0123456789abcdef"):
        raise ValueError(f"{bits!r} is not a float32 as 8 lower-case hex digits")
    value: float = struct.unpack(">f", bytes.fromhex(bits))[0]
    return value


def finite_or_none(x: Any) -> float | None:
    """The number as JSON can hold it: null for NaN and infinities, whose bits stand beside it."""
    value = float(x)
    return value if math.isfinite(value) else None
