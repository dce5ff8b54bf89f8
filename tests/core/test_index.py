"""Index arithmetic in two halves, held against Python's integers."""

import numpy as np
import pytest

from jaxllm.core.index import linear_index


@pytest.mark.parametrize(
    "shape",
    [(4, 2**16, 2**16), (80, 22_016, 8_192), (2**32, 2), (3, 2**31 + 1, 5), (2, 2**20, 2**20, 2**20), (2**31, 2**31)],
)
def test_index_of_arrays_beyond_2_to_the_32(shape: tuple[int, ...]) -> None:
    """Such arrays do not fit here; their index arithmetic is held against Python's at random places and at corners."""
    rng = np.random.default_rng(0)
    places = [np.concatenate([rng.integers(0, n, 500), [0, n - 1, n - 1, 0]]).astype(np.uint32) for n in shape]
    lo, hi = linear_index(places, shape)
    exact = []
    for place in zip(*places, strict=True):
        index = 0
        for coordinate, n in zip(place, shape, strict=True):
            index = index * n + int(coordinate)
        exact.append(index)
    assert hi is not None and hi.dtype == np.uint32 == lo.dtype
    assert [int(h) << 32 | int(low) for low, h in zip(lo, hi, strict=True)] == exact


def test_index_below_2_to_the_32_needs_no_high_half() -> None:
    places = [np.arange(4, dtype=np.uint32), np.full(4, 2**30 - 1, np.uint32)]
    assert linear_index(places, (4, 2**30))[1] is None
    assert linear_index(places, (5, 2**30))[1] is not None
