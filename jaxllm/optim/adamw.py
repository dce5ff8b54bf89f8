"""AdamW, global-norm clipping and parameter averages.

The optimizer's state is {"count", "mu", "nu"}: updates applied (int32, it drives bias correction, and a refused update
does not advance it) and the two moments, float32, in the shape of the parameters. The learning rate comes in with every
update: it belongs to the step's number, never to this count.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxllm.optim.config import AdamW
from jaxllm.optim.groups import decay_mask, multipliers

Tree = Any


class Trained(Protocol):
    """A frozen dataclass of what an update changes; `ema` is None where no average is kept."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def params(self) -> Tree: ...
    @property
    def opt(self) -> Tree: ...
    @property
    def ema(self) -> Tree | None: ...


StateT = TypeVar("StateT", bound=Trained)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """An optimizer ready to use. `init` and `update` are optax's: update(grads, opt, params, lr=float32 scalar)."""

    tx: optax.GradientTransformationExtraArgs
    clip_norm: float | None
    ema_decay: float | None

    def init(self, params: Tree) -> Tree:
        """The optimizer's state before the first update."""
        return self.tx.init(params)

    def update(self, grads: Tree, opt: Tree, params: Tree, *, lr: ArrayLike) -> tuple[Tree, Tree]:
        """(what to add to the parameters, new state)."""
        return self.tx.update(grads, opt, params, lr=lr)

    def start_average(self, params: Tree) -> Tree | None:
        """The average before the first update: a copy of the parameters, or None if none is kept."""
        return None if self.ema_decay is None else jax.tree.map(jnp.copy, params)

    def apply(
        self,
        state: StateT,
        grads: Tree,
        lr: ArrayLike,
        *,
        scale: jax.Array | None = None,
        then: Callable[[Tree], Tree] = lambda params: params,
    ) -> StateT:
        """The state after one update with `grads`, times `scale` (of `clip_scale`) if given. `then`: what else happens
        to the updated parameters, before they enter the average."""
        if scale is not None:
            grads = jax.tree.map(lambda g: g * scale, grads)
        updates, opt = self.update(grads, state.opt, state.params, lr=lr)
        params = then(optax.apply_updates(state.params, updates))
        ema = None if self.ema_decay is None else update_ema(state.ema, params, self.ema_decay)
        return dataclasses.replace(state, params=params, opt=opt, ema=ema)


def make(optimizer: AdamW, roles: Tree) -> Transform:
    """The optimizer of a config, for parameters with these `roles` (see groups.roles_of).

    A parameter moves by -lr * multiplier * (mu_hat / (sqrt(nu_hat) + eps) + weight_decay * parameter), the decay only
    where its role is in decay_roles; the multiplier scales both terms, as a parameter group's learning rate does.
    """
    adam = optax.scale_by_adam(b1=optimizer.beta1, b2=optimizer.beta2, eps=optimizer.eps)
    decays, speeds = decay_mask(optimizer, roles), multipliers(optimizer, roles)

    def init(params: Tree) -> Tree:
        return adam.init(params)._asdict()

    def update(grads: Tree, opt: Tree, params: Tree | None = None, *, lr: ArrayLike, **_: Any) -> tuple[Tree, Tree]:
        directions, moments = adam.update(grads, optax.ScaleByAdamState(**opt))
        rate = jnp.asarray(lr, jnp.float32)

        def move(direction: jax.Array, param: jax.Array, decays: bool, speed: float) -> jax.Array:
            if decays:
                direction = direction + optimizer.weight_decay * param
            return -(rate if speed == 1.0 else rate * speed) * direction

        return jax.tree.map(move, directions, params, decays, speeds), moments._asdict()

    return Transform(
        tx=optax.GradientTransformationExtraArgs(init, update),
        clip_norm=optimizer.clip_norm,
        ema_decay=None if optimizer.ema is None else optimizer.ema.decay,
    )


def global_norm(grads: Tree) -> jax.Array:
    """L2 norm over all arrays, float32; arrays are added in the order of `jax.tree.leaves`."""
    return jnp.sqrt(sum((jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)), jnp.float32(0)))


def clip_scale(norm: jax.Array, clip_norm: float | None) -> jax.Array:
    """The factor, float32, that brings gradients of this global norm to at most `clip_norm`; 1 if None."""
    return jnp.float32(1) if clip_norm is None else clip_norm / jnp.maximum(norm, clip_norm)


def update_ema(ema: Tree, params: Tree, decay: float) -> Tree:
    """decay * average + (1 - decay) * parameters."""
    return jax.tree.map(lambda average, param: decay * average + (1.0 - decay) * param, ema, params)
