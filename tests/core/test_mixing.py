"""The digest sums against a reference in Python integers, and mutations that must not pass."""

import hashlib

import ml_dtypes
import numpy as np
import pytest

from jaxllm.core import mixing

M = 0xFFFFFFFF
DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, bool]


def some_array(dtype: type, shape: tuple[int, ...] = (5, 7, 3), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype is bool:
        return rng.integers(0, 2, shape).astype(bool)
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    return rng.normal(size=shape).astype(dtype)


def reference_lanes(words: list[int], first_index: int = 0, salt: int = 0) -> tuple[int, int]:
    """The definition, in Python integers: one word per element, linear index from `first_index`."""

    def fmix(h: int) -> int:
        h = (h ^ h >> 16) * 0x85EBCA6B & M
        h = (h ^ h >> 13) * 0xC2B2AE35 & M
        return h ^ h >> 16

    sums = [0, 0]
    for i, word in enumerate(words, start=first_index):
        lo, hi = i & M, i >> 32
        for lane, (term, factor) in enumerate(((0x165667B1, 0x27D4EB2F), (0x43033713, 0xC2B2AE3D))):
            h = (fmix(lo * 0x9E3779B1 + 0x7F4A7C15 & M) + term + salt + hi * factor) & M
            sums[lane] += fmix(h ^ word) * 0x2545F491 + h
    return sums[0] & M, sums[1] & M


def words_of(x: np.ndarray) -> list[int]:
    raw, size = np.ascontiguousarray(x).tobytes(), x.dtype.itemsize
    return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first_index", [0, 3, 2**32 - 50, 2**32, 5 * 2**32 - 1, 2**62])
def test_equals_reference(dtype: type, first_index: int) -> None:
    x = some_array(dtype)
    assert mixing.array_lanes(x, first_index) == reference_lanes(words_of(x), first_index)


def test_golden() -> None:
    """Digests in published checkpoints rest on these numbers: they never change."""
    assert mixing.array_digest(np.arange(12, dtype=np.float32).reshape(3, 4)) == "625d476b164d36d4"
    assert mixing.array_digest(np.array(7, np.int32)) == "02615f025da59a3e"
    assert mixing.array_digest(np.zeros((0, 3), np.float32)) == "0000000000000000"
    tokens, flags = np.arange(10).reshape(2, 5), np.ones((2, 4), int)
    assert mixing.hex_lanes(mixing.batch_digest(tokens, flags, first_row=6)) == "a5abf80a009ec7dc"


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = some_array(np.float32, (1000,))
    whole = mixing.array_lanes(x, 2**32 - 500)
    monkeypatch.setattr(mixing, "_CHUNK", 64)
    assert mixing.array_lanes(x, 2**32 - 500) == whole
    halves = mixing.array_lanes(x[:333], 2**32 - 500), mixing.array_lanes(x[333:], 2**32 - 500 + 333)
    assert mixing.add_lanes(*halves) == whole


def test_layout_in_memory_does_not_matter() -> None:
    x = some_array(np.float32, (64, 32))
    assert mixing.array_digest(np.asfortranarray(x)) == mixing.array_digest(x)
    assert mixing.array_digest(np.repeat(x, 2, axis=0)[::2]) == mixing.array_digest(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_shows(dtype: type) -> None:
    x = some_array(dtype, (4, 5))
    bits = x.view(mixing.bits_dtype(x.dtype)).reshape(-1)
    seen = {mixing.array_digest(x)}
    for i in range(bits.size):
        for bit in range(1 if dtype is bool else 8 * x.dtype.itemsize):
            bits[i] ^= bits.dtype.type(1 << bit)
            seen.add(mixing.array_digest(x))
            bits[i] ^= bits.dtype.type(1 << bit)
    assert len(seen) == 1 + bits.size * (1 if dtype is bool else 8 * x.dtype.itemsize)


def test_moved_elements_show() -> None:
    x = some_array(np.float32, (24, 24))
    original, flat = mixing.array_digest(x), x.reshape(-1)
    assert mixing.array_digest(x.T) != original
    assert mixing.array_digest(x[::-1]) != original
    assert mixing.array_digest(np.roll(flat, 1)) != original
    rng = np.random.default_rng(1)
    for i, j in rng.integers(0, flat.size, (500, 2)):
        if i != j:
            flat[[i, j]] = flat[[j, i]]
            assert mixing.array_digest(x) != original, (i, j)
            flat[[i, j]] = flat[[j, i]]


def test_swap_across_the_high_half_shows() -> None:
    """Elements 2^32 apart, and ones whose first lane collides, are still told apart."""
    one, two = np.array([1.0], np.float32), np.array([2.0], np.float32)
    for far in (2**32, 3 * 2**32, 2**62):
        straight = mixing.add_lanes(mixing.array_lanes(one, 5), mixing.array_lanes(two, 5 + far))
        swapped = mixing.add_lanes(mixing.array_lanes(two, 5), mixing.array_lanes(one, 5 + far))
        assert straight[0] != swapped[0] and straight[1] != swapped[1]


def test_negative_zero_and_nans_are_bits() -> None:
    values = np.array([0x00000000, 0x80000000, 0x7FC00000, 0x7FC00001, 0xFFC00000], np.uint32).view(np.float32)
    assert len({mixing.array_digest(v) for v in values}) == 5


def test_eight_byte_elements_are_refused() -> None:
    for dtype in (np.float64, np.int64, np.complex64, "U4"):
        with pytest.raises(TypeError, match="1, 2 or 4 bytes"):
            mixing.array_digest(np.zeros(3, dtype))


def a_batch(rows: int = 12, width: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 50_000, (rows, width + 1), dtype=np.uint32), rng.integers(0, 8, (rows, width), np.uint32)


@pytest.mark.parametrize("hosts", [1, 2, 3, 6, 12])
def test_batch_digest_adds_over_hosts(hosts: int) -> None:
    tokens, flags = a_batch()
    rows = len(tokens) // hosts
    parts = [mixing.batch_digest(tokens[i : i + rows], flags[i : i + rows], i) for i in range(0, len(tokens), rows)]
    assert mixing.add_lanes(*parts) == mixing.batch_digest(tokens, flags, 0)


def test_batch_digest_takes_any_integers() -> None:
    tokens, flags = a_batch()
    expected = mixing.batch_digest(tokens, flags, 4)
    assert mixing.batch_digest(tokens.astype(np.uint16), flags.astype(np.int64), 4) == expected
    assert mixing.batch_digest(tokens.astype(np.int32), flags.astype(np.int32), 4) == expected


def test_batch_digest_mutations_show() -> None:
    tokens, flags = a_batch()
    seen = {mixing.batch_digest(tokens, flags, 0), mixing.batch_digest(tokens, flags, 1)}
    seen.add(mixing.batch_digest(tokens[::-1], flags[::-1], 0))
    seen.add(mixing.batch_digest(tokens[::-1], flags, 0))
    seen.add(mixing.batch_digest(tokens, flags ^ np.uint32(1), 0))
    seen.add(mixing.batch_digest(tokens[:-1], flags[:-1], 0))
    tokens[3, 4] ^= 1
    seen.add(mixing.batch_digest(tokens, flags, 0))
    assert len(seen) == 7
    square = tokens[:, :-1]
    assert mixing.batch_digest(square, flags, 0) != mixing.batch_digest(flags, square, 0)
    with pytest.raises(ValueError, match="same rows"):
        mixing.batch_digest(tokens, flags[:-1], 0)


def test_combine() -> None:
    digests = {"params.b": "0" * 16, "params.a": "1" * 16}
    shapes, dtypes = {"params.a": (2, 3), "params.b": ()}, {"params.a": "float32", "params.b": "int32"}
    text = "params.a 1111111111111111 float32 [2,3]\nparams.b 0000000000000000 int32 []\n"
    whole = mixing.combine(digests, shapes, dtypes)
    assert whole == hashlib.sha256(text.encode()).hexdigest()
    others = {
        mixing.combine(digests | {"params.b": "0" * 15 + "1"}, shapes, dtypes),
        mixing.combine(digests, shapes | {"params.a": (3, 2)}, dtypes),
        mixing.combine(digests, shapes, dtypes | {"params.a": "int32"}),
    }
    assert len(others | {whole}) == 4
    with pytest.raises(ValueError, match=r"params\.a"):
        mixing.combine({"params.b": "0" * 16}, shapes, dtypes)
    with pytest.raises(ValueError, match="white space"):
        mixing.combine({"a b": "0"}, {"a b": ()}, {"a b": "int32"})


def test_tree_digest() -> None:
    x = some_array(np.float32)
    assert mixing.tree_digest({"x": x, "y": x + 1}) == {
        "x": mixing.array_digest(x),
        "y": mixing.array_digest(x + 1),
    }
