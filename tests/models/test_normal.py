"""Normal numbers: of the right distribution, and the same bits wherever and however they are computed."""

import hashlib
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.normal import _table, normal
from jaxllm.models.randomness import key_for

N = 1 << 20


def draw(cut: float | None = None, std: float = 1.0) -> np.ndarray:
    with jax.threefry_partitionable(True):
        return np.asarray(jax.jit(lambda: normal(key_for(1, "x"), (N,), std, cut))(), np.float64)


def in_numpy(words: np.ndarray, cut: float | None) -> np.ndarray:
    """The quantile of every word, float64, from the standard library alone."""
    exact = NormalDist()
    outside = 0.0 if cut is None else exact.cdf(-cut)
    p = ((words & 0x7FFFFFFF) + 0.5) / 2**32
    size = np.array([-exact.inv_cdf(outside + q * (1 - 2 * outside)) for q in p])
    return np.where(words >> 31 == 0, size, -size)


@pytest.mark.parametrize("cut", [None, 2.0])
def test_every_number_is_the_quantile_of_its_word(cut: float | None) -> None:
    with jax.threefry_partitionable(True):
        words = np.asarray(jax.random.bits(key_for(1, "x"), (N,), jnp.uint32), np.int64)
    got, some = draw(cut), slice(0, 20_000)
    expected = in_numpy(words[some], cut)
    np.testing.assert_allclose(got[some], expected, atol=2e-6, rtol=3e-6)
    smallest = np.argsort(words & 0x7FFFFFFF)[:200]  # the tails
    np.testing.assert_allclose(got[smallest], in_numpy(words[smallest], cut), atol=2e-6, rtol=3e-6)


def test_moments_and_quantiles() -> None:
    x = draw()
    noise = 5 / np.sqrt(N)
    assert abs(x.mean()) < noise and abs(x.std() - 1) < noise
    assert (x**4).mean() == pytest.approx(3, abs=10 * noise)
    for q in (0.001, 0.1, 0.5, 0.75, 0.9999):
        assert (x < NormalDist().inv_cdf(q)).mean() == pytest.approx(q, abs=noise * np.sqrt(q * (1 - q)) + 1e-9)
    assert len(np.unique(x)) > 0.7 * N


def test_cut_at_two() -> None:
    x = draw(cut=2.0, std=0.5)
    assert np.abs(x).max() <= 1.0 and np.abs(x).max() > 0.999
    assert x.std() == pytest.approx(0.5 * 0.879626, rel=2e-3)  # of a normal distribution cut at two


def test_bits_do_not_depend_on_the_program() -> None:
    """Op by op, compiled, in a part of a larger program, and in slices whose lengths fit no vector."""
    key = key_for(1, "x")
    with jax.threefry_partitionable(True):
        whole = np.asarray(jax.jit(lambda: normal(key, (7, 1001), 0.02))())
        apart = np.asarray(normal(key, (7, 1001), 0.02))
        fused = np.asarray(jax.jit(lambda: normal(key, (7, 1001), 0.02)[:, 3:10] + 0.0)())
    np.testing.assert_array_equal(whole.view(np.uint32), apart.view(np.uint32))
    np.testing.assert_array_equal(whole[:, 3:10], fused)


def test_the_numbers_are_frozen() -> None:
    """Initial values of every run follow from these."""
    assert (
        hashlib.sha256(b"".join(t.astype("<i4").tobytes() for t in _table(None))).hexdigest()
        == "b28ceb74a17792764110e478f432df8892c50cc95148220f18d51b164fcd49e9"
    )
    with jax.threefry_partitionable(True):
        first = np.asarray(normal(key_for(0, "init", "embed.table"), (3,), 0.02))
    assert [x.hex() for x in first.tolist()] == [
        "0x1.4fa0a40000000p-8",
        "0x1.74ea140000000p-7",
        "-0x1.bebc520000000p-7",
    ]
