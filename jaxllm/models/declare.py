"""Declared once: every parameter's name, shape, axes, role and initialisation, from which all else derives.

A module writes `param(shape, axes, Declaration(...))`. `Params` reads the declarations of a whole model without
allocating it; shardings, decay masks, learning rates, initial values and export names are `params.tree(...)` of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.core.dims import PARAM_AXES, Axis, Role
from jaxllm.models.config import Model
from jaxllm.models.normal import normal
from jaxllm.models.randomness import key_for

Tree = Any
T = TypeVar("T")
M = TypeVar("M", bound=nnx.Module)

_STACK: Axis = "layers"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a parameter is. Plain values only: it lives in the pytree structure and is compared by value.

    role: what it is to the optimizer. init: 'normal' draws from N(0, std), cut at `cut` times std if that is given;
    'ones' and 'zeros' draw nothing. fan_in: how many inputs one output sums over (1 for tables and scales).
    """

    role: Role
    init: Literal["normal", "ones", "zeros"] = "normal"
    std: float = 0.0
    cut: float | None = None
    fan_in: int = 1


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One declared array: dotted path, logical axes (as many as dimensions), shape, dtype, declaration."""

    path: str
    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    dtype: jnp.dtype
    declaration: Declaration

    @property
    def stacked(self) -> bool:
        """True if the first dimension counts layers."""
        return self.axes[0] == _STACK

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize


def param(shape: Sequence[int], axes: Sequence[Axis], declaration: Declaration) -> nnx.Param[jax.Array]:
    """Declare one float32 parameter of a module."""
    if len(shape) != len(axes) or any(axis not in PARAM_AXES for axis in axes):
        raise AssertionError(f"shape {tuple(shape)} declared with axes {tuple(axes)}")
    # The zeros never exist: modules are only built under eval_shape, values come from `init` or a checkpoint.
    return nnx.Param(jnp.zeros(tuple(shape), jnp.float32), out_sharding=tuple(axes), declaration=declaration)


def matrix(model: Model, *, fan_in: int, residual: bool = False) -> Declaration:
    """A matrix of a layer; residual: its result is added to the residual stream, which two per layer do."""
    std = model.init.std
    if residual and model.init.residual == "depth_scaled":
        std /= math.sqrt(2 * model.layers)
    return Declaration(role="matrix", std=std, cut=model.init.cut, fan_in=fan_in)


def table(model: Model) -> Declaration:
    """The embedding table."""
    init = model.init
    std = init.std if init.embedding_std is None else init.embedding_std
    return Declaration(role="embedding", std=std, cut=init.cut)


def stack(build: Callable[[], M], layers: int) -> M:
    """`layers` equal modules as one, every parameter with a leading `layers` axis."""

    @nnx.vmap(in_axes=0, out_axes=0, axis_size=layers, transform_metadata={nnx.PARTITION_NAME: _STACK})
    def build_all(_: jax.Array) -> M:
        return build()

    return build_all(jnp.zeros(layers))


class Params(Generic[M]):
    """What the model that `build` makes has declared.

    Pure params are nested dicts of arrays keyed by the parts of the path; `leaves` is in the order of their leaves.
    """

    def __init__(self, build: Callable[[], M]) -> None:
        with nnx.use_eager_sharding(False):
            self._graph, state = nnx.split(nnx.eval_shape(build))
        declared = {_dotted(path): _leaf(_dotted(path), variable) for path, variable in nnx.to_flat_state(state)}
        pure = nnx.to_pure_dict(state)
        self._state_def: Any = jax.tree.structure(state)
        self._pure_def: Any = jax.tree.structure(pure)
        paths = [_dotted(key.key for key in keys) for keys, _ in jax.tree.leaves_with_path(pure)]
        self.leaves: tuple[Leaf, ...] = tuple(declared[path] for path in paths)
        if len(self.leaves) != len(declared):
            raise AssertionError("the pure tree and the declarations differ")

    def tree(self, fn: Callable[[Leaf], T]) -> Tree:
        """A tree in the shape of the pure params with `fn(leaf)` in place of each array."""
        return jax.tree.unflatten(self._pure_def, [fn(leaf) for leaf in self.leaves])

    def abstract(self) -> Tree:
        """Shapes and dtypes, as a tree of jax.ShapeDtypeStruct."""
        return self.tree(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))

    def named(self, tree: Tree) -> dict[str, Any]:
        """The leaves of a tree in the shape of the pure params, by dotted path."""
        return dict(zip((leaf.path for leaf in self.leaves), self._pure_def.flatten_up_to(tree), strict=True))

    def bind(self, params: Tree) -> M:
        """The module that computes with `params`; call it inside jit."""
        with nnx.use_eager_sharding(False):
            state = jax.tree.unflatten(self._state_def, self._pure_def.flatten_up_to(params))
            return nnx.merge(self._graph, state)


def init(declared: Params[M], seed: int) -> Tree:
    """Initial values as a pure tree of float32 arrays. Call it inside jit, with out_shardings if there is a mesh.

    Each array is drawn whole, the stacked layers at once, from the key of its path: what else the model declares, the
    mesh and the backend change no bit of it.
    """

    def draw(leaf: Leaf) -> jax.Array:
        match leaf.declaration.init:
            case "normal":
                key = key_for(seed, "init", leaf.path)
                return normal(key, leaf.shape, leaf.declaration.std, leaf.declaration.cut)
            case "ones":
                return jnp.ones(leaf.shape, leaf.dtype)
            case "zeros":
                return jnp.zeros(leaf.shape, leaf.dtype)

    with jax.threefry_partitionable(True):
        return declared.tree(draw)


def _dotted(path: Any) -> str:
    return ".".join(str(part) for part in path)


def _leaf(path: str, variable: Any) -> Leaf:
    metadata = variable.get_metadata()
    leaf = Leaf(
        path=path,
        axes=tuple(metadata["out_sharding"]),
        shape=tuple(variable.shape),
        dtype=jnp.dtype(variable.dtype),
        declaration=metadata["declaration"],
    )
    if len(leaf.axes) != len(leaf.shape):
        raise AssertionError(f"{path}: shape {leaf.shape} has axes {leaf.axes}")
    return leaf
