"""What is settled: the same numbers and gradients, computed once on a CPU, and nothing at all elsewhere."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops.rope import frequencies, rotate, rotation
from jaxllm.ops.settled import settled

X = jnp.asarray(np.random.default_rng(0).standard_normal((64, 64)), jnp.float32)


def test_numbers_and_gradients_are_those_without_it() -> None:
    def cost(x: jax.Array, through: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return jnp.square(through(jnp.sin(x))).sum()

    np.testing.assert_array_equal(settled(X), X)
    np.testing.assert_array_equal(jax.vmap(settled)(X), X)
    for got, expected in zip(
        *(jax.jit(jax.value_and_grad(lambda x, t=t: cost(x, t)))(X) for t in (settled, lambda x: x)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def lowered(function: Callable[[jax.Array], jax.Array], platform: str) -> str:
    return jax.jit(function).trace(X).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_nothing_of_it_is_in_the_program(platform: str) -> None:
    assert "inlineable" in lowered(lambda x: settled(jnp.sin(x)), "cpu")
    assert lowered(lambda x: settled(jnp.sin(x)), platform) == lowered(lambda x: jnp.sin(x), platform)


def sines() -> int:
    """How often a compiled program of several layers computes the angles that all of them read."""

    def layers(x_BSHK: jax.Array, positions_BS: jax.Array) -> jax.Array:
        turn = rotation(positions_BS, frequencies(16, 10_000.0))
        for _ in range(3):
            x_BSHK = jnp.einsum("BSHK,KC->BSHC", rotate(x_BSHK, turn), X[:16, :16])
        return x_BSHK

    x_BSHK, positions_BS = jnp.ones((2, 8, 2, 16)), jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
    return jax.jit(layers).lower(x_BSHK, positions_BS).compile().as_text().count(" sine(")


def test_angles_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sines() == 1
    monkeypatch.setattr("jaxllm.ops.rope.settled", lambda x: x)
    assert sines() > 1  # what XLA does by itself; else settling them would be of no use any more
