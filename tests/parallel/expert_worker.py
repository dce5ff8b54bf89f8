"""What test_expert_layouts runs on 8 simulated devices: a small decoder whose experts are chosen by a wide margin."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.debug import debug
from jaxllm.assembly import Assembly, assemble
from jaxllm.core.config import override
from jaxllm.core.errors import LayoutError
from jaxllm.models import moe as layer
from jaxllm.models.config import Capacity, Gelu, Moe, SwiGlu
from jaxllm.ops.moe import Choice, choose
from jaxllm.run import RunConfig
from jaxllm.train.state import State

ROWS, LENGTH, VOCABULARY, EXPERTS, STEPS = 16, 32, 128, 8, 3

SOFTMAX = Moe(experts=EXPERTS, top_k=2, expert=SwiGlu(width=24), shared=SwiGlu(width=16), balance=0.5, bias_rate=0.01)
MOES = {
    "softmax": SOFTMAX,
    "sigmoid": Moe(
        experts=EXPERTS,
        top_k=3,
        expert=Gelu(width=24, bias=False),
        gate="sigmoid",
        normalize=False,
        scale=0.5,
        z_loss=1e-3,
    ),
    "capacity": dataclasses.replace(SOFTMAX, dispatch=Capacity(factor=1.0), bias_rate=None),
}


def run_of(moe: str, mesh: str) -> RunConfig:
    run = debug()
    attention = dataclasses.replace(run.model.attention, heads=8, kv_heads=4)
    model = dataclasses.replace(run.model, vocab_size=VOCABULARY, ffn=MOES[moe], attention=attention)
    run = dataclasses.replace(run, model=model, data=dataclasses.replace(run.data, seq_len=LENGTH))
    return override(override(run, ["compute.loss_chunks=2", "mesh.dp=1"]), mesh.split())


def wide(parts: Assembly) -> State:
    """The initial state, but the first E entries of a token's embedding are E steps of a ladder in an order of its own,
    and what routers go by."""
    steps_VE = np.random.default_rng(1).permuted(np.tile(np.arange(EXPERTS) - 3.5, (VOCABULARY, 1)), axis=1)

    def climbed(params: Any) -> Any:
        table, router = params["embed"]["table"], params["blocks"]["mlp"]["router"]
        params["embed"]["table"] = table.at[:, :EXPERTS].add(steps_VE.astype(np.float32))
        params["blocks"]["mlp"]["router"] = router.at[:, :EXPERTS].add(2 * jnp.eye(EXPERTS))
        return params

    return parts.state_of(jax.jit(climbed)(parts.initial_state().params))


def margin(parts: Assembly, state: State, batch: dict[str, jax.Array]) -> float:
    """By how much the score of the last expert that is chosen beats that of the next, for the closest token."""
    gaps: list[float] = []

    def watched(logits_BSE: jax.Array, balance_E: jax.Array | None, *, top_k: int, **how: Any) -> Choice:
        sigmoid = how["gate"] == "sigmoid"
        scores = jax.nn.sigmoid(logits_BSE) if sigmoid else jax.nn.softmax(logits_BSE)
        ordered = jnp.sort(scores if balance_E is None else scores + balance_E)
        jax.debug.callback(gaps.append, (ordered[..., -top_k] - ordered[..., -top_k - 1]).min())
        return choose(logits_BSE, balance_E, top_k=top_k, **how)

    def forward(params: Any) -> jax.Array:
        inputs = (batch[k] for k in ("inputs", "segments", "positions"))
        return parts.declared.bind(params).hidden(*inputs, parts.context)[0]

    layer.choose = watched
    try:
        jax.block_until_ready(jax.jit(forward)(state.params))
        jax.effects_barrier()
    finally:
        layer.choose = choose
    assert len(gaps) == parts.run.model.layers
    return min(map(float, gaps))


def batch_of(parts: Assembly) -> dict[str, jax.Array]:
    dice = np.random.default_rng(4)
    tokens = dice.integers(0, VOCABULARY, (ROWS, LENGTH + 1), dtype=np.int32)
    segments = np.repeat(np.arange(2, dtype=np.int32), LENGTH // 2)[None].repeat(ROWS, 0)
    positions = np.tile(np.arange(LENGTH // 2, dtype=np.int32), 2)[None].repeat(ROWS, 0)
    mask = dice.random((ROWS, LENGTH)) < np.linspace(0.3, 1.0, ROWS)[:, None]
    named = {"labels": tokens[:, 1:], "segments": segments, "positions": positions, "loss_mask": mask}
    return parts.place({"inputs": tokens[:, :-1]} | named)


def three_steps(moe: str, meshes: list[str]) -> list[dict[str, Any]]:
    """Of one device and then of each mesh: the losses of three steps, the first moment after the first (a tenth of the
    clipped gradient), the loads; of one device also the smallest margin."""
    results: list[dict[str, Any]] = []
    for mesh in ("", *meshes):
        parts = assemble(run_of(moe, mesh), None if mesh else jax.devices()[:1])
        state, batch = wide(parts), batch_of(parts)
        found: dict[str, Any] = {"mesh": mesh, "losses": [], "loads": [], "margins": []}
        for step in range(STEPS):
            if not mesh:
                found["margins"].append(margin(parts, state, batch))
            state, metrics = parts.step(state, batch, np.float32(1e-2))
            found["losses"].append(np.asarray(metrics.loss_B, np.float64).tolist())
            assert metrics.routing is not None
            found["loads"].append(np.asarray(metrics.routing.loads_LE).tolist())
            if step == 0:
                moments = parts.declared.named(state.opt["mu"])
                found["gradient"] = {k: np.asarray(v, np.float64).ravel().tolist() for k, v in moments.items()}
        results.append(found)
    return results


def everything() -> dict[str, Any]:
    """The steps of the sigmoid's experts on one device and on eight; how tokens reach experts on some meshes, and what
    is said of what cannot be."""
    ways: dict[str, str | None] = {}
    for mesh in ("mesh.dp=8", "mesh.ep=8", "mesh.ep=8 model.ffn.dispatch.kind=Capacity model.ffn.dispatch.factor=1.0"):
        ways[mesh] = assemble(run_of("sigmoid", mesh)).exchange
    for change in ("model.ffn.experts=6", "compute.expert_exchange=ragged"):
        try:
            ways[change] = str(assemble(run_of("sigmoid", f"mesh.ep=4 mesh.dp=2 {change}")).initial_state())
        except LayoutError as err:
            ways[change] = str(err)
    return {"steps": three_steps("sigmoid", ["mesh.ep=4 mesh.dp=2"]), "ways": ways}
