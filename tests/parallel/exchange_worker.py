"""What test_exchange runs on 8 simulated devices."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.ops import moe
from jaxllm.ops.moe import Product, dropless, limited
from jaxllm.parallel.config import Mesh
from jaxllm.parallel.exchange import Exchange, Route
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.shard import Sharder

Array = np.ndarray[Any, Any]
Results = list[Array]

B, S, J, D, F, E = 8, 6, 2, 5, 4, 8
SERVED = 3
DICE = np.random.default_rng(3)
X_BSD, WEIGHTS_BSJ = DICE.normal(size=(B, S, D)).astype(np.float32), DICE.random((B, S, J)).astype(np.float32)
UP_EDF, DOWN_EFD = (DICE.normal(size=shape).astype(np.float32) for shape in ((E, D, F), (E, F, D)))
# Two different experts for every token; all tokens to the last two, to the first two, to two far from each other.
CHOICES = {"any": DICE.random((B, S, E)).argsort(-1)[..., :J].astype(np.int32)} | {
    name: np.tile(np.array(pair, np.int32), (B, S, 1))
    for name, pair in {"last": (7, 6), "first": (0, 1), "far": (7, 0)}.items()
}


def results(sharder: Sharder, served: int | None = None) -> dict[str, Results]:
    """For each of CHOICES: what the experts give, and the gradients of the sum of its squares."""
    seq = "seq" if served is None else None
    tokens, chosen = ("batch", seq, "embed"), ("batch", seq, None)
    kernels = ("experts", "embed", "ffn"), ("experts", "ffn", "embed")

    def serve(
        exchange: Exchange | None, x: jax.Array, experts: jax.Array, weights: jax.Array, up: jax.Array, down: jax.Array
    ) -> jax.Array:
        def network(x: jax.Array, product: Product) -> jax.Array:
            return product(jnp.exp(product(x, up)), down)  # exp(0) is not 0: padding would show

        args = x, experts, weights, E, network, exchange
        return dropless(*args) if served is None else limited(*args, served=served)

    run = sharder.per_device(serve, (tokens, chosen, chosen, *kernels), tokens, summed="ffn", exchanged="experts")

    def total(x: Any, weights: Any, up: Any, down: Any, experts: Any) -> tuple[jax.Array, jax.Array]:
        y = run(x, experts, weights, up, down)
        return jnp.square(y).sum(), y

    slope = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))
    found = {}
    for name, experts in CHOICES.items():
        grads, y = slope(X_BSD, WEIGHTS_BSJ, UP_EDF, DOWN_EFD, experts)
        found[name] = [np.asarray(y), *map(np.asarray, grads)]
    return found


def apart(one: dict[str, Results], other: dict[str, Results]) -> float:
    """The largest difference, relative to the largest element of each array; infinite where one is not a number."""
    worst = 0.0
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            gap = float(np.abs(a - b).max() / np.abs(a).max())
            worst = max(worst, gap if np.isfinite(gap) else np.inf)
    return worst


def on(**mesh: int) -> jax.sharding.Mesh:
    return make_mesh(Mesh(**mesh))


def everything(meshes: list[dict[str, int]]) -> dict[str, Any]:
    """How far each mesh is from one device, dropless and with a capacity; how far each of WAYS is from the padded
    exchange, and each of MUTATIONS."""
    one = Sharder(make_mesh(Mesh(), jax.devices()[:1]))
    expected = {served: results(one, served) for served in (None, SERVED)}
    gaps = [
        [apart(whole, results(Sharder(on(**mesh)), served)) for served, whole in expected.items()] for mesh in meshes
    ]
    mesh = on(dp=2, ep=4)
    padded, ways = results(Sharder(mesh)), {}
    with replaced(jax.lax, "ragged_all_to_all", by_description):
        sharder = Sharder(mesh)
        sharder.ragged = True  # as on accelerators
        ways["ragged"] = apart(padded, results(sharder))
    with replaced(jax.lax, "ragged_dot", poisoned(jax.lax.ragged_dot)):
        ways["poisoned"] = apart(padded, results(Sharder(mesh)))
    mutations = {}
    for name, change in MUTATIONS.items():
        served = SERVED if name == "dealt" else None
        with replaced(moe, name, change(getattr(moe, name))):
            mutations[name] = apart(expected[served], results(Sharder(mesh), served))
    return {"meshes": gaps, "ways": ways, "mutations": mutations}


def rolled(real: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Rows in wrong places."""
    return lambda *args: jnp.roll(real(*args), 1, axis=0)


def one_less(real: Callable[..., tuple[Route, jax.Array]]) -> Callable[..., tuple[Route, jax.Array]]:
    """Each device sends one row too few."""

    def changed(*args: Any, **how: Any) -> tuple[Route, jax.Array]:
        route, expert_A = real(*args, **how)
        return dataclasses.replace(route, sent_U=jnp.maximum(route.sent_U - 1, 0)), expert_A

    return changed


MUTATIONS: dict[str, Callable[[Any], Any]] = {"returned": rolled, "routed": one_less, "dealt": rolled}


def by_description(
    operand: jax.Array,
    output: jax.Array,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    *,
    axis_name: tuple[str, ...],
) -> jax.Array:
    """ragged_all_to_all as its documentation describes it, for one slice per device; not a number if sizes differ."""
    gathered = [jax.lax.all_gather(a, axis_name) for a in (operand, input_offsets, send_sizes, output_offsets)]
    me, row = jax.lax.axis_index(axis_name), jnp.arange(output.shape[0])
    for i, (rows, starts, sizes, places) in enumerate(zip(*gathered, strict=True)):
        arriving = (row >= places[me]) & (row < places[me] + sizes[me])
        theirs = jnp.take(rows, jnp.where(arriving, row - places[me] + starts[me], 0), axis=0)
        output = jnp.where(arriving[:, None], theirs, output)
        output = jnp.where(recv_sizes[i] == sizes[me], output, jnp.nan)
    return output


def poisoned(ragged_dot: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A backend that leaves rows beyond the last group as it finds them, in results and in gradients."""

    def spoilt(x: jax.Array, sizes: jax.Array) -> jax.Array:
        return jnp.where(jnp.arange(x.shape[0])[:, None] < sizes.sum(), x, jnp.nan)

    @jax.custom_vjp
    def product(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
        return spoilt(ragged_dot(x, w, sizes), sizes)

    def forward(x: jax.Array, w: jax.Array, sizes: jax.Array) -> tuple[jax.Array, Any]:
        return product(x, w, sizes), (x, w, sizes)

    def backward(saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
        x, w, sizes = saved
        dx, dw = jax.vjp(lambda x, w: ragged_dot(x, w, sizes), x, w)[1](dy)
        return spoilt(dx, sizes), dw, None

    product.defvjp(forward, backward)
    return product


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    real = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, real)
