"""How far arrays are off: against float64 and hand-counted numbers in between."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.release.states import measure


@pytest.mark.parametrize("dtype, spacing", [("float32", 2.0**-23), ("bfloat16", 2.0**-7)])
def test_relative_is_of_the_whole_array_and_ulp_of_the_element_furthest_off(dtype: str, spacing: float) -> None:
    recorded = jnp.asarray([[1.0, 1.0], [1.0, 1.0]], dtype)
    again = recorded.at[1, 0].add(4 * spacing).at[0, 1].add(-spacing / 2)  # one below 1 is half as far
    off = measure("params.a", recorded, again)
    assert off.ulp == 4 and off.largest == 4 * spacing
    assert off.relative == pytest.approx(4.5 * spacing / 4, rel=1e-6)


@pytest.mark.parametrize(
    "recorded, again, relative, ulp",
    [
        ([0.0, 2.0], [-0.0, 2.0], 0.0, 0),
        ([-1e-45, 2.0], [1e-45, 2.0], 0.0, 2),
        ([math.nan, 1.0], [math.nan, 2.0], math.inf, None),
        ([1.0, 1.0], [math.nan, 1.0], math.inf, None),
        ([0.0, 0.0], [0.0, 1e-9], math.inf, None),
        ([-3e38, 0.0], [3e38, 0.0], math.inf, None),
        ([1e-30, 0.0], [2e-30, 0.0], 1.0, 1 << 23),
    ],
)
def test_what_is_no_number_or_too_large_to_square(
    recorded: list[float], again: list[float], relative: float, ulp: int | None
) -> None:
    off = measure("params.a", jnp.asarray(recorded, jnp.float32), jnp.asarray(again, jnp.float32))
    assert off.relative == pytest.approx(relative, abs=1e-44)
    assert ulp is None or off.ulp == ulp


def test_counts_are_numbers_like_others() -> None:
    off = measure("opt.count", jnp.asarray(10, jnp.int32), jnp.asarray(7, jnp.int32))
    assert (off.relative, off.largest, off.ulp) == (np.float32(0.3), 3.0, 3)


def test_an_element_that_is_alone_hardly_counts() -> None:
    """Adam moves a parameter by about the learning rate whatever its gradient is, so one whose gradient is all rounding
    ends somewhere else."""
    recorded = jnp.full((256, 256), 0.02, jnp.float32)
    alone, all_of_them = recorded.at[3, 7].add(1e-3), recorded * (1 + 1e-4)
    assert measure("params.a", recorded, alone).relative == pytest.approx(1e-3 / (256 * 256 * 0.02), rel=1e-3)
    assert measure("params.a", recorded, all_of_them).relative == pytest.approx(1e-4, rel=1e-2)
