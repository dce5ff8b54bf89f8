"""How a forward pass is computed, handed down from the caller to every part of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, assert_never

import jax
import jax.numpy as jnp

from jaxllm.core.dims import Axis
from jaxllm.ops import attention as kernels
from jaxllm.ops.attention import SAVED, Kernel

Remat = Literal["none", "full", "dots", "dots_no_batch", "qkv_attention"]
Shard = Callable[..., jax.Array]

# Names (jax.ad_checkpoint) of what policies keep: queries, keys and values after their rotation; the gate and up
# products, whose gradients are spelled by hand, and those of experts, which are ragged: no plain products to a policy.
QKV, WIDENED = "qkv", "widened"


Axes = tuple[Axis | None, ...]


class PerDevice(Protocol):
    """`function` of whole arrays, computed by every device for its own share of them.

    inputs, output: logical axes of what it takes and gives (None: never split). It sees the shares; results of devices
    that differ in their share of the axis `summed` alone are added.
    """

    def __call__(
        self,
        function: Callable[..., jax.Array],
        inputs: Sequence[Axes],
        output: Axes,
        *,
        summed: Axis,
    ) -> Callable[..., jax.Array]: ...


def together(
    function: Callable[..., jax.Array],
    inputs: Sequence[Axes],
    output: Axes,
    *,
    summed: Axis,
) -> Callable[..., jax.Array]:
    """The default of `Context.per_device`: the compiler decides."""
    return function


def as_given(batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """The default of `Context.arrange`."""
    return batch


def unsharded(x: jax.Array, *axes: Axis) -> jax.Array:
    """The default of `Context.shard`: the compiler decides."""
    if x.ndim != len(axes):
        raise AssertionError(f"an array of shape {x.shape} was given axes {axes}")
    return x


@dataclass(frozen=True, kw_only=True)
class Context:
    """None of this changes what is computed; all of it may move bits.

    dtype: 'float32' or 'bfloat16', the type of matrix products and of the residual stream. Parameters are cast where
    they are used, so a parameter's gradient is rounded to this type once before it becomes float32. Norms, softmax,
    rotary angles and the loss are float32 regardless.
    attention: a kernel, as `ops.attention.choose` resolved it. remat: what a layer keeps for its backward pass.
    unroll: layers per iteration of the scan; more compile longer and run a little faster on CPU. Only without remat:
    out of the loop, XLA on CPU merges the recomputation with what it should replace.
    shard: called as shard(x, *logical axes) on activations, constrains their layout. per_device: for parts whose work
    the compiler would not split well. self_attention: `ops.attention.attention`, or what computes the same over several
    devices. arrange: brings the arrays of a batch, [B, S] each, into the order of positions that `self_attention`
    takes, before anything looks at them; sums over positions are all that may come after it.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Kernel = "reference"
    remat: Remat = "none"
    unroll: int = 1
    shard: Shard = unsharded
    per_device: PerDevice = together
    self_attention: Callable[..., jax.Array] = kernels.attention
    arrange: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]] = as_given

    def cast(self, x: jax.Array) -> jax.Array:
        """`x` in the compute type."""
        return x.astype(jnp.dtype(self.dtype))


def rematerialized(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """`layer`, which keeps for its backward pass what `remat` names and recomputes the rest.

    none: keep everything. full: keep only its inputs. dots: the results of all matrix products, and of attention as a
    whole; dots_no_batch: of the products without a batch dimension, so nothing inside attention. qkv_attention:
    queries, keys, values and attention's result.
    For the body of a loop only: elsewhere the compiler may merge the recomputation away.
    """
    policies = jax.checkpoint_policies
    match remat:
        case "none":
            return layer
        case "full":
            policy = policies.nothing_saveable
        case "dots":
            named = policies.save_only_these_names(SAVED, WIDENED)
            policy = policies.save_from_both_policies(policies.dots_saveable, named)
        case "dots_no_batch":
            named = policies.save_only_these_names(WIDENED)
            policy = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, named)
        case "qkv_attention":
            policy = policies.save_only_these_names(QKV, SAVED)
        case _:
            assert_never(remat)
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)
