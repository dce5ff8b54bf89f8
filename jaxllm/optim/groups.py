"""What an optimizer derives from the role of each parameter: which ones decay, and how fast each one learns."""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from jaxllm.core.config import suggest
from jaxllm.core.dims import ROLES
from jaxllm.core.errors import ConfigError
from jaxllm.optim.config import AdamW

Tree = Any


class Declared(Protocol):
    """What a model declared: `tree(fn)` is a tree like its parameters with `fn(leaf)` at the leaves."""

    def tree(self, fn: Callable[[Any], Any]) -> Tree: ...


def roles_of(declared: Declared) -> Tree:
    """A tree like the parameters with the role of each (str), from leaves with `.path` and `.declaration.role`.

    ConfigError names a parameter whose role no optimizer knows.
    """
    return declared.tree(_role)


def decay_mask(optimizer: AdamW, roles: Tree) -> Tree:
    """True where weight decay applies."""
    return jax.tree.map(lambda role: role in optimizer.decay_roles, roles)


def multipliers(optimizer: AdamW, roles: Tree) -> Tree:
    """The factor on the learning rate of every parameter; 1.0 for roles that are not named."""
    by_role = {m.role: m.value for m in optimizer.lr_multipliers}
    return jax.tree.map(lambda role: by_role.get(role, 1.0), roles)


def _role(leaf: Any) -> str:
    role = str(leaf.declaration.role)
    if role not in ROLES:
        raise ConfigError(f"parameter {leaf.path}: role {role!r} is unknown{suggest(role, ROLES)}")
    return role
