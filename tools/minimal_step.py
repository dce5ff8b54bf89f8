"""What a hand-written training step needs, beside ours: the same LLaMA shapes, batch and mesh, for the same pod.

    python tools/minimal_step.py configs/amber_7b.py:amber_7b --chip v5e --topology 16x16 mesh.fsdp=64 mesh.tp=4 ...

The step below is the shortest that trains: a scan over layers with recomputation of each, AdamW in float32, sequence
parallelism as constraints on the residual stream. It has no documents, no masks, no records, no norms by layer and no
refusal of bad updates, and its loss is computed in one piece. Needs libtpu (the extra `plan`).
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.core.xla_flags import settle_flags
from jaxllm.models.config import Model, RmsNorm, Rope, SwiGlu
from jaxllm.parallel.mesh import make_mesh
from jaxllm.plan import flops
from jaxllm.plan.estimate import sizes_of
from jaxllm.plan.make import closed
from jaxllm.plan.measure import Measured, main_batch, measured, read_compiled
from jaxllm.plan.target import Target, open_devices, require_compiler, target_of
from jaxllm.run import RunConfig
from jaxllm.workspace import open_config

Tree = Any
P = PartitionSpec
_EPS, _B1, _B2, _DECAY, _CLIP = 1e-8, 0.9, 0.95, 0.1, 1.0


def shapes(model: Model) -> dict[str, tuple[tuple[int, ...], PartitionSpec]]:
    """Every parameter: its shape and how it is split."""
    L, D, V = model.layers, model.width, model.vocab_size
    H, G, K = model.attention.heads, model.attention.kv_heads, model.attention.head_width
    assert isinstance(model.ffn, SwiGlu)
    F = model.ffn.width
    return {
        "embed": ((V, D), P("tp", "fsdp")),
        "head": ((D, V), P("fsdp", "tp")),
        "norm": ((D,), P()),
        "norms": ((L, 2, D), P()),
        "q": ((L, D, H, K), P(None, "fsdp", "tp")),
        "k": ((L, D, G, K), P(None, "fsdp", "tp")),
        "v": ((L, D, G, K), P(None, "fsdp", "tp")),
        "o": ((L, H, K, D), P(None, "tp", None, "fsdp")),
        "up": ((L, D, F), P(None, "fsdp", "tp")),
        "gate": ((L, D, F), P(None, "fsdp", "tp")),
        "down": ((L, F, D), P(None, "tp", "fsdp")),
    }


def rms(x_BSD: jax.Array, scale_D: jax.Array) -> jax.Array:
    y_BSD = x_BSD.astype(jnp.float32)
    y_BSD = y_BSD * jax.lax.rsqrt(jnp.square(y_BSD).mean(axis=-1, keepdims=True) + 1e-5)
    return (y_BSD * scale_D).astype(x_BSD.dtype)


def rotated(x_BSHK: jax.Array) -> jax.Array:
    S, K = x_BSHK.shape[1], x_BSHK.shape[3]
    angle_SK = jnp.arange(S)[:, None] * 1e4 ** (-2 * jnp.arange(K // 2) / K)
    cos, sin = jnp.cos(angle_SK)[:, None], jnp.sin(angle_SK)[:, None]
    a, b = jnp.split(x_BSHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BSHK.dtype)


def attended(q_BSHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array) -> jax.Array:
    B, S, H, K = q_BSHK.shape
    q_BSGRK = q_BSHK.reshape(B, S, k_BTGK.shape[2], -1, K)
    score_BGRST = jnp.einsum("BSGRK,BTGK->BGRST", q_BSGRK, k_BTGK, preferred_element_type=jnp.float32) * K**-0.5
    score_BGRST = jnp.where(jnp.tri(S, dtype=bool), score_BGRST, -1e30)
    share_BGRST = jax.nn.softmax(score_BGRST).astype(v_BTGK.dtype)
    return jnp.einsum("BGRST,BTGK->BSGRK", share_BGRST, v_BTGK).reshape(B, S, H, K)


def loss(params: Tree, tokens_BS: jax.Array, mesh: Mesh) -> jax.Array:
    def put(x: jax.Array, *axes: Any) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))

    def layer(x_BSD: jax.Array, p: Tree) -> tuple[jax.Array, None]:
        p = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
        y_BSD = put(rms(x_BSD, p["norms"][0]), "fsdp")
        q_BSHK = put(jnp.einsum("BSD,DHK->BSHK", y_BSD, p["q"]), "fsdp", None, "tp")
        k_BSGK, v_BSGK = (put(jnp.einsum("BSD,DGK->BSGK", y_BSD, p[n]), "fsdp", None, "tp") for n in "kv")
        # Said again of what was turned: the compiler would split the halves of heads over tp, and exchange them.
        q_BSHK, k_BSGK = (put(rotated(x), "fsdp", None, "tp") for x in (q_BSHK, k_BSGK))
        o_BSHK = put(attended(q_BSHK, k_BSGK, v_BSGK), "fsdp", None, "tp")
        x_BSD = put(x_BSD + jnp.einsum("BSHK,HKD->BSD", o_BSHK, p["o"]), "fsdp", "tp")
        y_BSD = put(rms(x_BSD, p["norms"][1]), "fsdp")
        up_BSF, gate_BSF = (put(jnp.einsum("BSD,DF->BSF", y_BSD, p[n]), "fsdp", None, "tp") for n in ("up", "gate"))
        x_BSD = put(x_BSD + jnp.einsum("BSF,FD->BSD", up_BSF * jax.nn.silu(gate_BSF), p["down"]), "fsdp", "tp")
        return x_BSD, None

    whole = ("embed", "head", "norm")
    blocks = {name: w for name, w in params.items() if name not in whole}
    x_BSD = put(params["embed"].astype(jnp.bfloat16)[tokens_BS], "fsdp", "tp")
    again = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
    x_BSD = rms(jax.lax.scan(again, x_BSD, blocks)[0], params["norm"])
    logits_BSV = jnp.einsum(
        "BSD,DV->BSV", x_BSD, params["head"].astype(x_BSD.dtype), preferred_element_type=jnp.float32
    )
    logits_BSV = put(logits_BSV, "fsdp", None, "tp")
    label_BS1 = jnp.roll(tokens_BS, -1, axis=1)[..., None]
    return (jax.nn.logsumexp(logits_BSV, axis=-1) - jnp.take_along_axis(logits_BSV, label_BS1, -1)[..., 0]).mean()


def train(state: Tree, tokens_BS: jax.Array, lr: jax.Array, mesh: Mesh, micro: int) -> tuple[Tree, jax.Array]:
    """(parameters, first and second moments, count) -> the same after an update, and the loss."""
    params, first, second, count = state
    rounds = tokens_BS.shape[0] // micro
    parts = tokens_BS.reshape(micro, rounds, -1).swapaxes(0, 1)

    def add(total: Tree, part_BS: jax.Array) -> tuple[Tree, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, part_BS, mesh)
        return jax.tree.map(jnp.add, total, grads), value

    if rounds == 1:
        value, grads = jax.value_and_grad(loss)(params, tokens_BS, mesh)
    else:
        grads, values = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        value = values.mean()
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads))) / rounds
    scale = jnp.minimum(1.0, _CLIP / norm) / rounds
    count = count + 1
    first = jax.tree.map(lambda m, g: _B1 * m + (1 - _B1) * scale * g, first, grads)
    second = jax.tree.map(lambda v, g: _B2 * v + (1 - _B2) * jnp.square(scale * g), second, grads)

    def moved(w: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        step = m / (1 - _B1**count) / (jnp.sqrt(v / (1 - _B2**count)) + _EPS)
        return w - lr * (step + _DECAY * w)

    return (jax.tree.map(moved, params, first, second), first, second, count), value


def minimal(run: RunConfig, target: Target, quick: bool) -> Measured:
    """The step above, compiled."""
    mesh, batch = make_mesh(run.mesh, open_devices(target)), main_batch(run)
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for name, (shape, spec) in shapes(run.model).items()
    }
    count = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    state = (params, params, params, count)
    tokens = jax.ShapeDtypeStruct((batch, run.data.seq_len), jnp.int32, sharding=NamedSharding(mesh, P("fsdp")))
    micro = run.compute.micro_batch or batch
    step = jax.jit(
        lambda state, tokens, lr: train(state, tokens, lr, mesh, micro),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), NamedSharding(mesh, P())),
    )
    traced = step.trace(state, tokens, jax.ShapeDtypeStruct((), jnp.float32))
    work = flops.count(traced.jaxpr).flops / mesh.size
    compiled = traced.lower(lowering_platforms=("tpu",)).compile(
        compiler_options={"exec_time_optimization_effort": -1.0} if quick else None
    )
    return Measured(attention="plain", flops=work, **read_compiled(compiled, mesh, target, work))


def rows(ours: Measured, theirs: Measured) -> list[tuple[str, float, float]]:
    """(what, ours, theirs): GiB of memory and of every kind of collective by mesh axes, TFLOP, seconds at best."""
    gib, tera = 2**30, 1e12
    found = [
        ("peak memory, GiB", ours.peak_bytes / gib, theirs.peak_bytes / gib),
        ("temporaries, GiB", ours.temporary_bytes / gib, theirs.temporary_bytes / gib),
        ("TFLOP a step", ours.flops / tera, theirs.flops / tera),
        ("memory traffic, GiB", ours.traffic_bytes / gib, theirs.traffic_bytes / gib),
    ]
    tables = [
        {(" x ".join(axes), kind): within + between for axes, kind, _, within, between in one.collectives}
        for one in (ours, theirs)
    ]
    found.append(("collectives, GiB", sum(tables[0].values()) / gib, sum(tables[1].values()) / gib))
    for key in sorted(set(tables[0]) | set(tables[1])):
        found.append((f"  {key[1]} over {key[0]}, GiB", tables[0].get(key, 0) / gib, tables[1].get(key, 0) / gib))
    found += [(f"{name}, s", ours.roofline[name], theirs.roofline[name]) for name in ("compute", "memory", "links")]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--chip", required=True)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_intermixed_args()
    target = target_of(options.chip, options.topology, 1, None)
    require_compiler(target.chip)
    run = closed(open_config(options.config, options.overrides)[0], target)
    model = run.model
    if not (isinstance(model.ffn, SwiGlu) and isinstance(model.norm, RmsNorm) and isinstance(model.position, Rope)):
        parser.error("the minimal step is LLaMA's: SwiGlu, RmsNorm, Rope")
    if run.compute.remat != "full" or not run.mesh.sequence_parallel:
        parser.error("the minimal step takes compute.remat=full and mesh.sequence_parallel=true")
    if sizes_of(run)["fsdp"] * sizes_of(run)["tp"] != target.devices or model.tied_embeddings or run.optimizer.ema:
        parser.error("the minimal step is split over fsdp and tp alone, with a head of its own and without an average")
    settle_flags(run.compute.xla_flags, os.environ, "tpu")  # as `measured` does for ours
    ours, theirs = measured(run, target, quick=options.quick), minimal(run, target, options.quick)
    if ours.problem is not None:
        parser.error(f"ours: {ours.problem}")
    if options.json:
        print(json.dumps({"ours": asdict(ours), "minimal": asdict(theirs)}, indent=2))
        return 0
    print(f"{run.name} on {target.text}, attention {ours.attention}; {'':<10}{'ours':>10}{'minimal':>10}")
    for name, mine, other in rows(ours, theirs):
        print(f"{name:<50}{mine:>10.3f}{other:>10.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
