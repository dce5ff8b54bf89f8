"""What test_ring runs on 8 simulated devices."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.debug import debug
from jaxllm import sequence
from jaxllm.core.errors import LayoutError
from jaxllm.models.context import Context
from jaxllm.ops.attention import Scoring, alibi_slopes, attention
from jaxllm.ops.moe import within_capacity
from jaxllm.parallel import ring
from jaxllm.parallel.config import AllToAll, Compute, ContextParallel, Mesh, Ring
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.rules import partition_spec
from jaxllm.parallel.shard import Sharder, batch_sharding
from jaxllm.run import RunConfig

B, S, H, G, K = 2, 48, 8, 4, 8
PLAIN = Scoring(3.0)
ALL = Scoring(0.7, softcap=1.5, window=20, slopes=alibi_slopes(H))
CASES: dict[str, tuple[Mesh, ContextParallel, Scoring, str]] = {
    "ring of 2": (Mesh(dp=2, cp=2), Ring(), ALL, "float32"),
    "ring of 4 beside tp": (Mesh(dp=1, cp=4, tp=2), Ring(), ALL, "float32"),
    "ring of 8": (Mesh(dp=1, cp=8), Ring(), PLAIN, "float32"),
    "ring in bfloat16": (Mesh(dp=1, cp=4), Ring(), PLAIN, "bfloat16"),
    "all to all": (Mesh(dp=1, cp=4), AllToAll(), PLAIN, "float32"),
    "all to all beside tp": (Mesh(dp=1, cp=2, tp=2), AllToAll(), ALL, "float32"),
}
Arrays = list[np.ndarray[Any, Any]]


def run_of(how: ContextParallel, seq_len: int = S) -> RunConfig:
    run = debug()
    part = dataclasses.replace(run.model.attention, heads=H, kv_heads=G, head_width=K)
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, attention=part),
        data=dataclasses.replace(run.data, seq_len=seq_len),
        compute=Compute(context_parallel=how),
    )


def context_of(mesh: Mesh, how: ContextParallel) -> tuple[Context, Sharder]:
    sharder = Sharder(make_mesh(mesh, jax.devices()[: mesh.dp * mesh.cp * mesh.tp]))
    return sequence.over_devices(Context(shard=sharder), run_of(how), sharder), sharder


def draw() -> Arrays:
    """q, k, v, do, segments, in the order of the sequence."""
    dice = np.random.default_rng(1)
    numbers = [dice.standard_normal((B, S, n, K), np.float32) for n in (H, G, G, H)]
    return [*numbers, np.sort(dice.integers(0, 3, (B, S), dtype=np.int32), axis=1)]


def pulled(attend: Callable[..., jax.Array], scoring: Scoring) -> Callable[..., list[jax.Array]]:
    """(q, k, v, do, segments) -> o, dq, dk, dv."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array, segments: jax.Array) -> list[jax.Array]:
        o, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segments, kernel="reference", scoring=scoring), q, k, v)
        return [o, *pull(do)]

    return run


def order_of(context: Context) -> np.ndarray[Any, Any]:
    index = np.broadcast_to(np.arange(S, dtype=np.int32), (2, S))
    return np.asarray(context.arrange({"index": jnp.asarray(index)})["index"][0])


def compiled(case: str, gathered: bool = False) -> tuple[Callable[[Arrays], Arrays], str]:
    """(o, dq, dk, dv of arrays in the order of the sequence, the compiled text) of a case."""
    mesh, how, scoring, dtype = CASES[case]
    context, sharder = context_of(mesh, how)
    order, back = order_of(context), np.argsort(order_of(context))
    axes = [("batch", "seq", heads, "head") for heads in ("heads", "kv_heads", "kv_heads", "heads")] + [
        ("batch", "seq")
    ]
    layouts = [jax.NamedSharding(sharder.mesh, partition_spec(sharder.rules, a)) for a in axes]
    attend = attention if gathered else context.self_attention
    types = [dtype] * 4 + ["int32"]
    shapes = [
        jax.ShapeDtypeStruct(x.shape, jnp.dtype(t), sharding=layout)
        for x, t, layout in zip(draw(), types, layouts, strict=True)
    ]
    outs = (layouts[0], *layouts[:3])
    program = jax.jit(pulled(attend, scoring), out_shardings=list(outs)).lower(*shapes).compile()

    def run(arrays: Arrays) -> Arrays:
        placed = [
            jax.device_put(jnp.asarray(x[:, order], t), layout)
            for x, t, layout in zip(arrays, types, layouts, strict=True)
        ]
        return [np.asarray(x, np.float32)[:, back] for x in program(*placed)]

    return run, str(program.as_text())


@functools.cache
def expected(scoring: Scoring) -> Arrays:
    """o, dq, dk and dv of one device."""
    return [np.asarray(x) for x in jax.jit(pulled(attention, scoring))(*(jnp.asarray(x) for x in draw()))]


def errors(found: Arrays, scoring: Scoring) -> list[float]:
    """The largest difference of o, dq, dk and dv, over the largest number there."""
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected(scoring), strict=True)]


