"""Products in float8 against what ml_dtypes rounds, and their gradients against those of exact products."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxllm.ops.float8 import GRADIENTS, VALUES, product, rounded, scales

DICE = np.random.default_rng(0)
SPECS = {
    "BSD,DF->BSF": ((2, 24, 32), (32, 48)),
    "BSD,DHK->BSHK": ((2, 24, 32), (32, 2, 16)),
    "BSHK,HKD->BSD": ((2, 24, 2, 16), (2, 16, 32)),
}
TYPES = {VALUES: ml_dtypes.float8_e4m3fn, GRADIENTS: ml_dtypes.float8_e5m2}


def draw(*shape: int, times: float = 1.0) -> jax.Array:
    return jnp.asarray(DICE.standard_normal(shape) * times, jnp.bfloat16)


def by_hand(x: jax.Array, kind: type) -> np.ndarray:
    exact, dtype = np.asarray(x, np.float64), TYPES[kind]
    k = np.floor(np.log2(float(ml_dtypes.finfo(dtype).max) / np.abs(exact).max()))
    return (exact * 2**k).astype(np.float32).astype(dtype).astype(np.float64) * 2**-k


@pytest.mark.parametrize("times", [1e-12, 0.03, 1.0, 7e5])
@pytest.mark.parametrize("kind", [VALUES, GRADIENTS])
def test_rounding_is_the_formats_at_any_magnitude(kind: type, times: float) -> None:
    x = draw(64, 32, times=times)
    got = np.asarray(jax.jit(rounded, static_argnums=1)(x, kind), np.float64)
    np.testing.assert_array_equal(got, by_hand(x, kind))
    assert len(np.unique(got)) < 256 and np.abs(got - np.asarray(x, np.float64)).max() > 0


@pytest.mark.parametrize("spec", SPECS)
def test_values_and_gradients_are_those_of_what_was_rounded(spec: str) -> None:
    x, w = draw(*SPECS[spec][0], times=0.02), draw(*SPECS[spec][1])
    y, pull = jax.vjp(lambda x, w: product(spec, x, w), x, w)
    dy = draw(*y.shape, times=1e-6)
    dx, dw = pull(dy)
    of_x, of_w, of_y = spec.replace("->", ",").split(",")
    a, b, c = by_hand(x, VALUES), by_hand(w, VALUES), by_hand(dy, GRADIENTS)
    expected = {
        "y": (y, np.einsum(spec, a, b)),
        "dx": (dx, np.einsum(f"{of_y},{of_w}->{of_x}", c, b)),
        "dw": (dw, np.einsum(f"{of_x},{of_y}->{of_w}", a, c)),
    }
    for name, (got, exact) in expected.items():
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(got, np.float64), exact, atol=2**-8 * np.abs(exact).max(), err_msg=name)


def test_it_is_coarser_than_bfloat16() -> None:
    """The test above would fail of a plain product: something is rounded."""
    x, w = draw(2, 24, 32), draw(32, 48)
    exact = np.einsum("BSD,DF->BSF", np.asarray(x, np.float64), np.asarray(w, np.float64))
    off = np.abs(np.asarray(product("BSD,DF->BSF", x, w), np.float64) - exact).max() / np.abs(exact).max()
    assert 2**-7 < off < 2**-3


@pytest.mark.parametrize(
    ("largest", "scale"), [(0.0, 1.0), (448.0, 1.0), (449.0, 0.5), (1.0, 256.0), (0.875, 512.0), (3e38, 2.0**-120)]
)
def test_scales_are_the_largest_that_fit(largest: float, scale: float) -> None:
    assert [float(s) for s in scales(jnp.float32(largest), VALUES)] == [scale, 1 / scale]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_shows(bad: float) -> None:
    """Saturated, it would look like any other number, and the update would be applied."""
    x = draw(1, 4, 16).at[0, 1, 2].set(bad)
    assert jnp.isnan(product("BSD,DF->BSF", x, draw(16, 16))).all()
    assert (product("BSD,DF->BSF", jnp.zeros((1, 4, 16), jnp.bfloat16), draw(16, 16)) == 0).all()
