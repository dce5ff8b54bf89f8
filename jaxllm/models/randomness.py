"""Randomness by name: a key is a hash of what it is for, never of how many keys were drawn before."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

# Said explicitly: the default implementation is a global setting of jax, and the draws are part of a run's identity.
_IMPL = "threefry2x32"


def key_for(seed: int, *names: str | int) -> jax.Array:
    """The key of `names` under `seed`, e.g. key_for(1, "init", "blocks.attention.q") or key_for(1, "sample", 7).

    The first 64 bits of sha256 over the canonical JSON of [seed, *names], taken as a threefry key. Names are tagged by
    type and position, so neither ("a", "bc") and ("ab", "c") nor "1" and 1 collide. Adding or renaming one name leaves
    the keys of all others as they were.

    Draw inside `jax.threefry_partitionable(True)`: only then is a draw the same on every mesh.
    """
    text = json.dumps([seed, *names], separators=(",", ":"), ensure_ascii=True)
    words = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], dtype="<u4")
    return jax.random.wrap_key_data(jnp.asarray(words.astype(np.uint32)), impl=_IMPL)
