"""Names of the arrays of a state, and their storage form.

Orbax stores an item as nested dicts, whatever the containers were, so that a file's keys are the dotted names below and
do not depend on how a library spells its NamedTuples.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax

from jaxllm.checkpoint.manifest import ArrayRecord
from jaxllm.core.errors import CheckpointError
from jaxllm.parallel.digest import leaf_paths

Tree = Any
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+")


def named_leaves(items: Mapping[str, Tree]) -> dict[str, Any]:
    """The leaves of {'params': tree, 'opt': tree, ...} by dotted name, the item first, in the order of jax.tree.leaves.

    Dict keys, attribute names and positions of tuples become the parts of a name: 'opt.0.mu.blocks.attention.q'.
    CheckpointError for a part that is not letters, digits and '_', and for two leaves with one name.
    """
    named: dict[str, Any] = {}
    tree = dict(items)
    for name, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"{name!r} is no name for an array; use letters, digits, '_' and '.' between them")
        if name in named:
            raise CheckpointError(f"two arrays of the state have the name {name}")
        named[name] = leaf
    return named


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """{'a.b': x} -> {'a': {'b': x}}. CheckpointError where a name is also the beginning of another."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise CheckpointError(f"{name}: another array's name is the beginning of this one")
        if last in node:
            raise CheckpointError(f"{name}: this name is the beginning of another array's")
        node[last] = leaf
    return tree


def unflattened(items: Mapping[str, Tree], tree: Mapping[str, Any]) -> dict[str, Tree]:
    """The inverse of `nested`: the leaves of `tree` in the containers of `items`."""
    like = dict(items)
    return jax.tree.unflatten(jax.tree.structure(like), [lookup(tree, name) for name in named_leaves(like)])


def lookup(tree: Mapping[str, Any], name: str) -> Any:
    """The leaf of a nested dict by dotted name."""
    node: Any = tree
    for part in name.split("."):
        node = node[part]
    return node


def array_records(items: Mapping[str, Tree], digests: Mapping[str, str]) -> tuple[ArrayRecord, ...]:
    """What a manifest says of the arrays of a state, sorted by name.

    items: as in `named_leaves`; arrays or jax.ShapeDtypeStruct. digests: by the same names; CheckpointError if they
    name other arrays.
    """
    named = named_leaves(items)
    if odd := sorted(named.keys() ^ digests.keys()):
        raise CheckpointError(f"{odd[0]}: only one of state and digests has this array ({len(odd)} such)")
    return tuple(
        ArrayRecord(name=n, shape=tuple(map(int, named[n].shape)), dtype=str(named[n].dtype), digest=digests[n])
        for n in sorted(named)
    )
