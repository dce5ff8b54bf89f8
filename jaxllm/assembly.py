"""RunConfig -> mesh, model, optimizer, compiled step: the parts of a run that live on devices."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxllm.core.chips import BY_KIND, BY_NAME
from jaxllm.core.errors import ConfigError, LayoutError
from jaxllm.models.attention import wanted_of
from jaxllm.models.config import Capacity, Dropless, Moe
from jaxllm.models.context import HOST_MEMORY, Axes, Context
from jaxllm.models.declare import Params, init
from jaxllm.models.decoder import Decoder, describe
from jaxllm.ops.attention import ABILITIES, Choice, attention, choose
from jaxllm.optim import adamw
from jaxllm.optim.groups import roles_of
from jaxllm.parallel.config import Named
from jaxllm.parallel.digest import digest_strings, make_digest
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.rules import ACTIVATION_RULES, activation_rules
from jaxllm.parallel.schedule import Schedule
from jaxllm.parallel.shard import (
    Sharder,
    batch_sharding,
    mirrored_shardings,
    param_shardings,
    process_rows,
    replicated,
)
from jaxllm.run import RunConfig
from jaxllm.sequence import ON_RING, on_ring, over_devices
from jaxllm.stages import schedule_for, stack_for
from jaxllm.train.flip import check_flips
from jaxllm.train.selfcheck import make_gradient_digest
from jaxllm.train.state import State
from jaxllm.train.step import StepSpec, make_step

Tree = Any
# Layers up to which the step of one CPU is unrolled, which is faster. It may move bits, so it must follow from the
# identity and the fingerprint alone.
_UNROLLED = 12


@dataclass(frozen=True)
class Assembly:
    """The parts of one run on the devices there are. Nothing is allocated before `initial_state`."""

    run: RunConfig
    mesh: jax.sharding.Mesh
    declared: Params[Decoder]
    context: Context
    attention: Choice

    @cached_property
    def splits(self) -> int:
        """Into how many parts the batch axis is cut."""
        return math.prod(self.mesh.shape[axis] for axis in ACTIVATION_RULES.batch)

    @property
    def schedule(self) -> Schedule | None:
        """How stages share the work, where there are stages."""
        return schedule_for(self.run, self.mesh)

    @cached_property
    def replicated(self) -> NamedSharding:
        """The whole of an array on every device."""
        return replicated(self.mesh)

    @cached_property
    def transform(self) -> adamw.Transform:
        """The optimizer."""
        return adamw.make(self.run.optimizer, roles_of(self.declared))

    @cached_property
    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the whole state."""
        shapes = jax.eval_shape(self._init)
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, self._shardings
        )

    @cached_property
    def _shardings(self) -> State:
        params = param_shardings(self.declared, self.mesh)
        opt = mirrored_shardings(jax.eval_shape(self.transform.init, self.declared.abstract()), params, self.mesh)
        return State(params, opt, params if self.run.optimizer.ema is not None else None)

    def _init(self) -> State:
        params = init(self.declared, self.run.seed)
        return State(params, self.transform.init(params), self.transform.start_average(params))

    def initial_state(self) -> State:
        """The state before the first update, the same on every mesh."""
        return jax.jit(self._init, out_shardings=self._shardings)()

    def state_of(self, params: Tree, opt: Tree | None = None, ema: Tree | None = None) -> State:
        """A state around given parameters; what is not given begins as it does before the first update."""

        def complete(params: Tree, opt: Tree | None, ema: Tree | None) -> State:
            opt = self.transform.init(params) if opt is None else opt
            return State(params, opt, self.transform.start_average(params) if ema is None else ema)

        return jax.jit(complete, out_shardings=self._shardings)(params, opt, ema)

    @cached_property
    def step(self) -> jax.stages.Wrapped:
        """The compiled step: (state, batch arrays, lr) -> (state, metrics). It donates the state."""
        return jax.jit(
            make_step(self._spec),
            donate_argnums=0,
            out_shardings=(self._shardings, self.replicated),
            compiler_options=self._options,
        )

    @cached_property
    def gradient_digest(self) -> jax.stages.Wrapped:
        """The compiled self-check: (parameters, batch arrays) -> lanes of every gradient and of the losses."""
        return jax.jit(
            make_gradient_digest(self._spec, self._shardings.params, self.mesh),
            out_shardings=self.replicated,
            compiler_options=self._options,
        )

    @property
    def _options(self) -> dict[str, bool | str]:
        options: dict[str, bool | str] = {}
        if not self.run.compute.excess_precision:
            options["xla_allow_excess_precision"] = False
        if self.platform == "cpu":
            # Left to itself, it computes what the backward pass needs long before: a quarter more memory for nothing.
            options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
        return options

    @property
    def _spec(self) -> StepSpec:
        compute = self.run.compute
        return StepSpec(
            declared=self.declared,
            transform=self.transform,
            context=self.context,
            loss=self.run.loss,
            loss_chunks=compute.loss_chunks,
            micro_batch=compute.micro_batch,
            branch_on_refusal=self.platform == "cpu",
        )

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu'."""
        return str(self.mesh.devices.flat[0].platform)

    @property
    def exchange(self) -> str | None:
        """For people: how rows reach the devices that have their experts; None where every device has all there are."""
        exchange = Sharder(self.mesh, expert_exchange=self.run.compute.expert_exchange).exchange("experts")
        match self.run.model.ffn:
            case Moe(dispatch=Dropless()) if exchange is not None:
                return exchange.method
            case Moe(dispatch=Capacity()) if exchange is not None:
                return "all-to-all"
            case _:
                return None

    def check_batches(self) -> None:
        """LayoutError if a batch of the run, of an accumulation slice or of its evaluation does not divide."""
        self.check_step_batches()
        self._check_batch("evaluation.batch_size", self.run.evaluation.batch_size)

    def check_step_batches(self) -> None:
        """As `check_batches`, of training alone."""
        micro = self.run.compute.micro_batch
        sizes = {f"data.stages.{i}.batch_size": s.batch_size for i, s in enumerate(self.run.data.stages)}
        for name, size in (sizes if micro is None else {"compute.micro_batch": micro}).items():
            self._check_batch(name, size)

    def _check_batch(self, name: str, size: int) -> None:
        over, parts = " x ".join(ACTIVATION_RULES.batch), 1 if self.schedule is None else self.schedule.micro_batches
        each = "" if self.schedule is None else f" in {parts} micro-batches of the pipeline"
        if size % (self.splits * parts):
            raise LayoutError(
                f"{name}={size} does not divide over {over} = {self.splits} devices{each}; "
                f"use a multiple of {self.splits * parts}"
            )

    def place(self, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Process-local rows -> global arrays of the batch."""
        sharding = batch_sharding(self.mesh)
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in arrays.items()}

    def rows(self, batch_size: int) -> slice:
        """The rows of a global batch that this process reads."""
        return process_rows(self.mesh, batch_size)

    @cached_property
    def digest(self) -> Callable[[Mapping[str, Tree]], dict[str, str]]:
        """State items -> the digest of every array by dotted path; the same on every mesh."""
        compiled: dict[frozenset[str], Callable[[Tree], jax.Array]] = {}

        def digest(items: Mapping[str, Tree]) -> dict[str, str]:
            items = dict(items)
            key = frozenset(items)
            if key not in compiled:
                compiled[key] = make_digest(items, jax.tree.map(lambda x: x.sharding, items), self.mesh)
            # On all devices: the next program may not begin on one while another is still in here.
            return digest_strings(items, jax.block_until_ready(compiled[key](items)))

        return digest


def start_devices(run: RunConfig) -> Assembly:
    """`assemble`, with compiled programs kept where the run says, so that a restart is fast."""
    if run.io.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(run.io.compilation_cache).absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return assemble(run)


def assemble(run: RunConfig, devices: Sequence[jax.Device] | None = None) -> Assembly:
    """The parts of `run` on `devices`, by default those that are there.

    Choices by platform follow the devices, which need not be of this machine: a program for a described topology is
    compiled from the same parts.
    """
    mesh = make_mesh(run.mesh, devices)
    platform = str(mesh.devices.flat[0].platform)
    sharder = Sharder(mesh, activation_rules(run.mesh), run.compute.expert_exchange)
    choice = ON_RING if on_ring(run, mesh) else chosen_attention(run, platform)
    check_offload(run, mesh.devices.flat[0])
    check_float8(run, mesh.devices.flat[0])
    context = Context(
        dtype=run.precision.compute,
        attention=choice.kernel,
        remat=run.compute.remat,
        float8=run.precision.projections == "float8",
        spelled_products=platform == "cpu",
        unroll=run.model.layers if platform == "cpu" and mesh.size == 1 and run.model.layers <= _UNROLLED else 1,
        shard=sharder,
        per_device=sharder.per_device,
        stack=stack_for(run, sharder),
        self_attention=attention_by_share(sharder) if ABILITIES[choice.kernel].per_device else attention,
    )
    declared = describe(run.model)
    check_flips(run.faults, declared.leaves, mesh.size)
    return Assembly(run, mesh, declared, over_devices(context, run, sharder), choice)


def chosen_attention(run: RunConfig, platform: str) -> Choice:
    """The kernel that a run attends with on a platform, and why not a faster one. ConfigError if it names one that
    cannot."""
    documents = run.data.attention == "document"
    wanted = wanted_of(run.model, seq_len=run.data.seq_len, dtype=run.precision.compute, documents=documents)
    return choose(run.compute.attention, platform, wanted)


_Q: Axes = ("batch", None, "heads", "head")
_KV: Axes = ("batch", None, "kv_heads", "head")
_SEGMENTS: Axes = ("batch", None)


def attention_by_share(sharder: Sharder) -> Callable[..., jax.Array]:
    """`attention`, called by every device for its rows and heads: the compiler cannot split a kernel."""

    def attend(*arrays: jax.Array, **how: Any) -> jax.Array:
        def attention_of_a_share(*shares: jax.Array) -> jax.Array:
            return attention(*shares, **how)

        return sharder.per_device(attention_of_a_share, (_Q, _KV, _KV, _SEGMENTS), _Q)(*arrays)

    return attend


def check_offload(run: RunConfig, device: jax.Device) -> None:
    """ConfigError if tensors are to be moved and the device has nowhere to move them. A described GPU does not tell."""
    remat, memories = run.compute.remat, {memory.kind for memory in device.addressable_memories()}
    if isinstance(remat, Named) and remat.offload and memories and HOST_MEMORY not in memories:
        raise ConfigError(
            f"compute.remat.offload={list(remat.offload)}: {device.device_kind} has no memory {HOST_MEMORY!r}; "
            f"name them in compute.remat.keep, or leave them out to recompute them"
        )


def check_float8(run: RunConfig, device: jax.Device) -> None:
    """ConfigError if a run is to multiply in float8 on a device that is known to be no faster at it. A CPU is not made
    for it either, but stands in for what is."""
    chip = BY_KIND.get(device.device_kind)
    if run.precision.projections == "float8" and chip is not None and not chip.float8:
        able = " or ".join(one.name for one in BY_NAME.values() if one.float8)
        raise ConfigError(
            f"precision.projections=float8: {device.device_kind} has no such products, and would round for nothing; "
            f"use precision.projections=compute, or {able}"
        )
