"""Products and the middle of SwiGLU as they are spelled, against autodiff of their plain spelling."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops.gated import gated
from jaxllm.ops.product import product

DICE = np.random.default_rng(0)


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(DICE.standard_normal(shape), jnp.float32)


widened, by_head = partial(product, "BSD,DF->BSF"), partial(product, "BSD,DHK->BSHK")
joined = partial(product, "BSHK,HKD->BSD")

CASES: list[tuple[Callable[..., jax.Array], Callable[..., jax.Array], tuple[jax.Array, jax.Array]]] = [
    (widened, lambda x, w: x @ w, (draw(2, 7, 8), draw(8, 20))),
    (by_head, lambda x, w: jnp.tensordot(x, w, 1), (draw(2, 7, 8), draw(8, 2, 10))),
    (joined, lambda x, w: jnp.tensordot(x, w, 2), (draw(2, 7, 2, 10), draw(2, 10, 8))),
    (gated, lambda gate, up: gate * jax.nn.sigmoid(gate) * up, (draw(2, 7, 20) * 4, draw(2, 7, 20))),
]


@pytest.mark.parametrize(("ours", "plain", "arguments"), CASES, ids=["widened", "by_head", "joined", "gated"])
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
    assert {g.dtype for g in jax.grad(lambda *a: widened(*a).sum(), (0, 1))(x, w)} == {jnp.dtype(jnp.bfloat16)}
    assert {g.dtype for g in jax.grad(lambda *a: gated(*a).sum(), (0, 1))(gate, gate)} == {jnp.dtype(jnp.bfloat16)}


def test_products_in_bfloat16_are_rounded_once() -> None:
    """Summed in float32: 300 ones and then a 1/2 that a sum in bfloat16 would lose."""
    x = jnp.asarray([[[1.0] * 256 + [0.5] * 4]], jnp.bfloat16)
    assert widened(x, jnp.ones((260, 1), jnp.bfloat16)).item() == 258.0
