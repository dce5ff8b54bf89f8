"""FLOPs of a jaxpr against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.gpu import attention as gpu_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxllm.assembly import assemble
from jaxllm.models.count import flops_per_token
from jaxllm.plan.flops import count
from jaxllm.rehearsal import abstract_batch
from jaxllm.workspace import open_config

M, D, F, L, E = 8, 16, 24, 5, 4
x_MD, w_LDD = jnp.ones((M, D)), jnp.ones((L, D, D))
ONE = 2 * M * D * D


def looped(x_MD: jax.Array, w_LDD: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_MD, w_LDD)[0].sum()


def flops(function: object, *arrays: jax.Array) -> float:
    return count(jax.make_jaxpr(function)(*arrays)).flops


def test_a_scan_counts_as_often_as_it_goes_round() -> None:
    assert flops(looped, x_MD, w_LDD) == L * ONE
    assert flops(jax.grad(looped, (0, 1)), x_MD, w_LDD) == 3 * L * ONE


def test_what_is_recomputed_counts_again() -> None:
    def two(x_MD: jax.Array, w_DD: jax.Array) -> jax.Array:
        return (jnp.tanh(x_MD @ w_DD) @ w_DD).sum()

    assert flops(jax.grad(two, (0, 1)), x_MD, w_LDD[0]) == 6 * ONE
    assert flops(jax.grad(jax.remat(two), (0, 1)), x_MD, w_LDD[0]) == 7 * ONE  # the first product, not the second


def test_a_row_of_a_ragged_product_meets_one_matrix() -> None:
    w_EDF, sizes_E = jnp.ones((E, D, F)), jnp.array([3, 0, 4, 1])

    def ragged(x_MD: jax.Array, w_EDF: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x_MD, w_EDF, sizes_E).sum()

    assert flops(ragged, x_MD, w_EDF) == 2 * M * D * F
    assert flops(jax.grad(ragged, (0, 1)), x_MD, w_EDF) == 3 * 2 * M * D * F


@pytest.mark.parametrize(("manual", "times"), [({"a"}, 2), ({"a", "b"}, 8)])
def test_what_devices_do_each_for_itself_counts_for_all_of_them(manual: set[str], times: int) -> None:
    mesh = AbstractMesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def whole(x_MD: jax.Array, w_DD: jax.Array) -> jax.Array:
        return jax.shard_map(
            lambda x, w: x @ w, mesh=mesh, in_specs=(P(), P()), out_specs=P(), axis_names=manual, check_vma=False
        )(x_MD, w_DD)

    assert flops(whole, x_MD, w_LDD[0]) == times * ONE


def test_a_conditional_counts_its_dearest_branch_and_a_loop_without_length_is_noted() -> None:
    def either(x_MD: jax.Array, w_DD: jax.Array) -> jax.Array:
        return jax.lax.cond(x_MD[0, 0] > 0, lambda: x_MD @ w_DD @ w_DD, lambda: x_MD @ w_DD)

    def until(x_MD: jax.Array, w_DD: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w_DD, x_MD)

    assert flops(either, x_MD, w_LDD[0]) == 2 * ONE
    found = count(jax.make_jaxpr(until)(x_MD, w_LDD[0]))
    assert found.flops == ONE and "unknown length" in " ".join(found.notes)


@pytest.mark.parametrize("estimate", [None, pl.CostEstimate(flops=77, bytes_accessed=0, transcendentals=0)])
def test_a_kernel_counts_by_its_estimate_or_by_its_grid(estimate: pl.CostEstimate | None) -> None:
    def body(x_ref: jax.Array, w_ref: jax.Array, o_ref: jax.Array) -> None:
        o_ref[...] = x_ref[...] @ w_ref[...]

    def kernel(x_MD: jax.Array, w_DD: jax.Array) -> jax.Array:
        spec = pl.BlockSpec((M // 2, D), lambda i: (i, 0))
        shape = jax.ShapeDtypeStruct(x_MD.shape, x_MD.dtype)
        whole = pl.BlockSpec((D, D), lambda i: (0, 0))
        call = pl.pallas_call(
            body, grid=(2,), in_specs=[spec, whole], out_specs=spec, out_shape=shape, cost_estimate=estimate
        )
        return call(x_MD, w_DD)

    found = count(jax.make_jaxpr(kernel)(x_MD, w_LDD[0]))
    assert found.flops == (ONE if estimate is None else 77)
    assert "author" in " ".join(found.notes) or estimate is None


def test_attention_kernels_count_by_their_shapes() -> None:
    """Two products forwards and seven backwards, over half of the keys: both kernels go once over the queries and once
    over the keys, and score them each time."""
    B, S, H, K = 2, 256, 4, 128
    half = 2 * B * H * S * S * K / 2
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((S, S)) for _ in range(H)])
    splash = jax.vmap(splash_attention_kernel.make_splash_mha_single_device(mask))
    q_BHSK, q_BSHK = jnp.ones((B, H, S, K)), jnp.ones((B, S, H, K), jnp.float16)

    def on_tpu(q_BHSK: jax.Array, k_BHSK: jax.Array, v_BHSK: jax.Array) -> jax.Array:
        return splash(q_BHSK, k_BHSK, v_BHSK).sum()

    def on_gpu(q_BSHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array) -> jax.Array:
        return gpu_attention.mha(q_BSHK, k_BSHK, v_BSHK, None, causal=True).sum()

    for function, x in ((on_tpu, q_BHSK), (on_gpu, q_BSHK)):
        assert count(jax.make_jaxpr(function)(x, x, x)).by_kind["kernel"] == 2 * half
        found = count(jax.make_jaxpr(jax.grad(function, (0, 1, 2)))(x, x, x))
        assert found.by_kind["kernel"] == pytest.approx((2 + 7) * half, rel=0.01)
        assert any("half of the keys" in note for note in found.notes)


@pytest.mark.parametrize("name", ["quickstart", "moe"])
def test_a_real_step_costs_what_the_model_does(name: str) -> None:
    """The step's own count is of `blocks` attention, which leaves the masked half away in blocks: between the causal
    figure and the square one."""
    run, _ = open_config(f"configs/quickstart.py:{name}")
    parts, batch = assemble(run), run.data.stages[0].batch_size
    jaxpr = parts.step.trace(
        parts.abstract_state, abstract_batch(parts, batch), jax.ShapeDtypeStruct((), jnp.float32)
    ).jaxpr
    per_token = count(jaxpr).flops / batch / run.data.seq_len
    assert flops_per_token(run.model, run.data.seq_len, causal=True) < per_token
    assert per_token < flops_per_token(run.model, run.data.seq_len)
