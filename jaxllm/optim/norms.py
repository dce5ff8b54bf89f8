"""Norms of every layer, for people who watch a run."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Tree = Any


class Leaf(Protocol):
    """What a norm needs to know of a parameter."""

    @property
    def path(self) -> str: ...
    @property
    def axes(self) -> Sequence[str | None]: ...


class Declared(Protocol):
    """What a model declared, in the order of `jax.tree.leaves` of its parameters."""

    @property
    def leaves(self) -> Sequence[Leaf]: ...


def layer_norms(declared: Declared, tree: Tree) -> dict[str, jax.Array]:
    """L2 norm, float32, of every array of `tree` (parameters, gradients or updates) by parameter path.

    One number per layer, [L], where the first axis is 'layers'; a scalar elsewhere.
    """
    return {
        leaf.path: _norm(x, stacked=bool(leaf.axes) and leaf.axes[0] == "layers")
        for leaf, x in zip(declared.leaves, jax.tree.leaves(tree), strict=True)
    }


def _norm(x: jax.Array, stacked: bool) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(range(int(stacked), x.ndim))))
