"""Every layout of eight devices is one device: three steps on each, the same losses and the same gradients.

    python tools/layouts.py [--only WORDS]

Of each layout: the initial values to the bit, the loss of every sequence of three steps, the first gradient and its
norm, and how many tokens each expert took, held against one device. Experts are chosen by a wide margin, which is
checked too: a choice at the edge may fall either way with the rounding of a layout. Eight devices are simulated on the
CPU. Prints a table; exit code 1 on a miss.
"""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jaxllm.assembly import Assembly, assemble
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.core.config import override
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.models import moe as layer
from jaxllm.models.config import Attention, Capacity, Model, Moe, NormalInit, SwiGlu
from jaxllm.ops.moe import Choice, choose
from jaxllm.optim.config import AdamW, warmup_cosine
from jaxllm.run import RunConfig
from jaxllm.train.state import State

DEVICES, STEPS = 8, 3
ROWS, LENGTH, VOCABULARY, EXPERTS = 16, 32, 128, 8

# How far a layout may lie from one device: relative for losses and norms, of the largest entry of an array for its
# gradient. Float32 sums in another order.
LOSS, NORM, GRADIENT = 2e-6, 1e-5, 5e-6
# By how much the score of a token's last expert beats that of the first one that was not chosen, at least: scores of
# different layouts are some 1e-7 apart.
MARGIN = 1e-5

Kind = Literal["dense", "dropless", "sigmoid", "capacity"]
Report = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """A mesh, and what else places the step: fields of a RunConfig and their values, `mesh.fsdp=4 compute.remat=full`.

    kind: the feed-forward part. Axes that are not named are 1.
    """

    said: str
    kind: Kind = "dense"

    @property
    def name(self) -> str:
        """For people, and for --only."""
        return f"{self.kind}: {self.said.replace('mesh.', '')}"


LAYOUTS = (
    # each axis alone
    Layout("mesh.dp=8"),
    Layout("mesh.fsdp=8"),
    Layout("mesh.pp=4 mesh.dp=2"),
    Layout("mesh.ep=8"),
    Layout("mesh.cp=8"),
    Layout("mesh.tp=4 mesh.dp=2"),
    # products
    Layout("mesh.dp=2 mesh.fsdp=2 mesh.tp=2"),
    Layout("mesh.fsdp=2 mesh.tp=4 mesh.sequence_parallel=true"),
    Layout("mesh.dp=2 mesh.cp=4"),
    Layout("mesh.dp=2 mesh.cp=4 compute.context_parallel.kind=AllToAll"),
    Layout("mesh.fsdp=2 mesh.cp=4 compute.remat=qkv_attention compute.micro_batch=8"),
    Layout("mesh.dp=2 mesh.cp=2 mesh.tp=2 compute.context_parallel.kind=AllToAll"),
    Layout("mesh.fsdp=2 mesh.cp=2 mesh.tp=2 mesh.sequence_parallel=true"),
    Layout("mesh.fsdp=4 mesh.pp=2"),
    Layout("mesh.fsdp=2 mesh.pp=2 mesh.tp=2 compute.pipeline={'rounds':2,'micro_batches':4} compute.remat=full"),
    Layout("mesh.pp=2 mesh.cp=2 mesh.tp=2"),
    Layout("mesh.dp=2 mesh.fsdp=2 mesh.tp=2 compute.remat=full compute.micro_batch=8"),
    # two slices
    Layout("mesh.across.dp=2 mesh.fsdp=4"),
    Layout("mesh.across.fsdp=2 mesh.fsdp=2 mesh.tp=2"),
    Layout("mesh.across.pp=2 mesh.fsdp=2 mesh.tp=2"),
    # experts
    Layout("mesh.ep=4 mesh.dp=2", "dropless"),
    Layout("mesh.ep=2 mesh.fsdp=4", "dropless"),
    Layout("mesh.ep=4 mesh.tp=2 compute.remat=full compute.micro_batch=8", "dropless"),
    Layout("mesh.ep=8", "sigmoid"),
    Layout("mesh.ep=2 mesh.fsdp=2 mesh.tp=2", "dropless"),
    Layout("mesh.ep=2 mesh.fsdp=2 mesh.cp=2", "dropless"),
    Layout("mesh.ep=2 mesh.pp=2 mesh.fsdp=2", "dropless"),
    Layout("mesh.ep=2 mesh.pp=2 mesh.cp=2", "dropless"),
    Layout("mesh.across.ep=2 mesh.fsdp=4", "dropless"),
    Layout("mesh.ep=4 mesh.tp=2", "capacity"),
    Layout("mesh.ep=2 mesh.fsdp=2 mesh.cp=2", "capacity"),
)


