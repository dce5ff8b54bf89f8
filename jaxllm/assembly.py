"""RunConfig -> mesh, model, optimizer, compiled step: the parts of a run that live on devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.core.errors import LayoutError
from jaxllm.models.declare import Params
from jaxllm.models.decoder import Context, Decoder, describe, init
from jaxllm.ops.attention import choose
from jaxllm.optim import adamw
from jaxllm.parallel.digest import digest_strings, make_digest
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.rules import activation_rules, param_rules
from jaxllm.parallel.shard import Sharder, batch_sharding, param_shardings
from jaxllm.run import RunConfig
from jaxllm.train.state import Metrics, State
from jaxllm.train.step import StepSpec, make_step

Tree = Any


@dataclass(frozen=True)
class Assembly:
    """The parts of one run on this process's view of the mesh. Nothing is allocated until `initial_state`."""

    run: RunConfig
    mesh: jax.sharding.Mesh
    declared: Params[Decoder]
    context: Context

    @cached_property
    def splits(self) -> int:
        """Into how many parts the batch axis is cut."""
        return int(self.mesh.shape["dp"] * self.mesh.shape["fsdp"])

    @cached_property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def batch(self) -> NamedSharding:
        return batch_sharding(self.mesh)

    @cached_property
    def transform(self) -> adamw.Transform:
        return adamw.make(self.run.optimizer, self.declared)

    @cached_property
    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the whole state."""
        shapes = jax.eval_shape(self._init)
        return jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, self._state_shardings
        )

    @cached_property
    def _state_shardings(self) -> State:
        params = param_shardings(self.declared, self.mesh, param_rules())
        opt = self.transform.state_shardings(params, self.replicated)
        return State(params, opt, params if self.run.optimizer.ema is not None else None)

    def _init(self) -> State:
        params = init(self.run.model, self.declared, self.run.seed)
        ema = params if self.run.optimizer.ema is not None else None
        return State(params, self.transform.init(params), ema)

    def initial_state(self) -> State:
        """The state before the first update, the same on every mesh."""
        return jax.jit(self._init, out_shardings=self._state_shardings)()

    @cached_property
    def step(self) -> Callable[..., tuple[State, Metrics]]:
        """The compiled step: (state, batch arrays, lr, with_norms=) -> (state, metrics); donates the state."""
        compute = self.run.compute
        self._check_batches()
        spec = StepSpec(
            declared=self.declared,
            transform=self.transform,
            context=self.context,
            loss=self.run.loss,
            loss_chunks=compute.loss_chunks,
            micro_batch=compute.micro_batch,
            branch_on_refusal=self.mesh.devices.flat[0].platform == "cpu",
        )
        return jax.jit(
            make_step(spec),
            static_argnames="with_norms",
            donate_argnums=0,
            out_shardings=(self._state_shardings, self.replicated),
            compiler_options=None if compute.excess_precision else {"xla_allow_excess_precision": False},
        )

    def _check_batches(self) -> None:
        micro = self.run.compute.micro_batch
        sizes = {f"data.stages.{i}.batch_size": s.batch_size for i, s in enumerate(self.run.data.stages)}
        for name, size in sizes.items() if micro is None else [("compute.micro_batch", micro)]:
            if size % self.splits:
                raise LayoutError(
                    f"{name}={size} does not divide over dp x fsdp = {self.splits} devices; use a multiple of {self.splits}"
                )

    def place(self, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Process-local rows -> global arrays of the batch."""
        return {k: jax.make_array_from_process_local_data(self.batch, v) for k, v in arrays.items()}

    @cached_property
    def local_rows(self) -> Callable[[int], slice]:
        """Global batch size -> the rows that this process reads."""
        count, index = jax.process_count(), jax.process_index()

        def rows(batch_size: int) -> slice:
            return slice(batch_size * index // count, batch_size * (index + 1) // count)

        return rows

    def digest(self, items: dict[str, Tree]) -> dict[str, str]:
        """Sharding-independent digest of every array, by dotted path."""
        return digest_strings(items, self._digest(items))

    @cached_property
    def _digests(self) -> dict[Any, Callable[[Tree], jax.Array]]:
        return {}

    def _digest(self, items: dict[str, Tree]) -> jax.Array:
        key = tuple(sorted(items))
        if key not in self._digests:
            shardings = jax.tree.map(lambda x: x.sharding, items)
            self._digests[key] = make_digest(items, shardings, self.mesh)
        return self._digests[key](items)


def assemble(run: RunConfig) -> Assembly:
    """The parts of `run` on the devices that are there."""
    mesh = make_mesh(run.mesh)
    declared = describe(run.model)
    platform = mesh.devices.flat[0].platform
    context = Context(
        compute=run.precision.compute,
        attention=choose(run.compute.attention, platform, run.data.seq_len),
        remat=run.compute.remat,
        shard=Sharder(mesh, activation_rules(run.mesh.sequence_parallel)),
    )
    return Assembly(run, mesh, declared, context)
