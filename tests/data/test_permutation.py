"""Permutation: a bijection at every size, undone by its inverse, mixed down to its lowest bit, frozen."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.data import permutation
from jaxllm.data.permutation import MAX_SIZE, Permutation, key_of

GOLDEN = json.loads((Path(__file__).parent / "golden_order.json").read_text())
M64 = 2**64 - 1
keys = st.integers(0, M64)


def reference(x: int, n: int, key: int) -> int:
    """The definition, in Python integers."""

    def mix(v: int) -> int:
        v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9 & M64
        v = (v ^ v >> 27) * 0x94D049BB133111EB & M64
        return v ^ v >> 31

    bits = (n - 1).bit_length()
    low, high = (bits + 1) // 2, bits // 2
    while True:
        left, right = x >> low, x & (1 << low) - 1
        for r in range(8):
            round_key = mix((key + 0x9E3779B97F4A7C15 * (r + 1)) & M64)
            if r % 2 == 0:
                left ^= mix(right ^ round_key) & (1 << high) - 1
            else:
                right ^= mix(left ^ round_key) & (1 << low) - 1
        x = left << low | right
        if x < n:
            return x


def assert_bijection(n: int, key: int) -> None:
    p, x = Permutation(n, key), np.arange(n)
    y = p(x)
    assert y.dtype == np.int64
    assert np.array_equal(np.sort(y), x)
    assert np.array_equal(p.inverse(y), x)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 65_536, 65_537, 262_145])
def test_bijection_at_treacherous_sizes(n: int) -> None:
    assert_bijection(n, key_of("size", n))


@pytest.mark.slow
def test_bijection_at_a_million() -> None:
    assert_bijection(1_048_577, 3)


@given(n=st.integers(1, 3000), key=keys)
def test_bijection_at_any_size(n: int, key: int) -> None:
    assert_bijection(n, key)


@given(n=st.integers(1, MAX_SIZE), key=keys, data=st.data())
def test_equals_its_definition_and_inverts_at_sizes_up_to_2_to_the_62(n: int, key: int, data: st.DataObject) -> None:
    x = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    y = Permutation(n, key)(x)
    assert y.tolist() == [reference(i, n, key) for i in x]
    assert Permutation(n, key).inverse(y).tolist() == x


def test_many_permutations_in_one_call_are_those_of_many_calls() -> None:
    rng = np.random.default_rng(0)
    n = rng.integers(1, 10**9, 40_000)
    key = rng.integers(0, M64, len(n), dtype=np.uint64, endpoint=True)
    x = rng.integers(0, n)
    y = Permutation(n, key)(x)
    assert np.array_equal(Permutation(n, key).inverse(y), x)
    for i in [0, 1, 2, 16_383, 16_384, 39_999]:  # around the edge of a chunk
        assert y[i] == Permutation(int(n[i]), int(key[i]))(int(x[i])) == reference(int(x[i]), int(n[i]), int(key[i]))


@pytest.mark.parametrize("n", [1 << 26, 50_000_000, 1_000_003])
def test_low_bits_mix(n: int) -> None:
    """Levanter's permutation fails each of these (all outputs = 0 mod 4; LSB flips in 4.6 % of steps)."""
    draws = [Permutation(n, key_of("mix", i))(np.arange(8192)) for i in range(16)]
    assert abs(np.mean([(y[1:] ^ y[:-1]) & 1 for y in draws]) - 0.5) < 0.01
    for residues in (2, 3, 4, 8, 64):
        expected, freedom = 8192 / residues, len(draws) * (residues - 1)
        counts = [np.bincount(y % residues, minlength=residues) for y in draws]
        chi_square = ((np.array(counts) - expected) ** 2 / expected).sum()
        assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)  # five standard deviations
    # the mean distance of two points drawn at random
    assert abs(np.mean([np.abs(np.diff(y)) for y in draws]) / n - 1 / 3) < 0.01


def test_keys_give_unrelated_permutations() -> None:
    n = 10_007
    orders = [Permutation(n, key_of("epoch", e))(np.arange(n)) for e in range(4)]
    orders += [Permutation(n, 1)(np.arange(n)), Permutation(n, 2)(np.arange(n))]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).sum() < 10  # 1 expected
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


def test_values_outside_are_refused() -> None:
    p = Permutation(10, 1)
    for x in (-1, 10, [0, 10]):
        with pytest.raises(IndexError):
            p(x)
        with pytest.raises(IndexError):
            p.inverse(x)
    for n in (0, -1, MAX_SIZE + 1):
        with pytest.raises(ValueError, match="1 to 2\\^62"):
            Permutation(n, 1)


def test_keys_do_not_collide_by_their_spelling() -> None:
    spellings: list[tuple[str | int, ...]] = [
        (1, "block", 0, 1), (1, "block", 0, 11), (1, "source", "block", 0, 1), (1, "block,0", 1),
        ("1", "block", 0, 1), (1, 'block",0,1'), (1, "block", "0", 1), (11, "block", 0), (1, "block", 0), (), ("",),
    ]  # fmt: skip
    assert len({key_of(*parts) for parts in spellings}) == len(set(spellings))
    with pytest.raises(TypeError, match="bool"):
        key_of(1, True)
    with pytest.raises(TypeError, match="int64"):
        key_of(1, np.int64(1))  # type: ignore[arg-type]


def test_golden() -> None:
    for case in GOLDEN["keys"]:
        assert key_of(*case["parts"]) == case["key"]
    for case in GOLDEN["permutations"]:
        assert Permutation(case["n"], case["key"])(case["x"]).tolist() == case["y"]


def test_golden_notices_another_number_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "_ROUNDS", 6)
    monkeypatch.setattr(permutation, "_ROUND_STEPS", permutation._ROUND_STEPS[:6])
    with pytest.raises(AssertionError):
        test_golden()


def test_bijection_notices_a_missing_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding the domain by a remainder instead of walking: a value twice, another never."""
    walkless = permutation._feistel
    monkeypatch.setattr(permutation, "_feistel", lambda x, *rest: walkless(x, *rest) % np.uint64(17))
    with pytest.raises(AssertionError):
        assert_bijection(17, 1)
