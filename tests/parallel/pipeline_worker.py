"""What test_pipeline runs on 8 simulated devices: a stack of small layers with everything in them that layers have."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from configs.debug import debug
from jaxllm.assembly import assemble
from jaxllm.core.errors import LayoutError
from jaxllm.models.config import LayerKind
from jaxllm.models.context import rematerialized
from jaxllm.models.stack import in_turn
from jaxllm.parallel.config import Mesh, Pipeline
from jaxllm.parallel.mesh import make_mesh, mapped
from jaxllm.parallel.pipeline import Staged
from jaxllm.parallel.schedule import Hop, Schedule, schedule_of
from jaxllm.parallel.shard import Sharder

Layer = Callable[..., tuple[jax.Array, Any]]
L, B, S, D, F = 24, 32, 4, 8, 16


class Short(Schedule):
    """A tick too few: the last micro-batch is never finished."""

    @property
    def ticks(self) -> int:
        return super().ticks - 1


class Unmoved(Schedule):
    """Pieces stay where the layers lie in order."""

    def hops(self) -> list[Hop]:
        own = tuple(range(self.stages))
        return [Hop((r,) * self.stages, own, (r,) * self.stages) for r in range(self.rounds)]


SCHEDULES = {"right": Schedule, "short": Short, "unmoved": Unmoved}


def layer_on(mesh: jax.sharding.Mesh) -> Layer:
    """A layer with constraints, a part that every device computes for itself, talk along cp, a branch, and results."""
    shard = Sharder(mesh)

    def narrow(h_BSF: jax.Array, down_FD: jax.Array) -> jax.Array:
        return h_BSF @ down_FD

    down = shard.per_device(
        narrow, [("batch", "seq", "ffn"), ("ffn", "embed")], ("batch", "seq", "embed"), summed="ffn"
    )

    def neighbours(x_BSD: jax.Array) -> jax.Array:
        """Every share of the sequence, exchanged with the next one's and brought back: the same, over the ring."""
        n = mesh.shape["cp"]
        if n == 1:
            return x_BSD
        spec = PartitionSpec(("dp", "fsdp", "ep"), "cp")

        def ring(x: jax.Array) -> jax.Array:
            there = jax.lax.ppermute(x, "cp", [(i, (i + 1) % n) for i in range(n)])
            return jax.lax.ppermute(there, "cp", [((i + 1) % n, i) for i in range(n)])

        result: jax.Array = mapped(ring, mesh, spec, spec)(x_BSD)
        return result

    def layer(x_BSD: jax.Array, rows: Any, xs: Any) -> tuple[jax.Array, Any]:
        up_DF, down_FD, which, damping = xs
        x_BSD = shard(x_BSD, "batch", "resid_seq", "embed")
        h_BSF = shard(jnp.tanh(x_BSD @ up_DF) * damping, "batch", "seq", "ffn")
        h_BSF = jax.lax.switch(which, [lambda h: h, lambda h: 0.5 * h * rows["far"][..., None]], h_BSF)
        x_BSD = neighbours(x_BSD) + down(h_BSF, down_FD) + 0.01 * rows["near"][:, None]
        high_BS = x_BSD.mean(-1) > 0
        back = {"count": high_BS.sum(dtype=jnp.int32), "penalty_B": jnp.square(x_BSD).mean((1, 2))}
        return shard(x_BSD, "batch", "resid_seq", "embed"), back

    return layer


def joined(back: Any, uncut: Callable[[jax.Array], jax.Array]) -> Any:
    return {"count": back["count"].sum(0), "penalty_B": uncut(back["penalty_B"].swapaxes(1, 2)).T}


def values(period: int) -> tuple[Any, Any, jax.Array, Any]:
    """(float parameters, constants, x, rows). period: of the pattern of branches."""
    dice = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return dice.normal(size=shape).astype(np.float32)

    constants = (np.arange(L, dtype=np.int32) % period % 2, 1 / np.sqrt(np.arange(1, L + 1, dtype=np.float32)))
    rows = {"far": normal(B, S), "near": normal(B, D)}
    return (0.3 * normal(L, D, F), 0.3 * normal(L, F, D)), constants, jnp.asarray(normal(B, S, D)), rows


