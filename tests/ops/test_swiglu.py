"""The steps of SwiGLU against autodiff of their plain spelling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops.swiglu import gated, widen

DICE = np.random.default_rng(0)


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(DICE.standard_normal(shape), jnp.float32)


CASES: list[tuple[Callable[..., jax.Array], Callable[..., jax.Array], tuple[jax.Array, jax.Array]]] = [
    (widen, lambda x, w: x @ w, (draw(2, 7, 8), draw(8, 20))),
    (gated, lambda gate, up: gate * jax.nn.sigmoid(gate) * up, (draw(2, 7, 20) * 4, draw(2, 7, 20))),
]


@pytest.mark.parametrize(("ours", "plain", "arguments"), CASES, ids=["widen", "gated"])
def test_values_and_gradients(
    ours: Callable[..., jax.Array], plain: Callable[..., jax.Array], arguments: tuple[jax.Array, jax.Array]
) -> None:
    got, pull = jax.vjp(ours, *arguments)
    expected, pull_expected = jax.vjp(plain, *arguments)
    dy = draw(*got.shape)
    for a, b in zip((got, *pull(dy)), (expected, *pull_expected(dy)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_dtypes_are_kept() -> None:
    x, w, gate = (draw(*shape).astype(jnp.bfloat16) for shape in ((1, 3, 4), (4, 6), (1, 3, 6)))
    assert {g.dtype for g in jax.grad(lambda *a: widen(*a).sum(), (0, 1))(x, w)} == {jnp.dtype(jnp.bfloat16)}
    assert {g.dtype for g in jax.grad(lambda *a: gated(*a).sum(), (0, 1))(gate, gate)} == {jnp.dtype(jnp.bfloat16)}
