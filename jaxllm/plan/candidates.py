"""Other placements of a run: what a search tries, and the ways out of too little memory. Arithmetic, no compilation. No
jax.

A placement is what the command line would be told: `field=value` texts.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from jaxllm.core.config import encode, override
from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Moe
from jaxllm.parallel.config import Across, AllToAll, Mesh, Ring
from jaxllm.plan.estimate import Estimate, batch_parts, estimate, pipeline_of, sizes_of
from jaxllm.plan.measure import main_batch
from jaxllm.plan.target import Target
from jaxllm.run import RunConfig

Remat = Literal["none", "dots", "dots_no_batch", "qkv_attention", "full"]
REMATS: tuple[Remat, ...] = ("none", "dots", "dots_no_batch", "qkv_attention", "full")
_ROOM = 1.15  # the estimate is rough: what it finds this much too large may fit all the same
_AMPLE, _CLOSE = 0.85, 0.1
_TP, _CP, _EP = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16), (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Candidate:
    """`changes` to the config as texts, the run with them, the hardware, and what arithmetic says of it."""

    changes: tuple[str, ...]
    run: RunConfig
    target: Target
    estimated: Estimate

    @property
    def chip_seconds(self) -> float:
        """Estimated, of a step."""
        return self.estimated.seconds * self.target.devices


def candidate(run: RunConfig, target: Target, *changes: str) -> Candidate | None:
    """None where a config or a layout refuses."""
    try:
        changed = override(run, changes)
    except ConfigError:
        return None
    if not divides(changed, target):
        return None
    return Candidate(changes, changed, target, estimate(changed, target))


def divides(run: RunConfig, target: Target) -> bool:
    """Whether a config of no open axis divides over the target: devices, batch, model."""
    sizes, model = sizes_of(run), run.model
    batch = main_batch(run)
    micro = run.compute.micro_batch or batch
    heads, tp, cp = [model.attention.heads, model.attention.kv_heads], sizes["tp"], sizes["cp"]
    widths = [*heads, model.vocab_size]
    widths.append(model.ffn.expert.width if isinstance(model.ffn, Moe) else model.ffn.width)
    experts = model.ffn.experts if isinstance(model.ffn, Moe) else 1
    whole = [(batch, micro), (micro, batch_parts(run)), (model.layers, pipeline_of(run).pieces)]
    whole += [(experts, sizes["ep"]), (model.width, sizes["fsdp"] * sizes["ep"] * cp), *((n, tp) for n in widths)]
    match run.compute.context_parallel:
        case Ring():
            whole.append((run.data.seq_len, 2 * cp))
        case AllToAll():
            whole += [(run.data.seq_len, cp), *((n, cp * tp) for n in heads)]
        case _:
            assert_never(run.compute.context_parallel)
    if run.mesh.sequence_parallel:
        whole.append((run.data.seq_len, tp * sizes["cp"]))
    return math.prod(sizes.values()) == target.devices and all(n % parts == 0 for n, parts in whole)


def placements(run: RunConfig, target: Target) -> Iterator[Candidate]:
    """Every mesh of fsdp, ep, cp and tp, remat policy and micro-batch that may fit. Slices split the batch (dp); stages
    of a pipeline are not tried."""
    batch = main_batch(run)
    moe, slices = isinstance(run.model.ffn, Moe), target.slices if target.chip.platform == "tpu" else 1
    for tp, cp, ep in itertools.product(_TP, _CP, _EP if moe else (1,)):
        inner = tp * cp * ep
        if target.devices % (inner * slices):
            continue
        # What is sent least, the gradients, leaves the slice.
        mesh = Mesh(
            dp=1,
            fsdp=target.devices // (inner * slices),
            ep=ep,
            cp=cp,
            tp=tp,
            across=Across(dp=slices),
            sequence_parallel=tp > 1,
        )
        split = slices * mesh.fsdp * ep
        if batch % split == 0:
            yield from _computed(run, mesh, target, batch, split)


def _computed(written: RunConfig, mesh: Mesh, target: Target, batch: int, split: int) -> Iterator[Candidate]:
    """Every remat policy and micro-batch of a mesh that splits the batch into `split`."""
    run = replace(written, mesh=mesh)
    for rows in range(1, batch // split + 1):
        micro = rows * split
        if batch % micro:
            continue
        for remat in REMATS:
            compute = replace(run.compute, remat=remat, micro_batch=None if micro == batch else micro)
            changed = replace(run, compute=compute)
            if not divides(changed, target):
                return
            found = estimate(changed, target)
            if found.bytes <= _ROOM * target.usable_bytes:
                yield Candidate(_placement(written, changed), changed, target, found)


def _placement(run: RunConfig, changed: RunConfig) -> tuple[str, ...]:
    """What of the mesh, remat policy and micro-batch of `changed` is not as in `run`, as texts."""
    before, after = encode(run.mesh), encode(changed.mesh)
    mesh = [f"mesh.{name}={json.dumps(after[name])}" for name in after if after[name] != before[name]]
    compute = []
    if changed.compute.remat != run.compute.remat:
        compute.append(f"compute.remat={changed.compute.remat}")
    if changed.compute.micro_batch != run.compute.micro_batch:
        compute.append(f"compute.micro_batch={json.dumps(changed.compute.micro_batch)}")
    return *mesh, *compute


class Chooser:
    """What a search compiles next: the fastest by estimate, one of each mesh and remat policy. What turned out too
    large corrects the estimates of its remat policy; one that is estimated to fit barely counts as slower."""

    def __init__(self, found: Iterable[Candidate]) -> None:
        self._waiting = sorted(found, key=self._cost)
        self._scale: dict[object, float] = {}

    @staticmethod
    def _cost(one: Candidate) -> float:
        tight = one.estimated.bytes > _AMPLE * one.target.usable_bytes
        return one.estimated.seconds * (1 + _CLOSE * tight)

    def next(self) -> Candidate | None:
        """The next to compile, if there is one; say afterwards what came of it."""
        for one in self._waiting:
            scale = self._scale.get(one.run.compute.remat, 1 / _ROOM)
            if one.estimated.bytes * scale <= one.target.usable_bytes:
                self._waiting.remove(one)
                return one
        return None

    def settled(self, one: Candidate) -> None:
        """It fits, and others of its mesh and policy are slower; or it cannot be, and no more can they."""
        same = (one.run.mesh, one.run.compute.remat)
        self._waiting = [w for w in self._waiting if (w.run.mesh, w.run.compute.remat) != same]

    def too_large(self, one: Candidate, needed: float) -> None:
        """It does not: it needs so many bytes, 0 where the compiler did not say."""
        remat = one.run.compute.remat
        over = max(needed, 1.01 * one.target.usable_bytes) / one.estimated.bytes
        self._scale[remat] = max(self._scale.get(remat, 0.0), over)


def ways_out(run: RunConfig, target: Target, needed: float) -> list[Candidate]:
    """Changes that should make a run fit, the cheapest first: in chip-seconds of a step. `needed`: what the compiler
    said it takes; the estimate is held against it."""
    sizes, batch = sizes_of(run), main_batch(run)
    micro = run.compute.micro_batch or batch
    here = run.compute.remat
    stronger = REMATS[REMATS.index(here) + 1 :] if here in REMATS else REMATS[-1:]  # tensors may be named one by one
    smaller = [m for m in range(micro - 1, 0, -1) if micro % m == 0 and m % batch_parts(run) == 0]
    remats = [(f"compute.remat={r}",) for r in stronger]
    micros = [(f"compute.micro_batch={m}",) for m in smaller]
    moves: list[tuple[str, ...]] = [*remats, *micros, *((*r, *m) for r in remats[-1:] for m in micros)]
    if sizes["tp"] > 1 and not run.mesh.sequence_parallel:
        moves.append(("mesh.sequence_parallel=true",))
    for factor in (2, 4, 8):
        if sizes["fsdp"] % factor == 0:
            tp = (f"mesh.fsdp={sizes['fsdp'] // factor}", f"mesh.tp={sizes['tp'] * factor}")
            moves.append((*tp, "mesh.sequence_parallel=true"))
            moves += [(*tp, "mesh.sequence_parallel=true", *r) for r in remats[-1:]]
        if sizes["dp"] % factor == 0:
            moves.append((f"mesh.dp={sizes['dp'] // factor}", f"mesh.fsdp={sizes['fsdp'] * factor}"))
    if run.precision.compute == "float32":
        moves.append(("precision.compute=bfloat16",))
    moves.append((f"compute.loss_chunks={run.compute.loss_chunks * 4}",))
    scale = max(needed, target.usable_bytes) / estimate(run, target).bytes
    found = [c for change in moves if (c := candidate(run, target, *change)) is not None]
    larger = target.doubled
    for axis in ("fsdp", "tp"):
        change = f"mesh.{axis}={sizes[axis] * 2}"
        found += [c for c in [candidate(run, larger, change)] if c is not None]
    # An estimate that was too low for this run is too low for its like.
    return sorted((c for c in found if c.estimated.bytes * scale <= target.usable_bytes), key=lambda c: c.chip_seconds)