def small_run(layout: Layout | None) -> RunConfig:
    """A run of the layout, of one device for None. Its data is never opened."""
    kind: Kind = "dense" if layout is None else layout.kind
    return override(_one_device(kind), [] if layout is None else layout.said.split())


def _one_device(kind: Kind) -> RunConfig:
    experts = Moe(
        experts=EXPERTS, top_k=2, expert=SwiGlu(width=24), shared=SwiGlu(width=16), balance=0.5, bias_rate=0.01
    )
    ffn: Mapping[Kind, Any] = {
        "dense": SwiGlu(width=80),
        "dropless": experts,
        "sigmoid": dataclasses.replace(experts, gate="sigmoid", top_k=3, normalize=False, scale=0.5, z_loss=1e-3),
        "capacity": dataclasses.replace(experts, dispatch=Capacity(factor=1.0)),
    }
    run = RunConfig(
        name="layouts",
        seed=7,
        model=Model(
            vocab_size=VOCABULARY,
            width=32,
            layers=4,
            attention=Attention(heads=8, kv_heads=4, head_width=8),
            ffn=ffn[kind],
            init=NormalInit(residual="depth_scaled"),
        ),
        data=Data(
            store=StoreAt(path="none"),
            seq_len=LENGTH,
            stages=(Stage(name="only", steps=STEPS, batch_size=ROWS, mixture=(Share(source="none", weight=1.0),)),),
        ),
        optimizer=AdamW(schedule=warmup_cosine(peak=1e-2, end=1e-3, warmup_steps=1, total_steps=STEPS)),
        checkpoints=Checkpoints(every_steps=STEPS),
    )
    return override(run, ["mesh.dp=1", "compute.loss_chunks=2"])


