"""How a forward pass is computed, handed down from the caller to every part of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, assert_never

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import Offloadable, Recompute, Saveable, checkpoint_name

from jaxllm.core.dims import Axis
from jaxllm.core.tensors import Tensor
from jaxllm.models.stack import Stack, in_turn
from jaxllm.ops import attention as kernels
from jaxllm.ops import float8
from jaxllm.ops.attention import SAVED, Kernel
from jaxllm.ops.product import product
from jaxllm.parallel.config import Named, Remat

Shard = Callable[..., jax.Array]

HOST_MEMORY = "pinned_host"  # where offloaded tensors wait, by its name in jax

# Products that are none to a policy for plain ones: those spelled by us, and those of experts, which are ragged.
_SPELLED = "product"
_PRODUCTS: tuple[str, ...] = (_SPELLED, "widened", "experts_out")


Axes = tuple[Axis | None, ...]


class PerDevice(Protocol):
    """`function` of whole arrays, computed by every device for its own share of them.

    inputs, output: logical axes of what it takes and gives (None: never split). It sees the shares; results of devices
    that differ in their share of the axis `summed` alone are added, if one is given. exchanged: it first takes an
    `Exchange` with those that differ in their share of this axis alone, None where there are none.
    """

    def __call__(
        self,
        function: Callable[..., jax.Array],
        inputs: Sequence[Axes],
        output: Axes,
        *,
        summed: Axis | None = None,
        exchanged: Axis | None = None,
    ) -> Callable[..., jax.Array]: ...


def together(
    function: Callable[..., jax.Array],
    inputs: Sequence[Axes],
    output: Axes,
    *,
    summed: Axis | None = None,
    exchanged: Axis | None = None,
) -> Callable[..., jax.Array]:
    """The default of `Context.per_device`: the compiler decides."""
    return function if exchanged is None else partial(function, None)


def as_given(batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """The default of `Context.arrange`."""
    return batch


def in_order(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The default of `Context.by_sequence`: positions stand in their order."""
    return function


def unsharded(x: jax.Array, *axes: Axis) -> jax.Array:
    """The default of `Context.shard`: the compiler decides."""
    if x.ndim != len(axes):
        raise AssertionError(f"an array of shape {x.shape} was given axes {axes}")
    return x


@dataclass(frozen=True, kw_only=True)
class Context:
    """None of this but `float8` changes what is computed; all of it may move bits.

    dtype: 'float32' or 'bfloat16', the type of matrix products and of the residual stream. Parameters are cast where
    they are used, so a parameter's gradient is rounded to this type once before it becomes float32. Norms, softmax,
    rotary angles and the loss are float32 regardless.
    attention: a kernel that can what the model asks of it, as `ops.attention.choose` found. remat: what a layer keeps
    for its backward pass.
    float8: products of activations and kernels round their operands to float8 first (`ops.float8`): that changes more
    than the last place. spelled_products: they come as CPUs want them (`ops.product`), and not as plain ones.
    unroll: layers per iteration of the scan; more compile longer and run a little faster on CPU. Only without remat:
    out of the loop, XLA on CPU merges the recomputation with what it should replace.
    shard: called as shard(x, *logical axes) on activations, constrains their layout. per_device: for parts whose work
    the compiler would not split well. self_attention: `ops.attention.attention`, or what computes the same over several
    devices. arrange: brings the arrays of a batch, [B, S] each, into the order of positions that `self_attention`
    takes, before anything looks at them; what comes after it is the same for any order, sums over positions say, or
    goes by `by_sequence`: a function of [B, S, ...] that wants the sequence whole and in its own order -> the same for
    arrays in the order of `arrange`. sequence_parts: in how many equal parts, on different devices, positions lie.
    stack: how layers follow one another; only the default takes layers that give back more than what routers say.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Kernel = "reference"
    remat: Remat = "none"
    float8: bool = False
    spelled_products: bool = False
    unroll: int = 1
    shard: Shard = unsharded
    per_device: PerDevice = together
    self_attention: Callable[..., jax.Array] = kernels.attention
    arrange: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]] = as_given
    by_sequence: Callable[[Callable[[jax.Array], jax.Array]], Callable[[jax.Array], jax.Array]] = in_order
    sequence_parts: int = 1
    stack: Stack = in_turn

    def cast(self, x: jax.Array) -> jax.Array:
        """`x` in the compute type."""
        return x.astype(jnp.dtype(self.dtype))

    def product(self, spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
        """The einsum `spec` of activations and a kernel, both in the compute type, which the result has too."""
        if self.float8:
            return checkpoint_name(float8.product(spec, x, w), _SPELLED)
        return checkpoint_name(product(spec, x, w), _SPELLED) if self.spelled_products else jnp.einsum(spec, x, w)


def named(x: jax.Array, name: Tensor) -> jax.Array:
    """`x`, by a name of core/tensors.py to policies."""
    return checkpoint_name(x, name)


def rematerialized(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """`layer`, which keeps for its backward pass what `remat` names and recomputes the rest.

    none: keep everything. full: keep only its inputs. dots: the results of all matrix products, and of attention as a
    whole; dots_no_batch: of the products without a batch dimension, so nothing inside attention. qkv_attention:
    queries, keys, values and attention's result. `Named` as it says.
    For the body of a loop only: elsewhere the compiler may merge the recomputation away.
    """
    policies = jax.checkpoint_policies
    match remat:
        case "none":
            return layer
        case "full":
            policy = policies.nothing_saveable
        case "dots":
            policy = _either(policies.dots_saveable, _by_name((SAVED, *_PRODUCTS)))
        case "dots_no_batch":
            policy = _either(policies.dots_with_no_batch_dims_saveable, _by_name(_PRODUCTS))
        case "qkv_attention":
            policy = _by_name(("qkv", SAVED))
        case Named(keep=keep, offload=offload):
            policy = _by_name(keep, offload)
        case _:
            assert_never(remat)
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)


# A policy is asked about each equation of a layer: may what it gives be kept?
_Policy = Callable[..., Any]


def _by_name(keep: Sequence[str], offload: Sequence[str] = ()) -> _Policy:
    """Tensors by name; what a kernel's backward pass needs without a name goes with its result."""

    def policy(primitive: Any, *_: Any, **parameters: Any) -> Any:
        if kernels.makes_residuals(primitive):
            name: Any = SAVED
        else:
            name = parameters.get("name") if primitive.name == "name" else None
        if name in offload:
            return Offloadable(src="device", dst=HOST_MEMORY)
        return Saveable if name in keep else Recompute

    return policy


def _either(products: _Policy, by_name: _Policy) -> _Policy:
    """What one of two policies keeps; neither offloads."""

    def policy(primitive: Any, *arguments: Any, **parameters: Any) -> Any:
        if products(primitive, *arguments, **parameters) in (True, Saveable):
            return Saveable
        return by_name(primitive, *arguments, **parameters)

    return policy
