"""Files of numbers, mapped into memory."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.core.errors import DataError


def map_numbers(path: Path, dtype: np.dtype[Any], count: int, offset: int = 0, *, after: int = 0) -> np.ndarray:
    """`count` numbers from byte `offset` on, read-only; `after` bytes follow them. DataError if the size is another.

    Looking at a file that was cut short is a bus error, not an exception: hence the check.
    """
    expected = offset + count * dtype.itemsize + after
    try:
        found = path.stat().st_size
    except OSError:
        raise DataError(f"{path}: missing from the store; prepare or copy it again") from None
    if found != expected:
        raise DataError(f"{path}: {found} bytes, not {expected}; the store is damaged: prepare or copy it again")
    return np.asarray(np.memmap(path, dtype, "r", offset, (count,))) if count else np.empty(0, dtype)