def outcome(stack: Any, layer: Layer, remat: Any, period: int, mesh: jax.sharding.Mesh) -> Any:
    """(objective, what layers gave back, gradients), and the compiled program."""
    floats, constants, x_BSD, rows = values(period)

    def objective(floats: Any, x_BSD: jax.Array) -> tuple[jax.Array, Any]:
        x_BSD, back = stack(
            layer,
            x_BSD,
            rows,
            (*floats, *constants),
            saved=lambda f: rematerialized(f, remat),
            unroll=1,
            join=joined,
        )
        weight_B = jnp.linspace(0.1, 1.0, B)
        return (jnp.square(x_BSD).mean((1, 2)) * weight_B).sum() + (back["penalty_B"] * weight_B).sum(), back

    split = jax.sharding.NamedSharding(mesh, PartitionSpec("pp"))
    floats = jax.device_put(floats, split)
    compiled = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True)).lower(floats, x_BSD).compile()
    return jax.tree.map(lambda a: np.asarray(a), compiled(floats, x_BSD)), compiled.as_text()


def differences(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each case: the largest relative difference to one layer after the other on one device, and collectives."""
    one = make_mesh(Mesh(dp=1), jax.devices()[:1])
    plain = functools.cache(lambda period: outcome(in_turn, layer_on(one), "none", period, one)[0])
    found = []
    for case in cases:
        mesh = make_mesh(Mesh(**case["mesh"]))
        remat, period = case.get("remat", "none"), case.get("period", 2)
        planned = schedule_of(Pipeline(**case.get("pipeline", {})), mesh.shape["pp"], L)
        kind = SCHEDULES[case.get("schedule", "right")]
        schedule = kind(planned.stages, planned.micro_batches, planned.rounds)
        actual, text = outcome(Staged(mesh, schedule, Sharder(mesh)), layer_on(mesh), remat, period, mesh)
        pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(plain(period)), strict=True))
        found.append(
            {
                "error": max(float(np.abs(a - e).max() / np.abs(e).max()) for a, e in pairs),
                "finite": all(bool(np.isfinite(a).all()) for a, _ in pairs),
                "permutes": text.count(" collective-permute("),
                "gathered": max(map(elements, re.findall(r"\w+\[([\d,]*)\]\S* all-gather\(", text)), default=0),
            }
        )
    return found


def elements(shape: str) -> int:
    """Of an array whose dimensions are '3,4'."""
    return math.prod(map(int, filter(None, shape.split(","))))


def temporaries(micro_batches: list[int], rounds: int, remat: str) -> list[int]:
    """Bytes of temporaries of a stack of 8 wide layers over 2 stages, forwards and backwards."""
    width, stages, found = 256, 2, []
    mesh = make_mesh(Mesh(dp=1, pp=stages), jax.devices()[:stages])
    shard = Sharder(mesh)

    def layer(x_BSD: jax.Array, rows: Any, w_DD: Any) -> tuple[jax.Array, Any]:
        return jnp.tanh(x_BSD @ w_DD), None

    for N in micro_batches:
        stack = Staged(mesh, Schedule(stages, N, rounds), shard)

        def objective(w_LDD: jax.Array, x_BSD: jax.Array, stack: Any = stack) -> jax.Array:
            saved: Any = lambda f: rematerialized(f, remat)  # type: ignore[arg-type]  # noqa: E731
            after, _ = stack(layer, x_BSD, None, w_LDD, saved=saved, unroll=1, join=lambda back, uncut: back)
            return jnp.square(after).sum()

        split = jax.sharding.NamedSharding(mesh, PartitionSpec("pp"))
        w = jax.ShapeDtypeStruct((8, width, width), jnp.float32, sharding=split)
        x = jax.ShapeDtypeStruct((micro_batches[-1], 1, width), jnp.float32)
        memory: Any = jax.jit(jax.grad(objective)).lower(w, x).compile().memory_analysis()
        found.append(int(memory.temp_size_in_bytes))
    return found


def refusals(cases: list[dict[str, Any]]) -> list[str]:
    """What is said to a run of the debug config with these settings, '' if nothing."""
    found = []
    for case in cases:
        run = debug()
        model = dataclasses.replace(
            run.model,
            layers=8,
            norm=dataclasses.replace(run.model.norm, eps=case["eps"]),
            pattern=(LayerKind(), *[LayerKind(window=4)] * case["windows"]),
        )
        compute = dataclasses.replace(run.compute, remat=case["remat"], pipeline=Pipeline(**case["pipeline"]))
        try:
            assemble(dataclasses.replace(run, model=model, mesh=Mesh(**case["mesh"]), compute=compute)).check_batches()
            found.append("")
        except LayoutError as err:
            found.append(str(err))
    return found