def batch_of(parts: Assembly) -> dict[str, jax.Array]:
    """Documents within rows, and labels of which more and more count."""
    dice = np.random.default_rng(4)
    tokens = dice.integers(0, VOCABULARY, (ROWS, LENGTH + 1), dtype=np.int32)
    segments = np.repeat(np.arange(4, dtype=np.int32), LENGTH // 4)[None].repeat(ROWS, 0)
    positions = np.tile(np.arange(LENGTH // 4, dtype=np.int32), 4)[None].repeat(ROWS, 0)
    mask = dice.random((ROWS, LENGTH)) < np.linspace(0.3, 1.0, ROWS)[:, None]
    arrays = {
        "inputs": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "segments": segments,
        "positions": positions,
        "loss_mask": mask,
    }
    return parts.place(arrays)


def wide(parts: Assembly, state: State) -> State:
    """The initial state, but the first E entries of a token's embedding are E steps of a ladder in an order of its own,
    and what routers go by."""
    steps_VE = np.random.default_rng(1).permuted(np.tile(np.arange(EXPERTS) - 3.5, (VOCABULARY, 1)), axis=1)

    def climbed(params: Any) -> Any:
        table, router = params["embed"]["table"], params["blocks"]["mlp"]["router"]
        params["embed"]["table"] = table.at[:, :EXPERTS].add(steps_VE.astype(np.float32))
        params["blocks"]["mlp"]["router"] = router.at[:, :EXPERTS].add(2 * jnp.eye(EXPERTS))
        return params

    return parts.state_of(jax.jit(climbed)(state.params))


def margins(parts: Assembly, batch: dict[str, jax.Array]) -> Callable[[State], float]:
    """Of a state: by how much the score of the last expert that is chosen beats that of the next, for the closest
    token."""
    gaps: list[float] = []

    def watched(logits_BSE: jax.Array, balance_E: jax.Array | None, *, top_k: int, **how: Any) -> Choice:
        sigmoid = how["gate"] == "sigmoid"
        scores = jax.nn.sigmoid(logits_BSE) if sigmoid else jax.nn.softmax(logits_BSE)
        ordered = jnp.sort(scores if balance_E is None else scores + balance_E)
        jax.debug.callback(gaps.append, (ordered[..., -top_k] - ordered[..., -top_k - 1]).min())
        return choose(logits_BSE, balance_E, top_k=top_k, **how)

    def forward(params: Any) -> jax.Array:
        model = parts.declared.bind(params)
        return model.hidden(batch["inputs"], batch["segments"], batch["positions"], parts.context)[0]

    layer.choose = watched
    try:
        compiled = jax.jit(forward).lower(parts.abstract_state.params).compile()
    finally:
        layer.choose = choose

    def measured(state: State) -> float:
        gaps.clear()
        jax.block_until_ready(compiled(state.params))
        jax.effects_barrier()
        assert len(gaps) == parts.run.model.layers
        return min(map(float, gaps))

    return measured


def measure(run: RunConfig, devices: int) -> Report:
    """Three steps of `run` on so many devices. gradient: the first moment after one step, a tenth of the first clipped
    gradient, by parameter. margin: of one device with experts, by how much a choice was made, at least."""
    parts = assemble(run, jax.devices()[:devices])
    parts.check_batches()
    state, batch = parts.initial_state(), batch_of(parts)
    report: Report = {"digest": parts.digest(state.items()), "losses": [], "loads": []}
    watched = None
    if isinstance(run.model.ffn, Moe):
        state = wide(parts, state)
        watched = margins(parts, batch) if devices == 1 else None
    for step in range(STEPS):
        if watched is not None:
            report["margin"] = min(watched(state), report.get("margin", math.inf))
        state, metrics = parts.step(state, batch, np.float32(1e-2))
        report["losses"].append(np.asarray(metrics.loss_B, np.float64).tolist())
        if metrics.routing is not None:
            report["loads"].append(np.asarray(metrics.routing.loads_LE).tolist())
        if step == 0:
            moments = parts.declared.named(state.opt["mu"])
            report["gradient"] = {k: np.asarray(v, np.float64).ravel().tolist() for k, v in moments.items()}
            report["norm"] = float(metrics.grad_norm)
    return report


def measure_layouts(names: Sequence[str]) -> dict[str, Report]:
    """The layouts of these names, and the one device of each of their kinds as "KIND": JSON, for tests."""
    found: dict[str, Report] = {}
    for layout in LAYOUTS:
        if layout.name not in names:
            continue
        if layout.kind not in found:
            found[layout.kind] = measure(_one_device(layout.kind), 1)
        found[layout.name] = measure(small_run(layout), DEVICES)
    return found


@dataclass
class Distance:
    """How far a layout lies from one device, and what is wrong with that."""

    loss: float = 0.0
    norm: float = 0.0
    gradient: float = 0.0
    misses: list[str] = field(default_factory=list)


def distance(one: Report, other: Report) -> Distance:
    """`other` held against one device."""
    found = Distance()
    losses, expected = np.asarray(other["losses"]), np.asarray(one["losses"])
    found.loss = float(np.max(np.abs(losses - expected) / np.abs(expected)))
    found.norm = abs(other["norm"] - one["norm"]) / one["norm"]
    worst = ""
    for path, values in one["gradient"].items():
        mine, size = np.asarray(other["gradient"][path]), np.abs(values).max() or 1.0  # a balance has no gradient
        apart = float(np.max(np.abs(mine - values)) / size)
        if not apart <= found.gradient:
            found.gradient, worst = apart, path
    if other["digest"] != one["digest"]:
        found.misses.append("initial values")
    if other["loads"] != one["loads"]:
        found.misses.append("tokens of experts")
    found.misses += [
        f"{what} {size:.1e}"
        for what, size, most in (
            ("loss", found.loss, LOSS),
            ("norm", found.norm, NORM),
            (f"gradient of {worst}", found.gradient, GRADIENT),
        )
        if not size <= most
    ]
    return found


def simulated() -> dict[str, str]:
    """The environment of a process that sees eight devices. More devices than threads would wait for each other."""
    flag = f"--xla_force_host_platform_device_count={DEVICES}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag, "NPROC": str(4 * DEVICES)}


def main() -> int:
    """The table of all layouts whose name has the words of --only."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--only", default="", help="layouts whose name has all these words")
    words = ask.parse_args().only.split()
    if any(os.environ.get(k) != v for k, v in simulated().items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | simulated())
    chosen = [layout for layout in LAYOUTS if all(word in layout.name for word in words)]
    table = Table("layout", "loss", "gradient norm", "gradient", "verdict", box=None, pad_edge=False)
    ones: dict[Kind, Report] = {}
    missed = 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("layouts", total=len(chosen))
        for layout in chosen:
            progress.update(task, description=layout.name)
            if layout.kind not in ones:
                ones[layout.kind] = measure(_one_device(layout.kind), 1)
                missed += ones[layout.kind].get("margin", MARGIN) < MARGIN
            found = distance(ones[layout.kind], measure(small_run(layout), DEVICES))
            missed += bool(found.misses)
            verdict = "; ".join(found.misses) or "equal"
            table.add_row(layout.name, f"{found.loss:.1e}", f"{found.norm:.1e}", f"{found.gradient:.1e}", verdict)
            progress.advance(task)
    console = Console(width=160)
    console.print(table)
    for kind, one in ones.items():
        if "margin" in one:
            console.print(f"{kind}: experts chosen by {one['margin']:.1e} or more")
    console.print(f"{len(chosen) - missed} of {len(chosen)} layouts of {DEVICES} devices are one device")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
