"""Keys by name."""

import hashlib
import json

import jax
import numpy as np
import pytest

from jaxllm.models.randomness import key_for


def words(*names: str | int, seed: int = 1) -> list[int]:
    return [int(w) for w in np.asarray(jax.random.key_data(key_for(seed, *names)))]


def test_a_key_is_the_hash_of_its_names() -> None:
    digest = hashlib.sha256(json.dumps([7, "init", "blocks.mlp.up"], separators=(",", ":")).encode()).digest()
    expected = [int.from_bytes(digest[i : i + 4], "little") for i in (0, 4)]
    assert words("init", "blocks.mlp.up", seed=7) == expected


def test_keys_never_change() -> None:
    assert words("init", "embed.table", seed=0) == [130965884, 1564898230]


@pytest.mark.parametrize(
    "other", [("b", "a"), ("a",), ("ab",), ("a", "b", ""), ("a,b",), ("a", "b", 0), ('a","b',)], ids=repr
)
def test_names_do_not_collide(other: tuple[str | int, ...]) -> None:
    assert words(*other) != words("a", "b")


def test_numbers_are_not_texts_and_seeds_are_not_names() -> None:
    assert words(1) != words("1")
    assert words("a", seed=1) != words("a", seed=2)
    assert words(2, seed=1) != words(seed=12)


def test_the_implementation_is_said() -> None:
    with jax.default_prng_impl("rbg"):
        assert jax.random.key_impl(key_for(1, "a")) == "threefry2x32"