def gathers(text: str) -> list[str]:
    """What is gathered of numbers: keys, values or queries."""
    return re.findall(r"= (?:f32|bf16)\[\S* all-gather", text)


def everything() -> dict[str, Any]:
    """One process for all that needs eight devices."""
    report: dict[str, Any] = {"errors": {}, "gathers": {}}
    for case in CASES:
        run, text = compiled(case)
        report["errors"][case] = errors(run(draw()), CASES[case][2])
        report["gathers"][case] = len(gathers(text))
        if case == "ring of 8":
            report["seen"] = seen(run)
            report["permutes"] = text.count(" collective-permute(") + text.count(" collective-permute-start(")
    report["gathers"]["left to the compiler"] = len(gathers(compiled("ring of 4 beside tp", gathered=True)[1]))
    report["mutants"] = {name: mutated(name) for name in MUTANTS}
    report["arranged"] = arranged()
    report["capacity"] = capacity_kept()
    report["refusals"] = refusals()
    return report


QUERIES = (0, 5, 17, 24, 47)


def seen(run: Callable[[Arrays], Arrays]) -> list[list[bool]]:
    """Does the output of these queries of the first sequence depend on key and value t?"""
    rows = []
    for s in QUERIES:
        arrays = draw()
        arrays[3] = np.zeros_like(arrays[3])
        arrays[3][0, s] = 1.0
        _, _, dk, dv = run(arrays)
        assert not dk[1].any() and not dv[1].any()  # another sequence
        rows.append([bool(x) for x in (np.abs(dk[0]) + np.abs(dv[0])).sum((1, 2)) > 0])
    return rows


# ---- what must be seen -----------------------------------------------------------------------------------------------


def _contiguous(seq_len: int, devices: int) -> np.ndarray[Any, Any]:
    return np.arange(seq_len, dtype=np.int32)


def _segments_stay(self: Any, tree: Any, send: Any = ring._Place.send) -> Any:
    return [*send(self, list(tree[:2])), *tree[2:]]


def _gradients_stay(self: Any, tree: Any, send: Any = ring._Place.send) -> Any:
    return send(self, tree) if len(tree) == 3 else tree


def _other_way(self: Any, step: Any) -> Any:
    return (self.rank + step) % self._devices


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "positions in another order": (sequence, "zigzag", _contiguous),
    "segments stay behind": (ring._Place, "send", _segments_stay),
    "gradients stay behind": (ring._Place, "send", _gradients_stay),
    "keys taken for another device's": (ring._Place, "source", _other_way),
}


def mutated(name: str) -> float:
    """The largest error of a ring of four with one thing wrong."""
    owner, attribute, wrong = MUTANTS[name]
    right = getattr(owner, attribute)
    setattr(owner, attribute, wrong)
    try:
        run, _ = compiled("ring of 4 beside tp")
        return max(errors(run(draw()), ALL))
    finally:
        setattr(owner, attribute, right)


# ---- batches, experts, refusals --------------------------------------------------------------------------------------


def arranged() -> dict[str, Any]:
    """How a batch that comes with whole rows is laid out, and what that makes devices send."""
    context, sharder = context_of(Mesh(dp=2, cp=4), Ring())
    rows = batch_sharding(sharder.mesh)
    program = jax.jit(lambda x: context.arrange({"x": x})["x"])
    x_BS = jax.device_put(np.tile(np.arange(S, dtype=np.int32), (4, 1)), rows)
    parts = sorted(program(x_BS).addressable_shards, key=lambda shard: shard.device.id)
    text = program.lower(x_BS).compile().as_text()
    collectives = re.findall(r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter", text)
    return {"parts": [np.asarray(p.data)[0].tolist() for p in parts[:4]], "collectives": collectives}


def capacity_kept() -> bool:
    """Who fits into an expert is the same as on one device."""
    context, _ = context_of(Mesh(dp=2, cp=4), Ring())
    experts_BSJ = jnp.asarray(np.random.default_rng(2).integers(0, 5, (4, S, 2), dtype=np.int32))
    order = order_of(context)

    def keep(experts_BSJ: jax.Array) -> jax.Array:
        return within_capacity(experts_BSJ, experts=5, served=7)

    alone, found = np.asarray(keep(experts_BSJ)), jax.jit(context.by_sequence(keep))(experts_BSJ[:, order])
    assert (alone == 5).any() and (alone < 5).any()
    return bool((np.asarray(found) == alone[:, order]).all())


def refusals() -> list[str]:
    attempts: list[tuple[Mesh, ContextParallel, int]] = [
        (Mesh(dp=2, cp=4), Ring(), 36),
        (Mesh(dp=2, cp=4), AllToAll(), 34),
        (Mesh(dp=1, cp=4, tp=2), AllToAll(), S),
    ]
    said = []
    for mesh, how, seq_len in attempts:
        sharder = Sharder(make_mesh(mesh))
        try:
            sequence.over_devices(Context(shard=sharder), run_of(how, seq_len), sharder)
            said.append("accepted")
        except LayoutError as err:
            said.append(str(err))
    return said
