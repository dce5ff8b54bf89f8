"""Our words are those of jax.random, whose meaning is fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.randomness import key_for
from jaxllm.models.threefry import words


@pytest.mark.parametrize("shape", [(), (1,), (1000,), (3, 20, 6, 8), (61, 20), (2, 1, 5)], ids=str)
def test_words_are_those_of_jax(shape: tuple[int, ...]) -> None:
    key = key_for(3, "x", *shape)
    with jax.threefry_partitionable(True):
        expected = jax.random.bits(key, shape, jnp.uint32)
    np.testing.assert_array_equal(jax.jit(lambda: words(key, shape))(), expected)


def test_indices_beyond_32_bits_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of 2^33 elements is too large for a test; its index is not."""
    from jaxllm.models import threefry

    key = key_for(3, "x")
    low = np.asarray(words(key, (4,)))
    monkeypatch.setattr(threefry, "linear_index", lambda places, shape: (places[0], places[0] * 0 + np.uint32(1)))
    assert not np.isin(np.asarray(words(key, (4,))), low).any()
