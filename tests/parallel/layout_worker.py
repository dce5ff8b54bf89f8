"""What test_layouts runs on 8 simulated devices."""

import dataclasses
from typing import Any

import jax
import numpy as np

from configs.debug import debug
from jaxllm.assembly import Assembly, assemble
from jaxllm.models.config import Capacity, Moe, SwiGlu
from jaxllm.parallel.config import Mesh
from jaxllm.run import RunConfig

ROWS = 16


EXPERTS = Moe(experts=4, top_k=2, expert=SwiGlu(width=24), shared=SwiGlu(width=16), balance=0.5, bias_rate=0.01)
FFN = {"dense": None, "dropless": EXPERTS, "capacity": dataclasses.replace(EXPERTS, dispatch=Capacity(factor=1.0))}


def small(ffn: str, **mesh: Any) -> RunConfig:
    run = debug()
    model = dataclasses.replace(run.model, vocab_size=128)
    model = dataclasses.replace(model, ffn=FFN[ffn] or model.ffn)
    attention = dataclasses.replace(model.attention, heads=8, kv_heads=4)
    return dataclasses.replace(
        run,
        model=dataclasses.replace(model, attention=attention),
        data=dataclasses.replace(run.data, seq_len=32),
        mesh=Mesh(**mesh),
    )


def batch_of(parts: Assembly) -> dict[str, jax.Array]:
    dice = np.random.default_rng(4)
    tokens = dice.integers(0, 128, (ROWS, 33), dtype=np.int32)
    segments = np.repeat(np.arange(4, dtype=np.int32), 8)[None].repeat(ROWS, 0)
    positions = np.tile(np.arange(8, dtype=np.int32), 4)[None].repeat(ROWS, 0)
    mask = dice.random((ROWS, 32)) < np.linspace(0.3, 1.0, ROWS)[:, None]
    return parts.place(
        {
            "inputs": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "segments": segments,
            "positions": positions,
            "loss_mask": mask,
        }
    )


def three_steps(
    meshes: list[dict[str, Any]], remat: str = "none", micro_batch: int | None = None, ffn: str = "dense"
) -> list[dict[str, Any]]:
    """For each mesh: losses of three steps, the first moment (10% of the first clipped gradient), initial digest."""
    results = []
    for mesh in meshes:
        run = small(ffn, **mesh)
        compute = dataclasses.replace(run.compute, remat=remat, micro_batch=micro_batch, loss_chunks=2)
        run = dataclasses.replace(run, compute=compute)
        parts = assemble(run, jax.devices()[:1] if mesh == {"dp": 1} else None)
        state, batch = parts.initial_state(), batch_of(parts)
        digest = parts.digest(state.items())
        losses, first = [], None
        for _ in range(3):
            state, metrics = parts.step(state, batch, np.float32(1e-2))
            losses.append(np.asarray(metrics.loss_B, np.float64).tolist())
            if first is None:
                first = {
                    k: np.asarray(v, np.float64).ravel().tolist()
                    for k, v in parts.declared.named(state.opt["mu"]).items()
                }
                norm = float(metrics.grad_norm)
        results.append({"mesh": mesh, "losses": losses, "gradient": first, "norm": norm, "digest": digest})
        if metrics.routing is not None:
            results[-1]["loads"] = np.asarray(metrics.routing.loads_LE).tolist()
    return results
