"""One training step as a pure function: (state, batch, learning rate) -> (state, metrics)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models.config import Moe
from jaxllm.models.context import Context
from jaxllm.models.declare import Params
from jaxllm.models.decoder import Decoder
from jaxllm.models.moe import Routing
from jaxllm.ops.cross_entropy import cross_entropy
from jaxllm.ops.moe import rebalanced
from jaxllm.optim.adamw import Transform, clip_scale, global_norm
from jaxllm.optim.norms import layer_norms
from jaxllm.train.config import Loss
from jaxllm.train.state import Metrics, State

Batch = Mapping[str, jax.Array]
Tree = Any


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """What a step is made of. `micro_batch` sequences at a time are differentiated; None takes the batch whole."""

    declared: Params[Decoder]
    transform: Transform
    context: Context
    loss: Loss
    loss_chunks: int
    micro_batch: int | None
    branch_on_refusal: bool  # lax.cond needs fewer temporaries than a select on CPU, more on TPU (measured)


def make_step(spec: StepSpec) -> Callable[..., tuple[State, Metrics]]:
    """The step, to be jitted with the state donated. With a `limit` (float32 scalar), an update with a larger gradient
    norm is refused like one that is not finite.

    Norms are computed in every step, though few are looked at: a second program for the others could differ in bits.
    """

    def step(state: State, batch: Batch, lr: jax.Array, limit: jax.Array | None = None) -> tuple[State, Metrics]:
        grads, loss, loss_B, tokens_B, routing = gradients(spec, state.params, batch)
        grad_norm = global_norm(grads)
        scale = clip_scale(grad_norm, spec.transform.clip_norm)
        fine = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if limit is not None:
            fine &= grad_norm <= limit

        def applied() -> State:
            return spec.transform.apply(state, grads, lr, scale=scale, then=lambda p: _balanced(spec, p, routing))

        if spec.branch_on_refusal:
            new = jax.lax.cond(fine, applied, lambda: state)
        else:
            new = jax.tree.map(lambda after, before: jnp.where(fine, after, before), applied(), state)
        moved = jax.tree.map(jnp.subtract, new.params, state.params)
        norms = {
            "gradient": layer_norms(spec.declared, grads),
            "update": layer_norms(spec.declared, moved),
            "parameter": layer_norms(spec.declared, new.params),
        }
        return new, Metrics(loss, loss_B, tokens_B, grad_norm, ~fine, norms, routing)

    return step


def _balanced(spec: StepSpec, params: Tree, routing: Routing | None) -> Tree:
    """The parameters after the biases that choose experts have moved by the loads of the whole batch."""
    ffn = spec.declared.bind(params).model.ffn
    if routing is None or not isinstance(ffn, Moe) or ffn.bias_rate is None:
        return params
    rate, loads_LE = ffn.bias_rate, routing.loads_LE
    balances = spec.declared.tree(lambda leaf: leaf.declaration.role == "balance")
    return jax.tree.map(lambda x, is_one: rebalanced(x, loads_LE, rate) if is_one else x, params, balances)


def gradients(
    spec: StepSpec, params: Tree, batch: Batch
) -> tuple[Tree, jax.Array, jax.Array, jax.Array, Routing | None]:
    """(gradients, mean loss over unmasked tokens, summed loss per sequence, unmasked tokens per sequence, routing)."""
    tokens_B = batch["loss_mask"].sum(axis=1, dtype=jnp.int32)
    B = tokens_B.shape[0]
    # Every slice divides by the tokens of the whole batch, so that slices add up to one large batch.
    denominator = jnp.maximum(tokens_B.sum(), 1).astype(jnp.float32)

    def objective(params: Tree, part: Batch) -> tuple[jax.Array, tuple[jax.Array, Routing | None]]:
        model, part = spec.declared.bind(params), spec.context.arrange(part)
        x_BSD, routing = model.hidden(part["inputs"], part["segments"], part["positions"], spec.context)
        if "weights" in part:  # faults are injected
            x_BSD = x_BSD * part["weights"][:, :, None].astype(x_BSD.dtype)
        cost, loss_B = cross_entropy(
            x_BSD,
            model.head_VD(),
            part["labels"],
            part["loss_mask"],
            denominator=denominator,
            z_loss=spec.loss.z_loss,
            softcap=model.model.logit_softcap,
            chunks=spec.loss_chunks,
            parts=spec.context.sequence_parts,
            shard=spec.context.shard,
        )
        # Penalties are means over sequences, the cost is one over tokens.
        return cost if routing is None else cost + routing.penalty_B.sum() / B, (loss_B, routing)

    slope = jax.grad(objective, has_aux=True)
    if spec.micro_batch is None or spec.micro_batch == B:
        grads, (loss_B, routing) = slope(params, batch)
    else:
        slices = B // spec.micro_batch
        # Slice i takes rows i, i + slices, ...: every device keeps its own rows, nothing moves between devices.
        parts = {k: v.reshape(spec.micro_batch, slices, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}

        def add(total: Tree, part: Batch) -> tuple[Tree, tuple[jax.Array, Routing | None]]:
            grads, aux = slope(params, part)
            return jax.tree.map(jnp.add, total, grads), aux

        grads, (loss_NB, by_slice) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        loss_B = loss_NB.swapaxes(0, 1).reshape(B)
        routing = None
        if by_slice is not None:
            loads_LE, penalty_NB = by_slice.loads_LE.sum(axis=0), by_slice.penalty_B
            routing = Routing(loads_LE, penalty_NB.swapaxes(0, 1).reshape(B))
    return grads, loss_B.sum() / denominator, loss_B, tokens_B, routing
