"""RunConfig -> how its layers follow one another: in turn, or as a pipeline where the mesh has stages."""

import jax

from jaxllm.core.errors import LayoutError
from jaxllm.models.stack import Stack, in_turn
from jaxllm.parallel.pipeline import Staged
from jaxllm.parallel.schedule import Schedule, schedule_of
from jaxllm.parallel.shard import Sharder
from jaxllm.run import RunConfig


def stack_for(run: RunConfig, sharder: Sharder) -> Stack:
    """What `Context.stack` is on the sharder's mesh."""
    schedule = schedule_for(run, sharder.mesh)
    return in_turn if schedule is None else Staged(sharder.mesh, schedule, sharder)


def schedule_for(run: RunConfig, mesh: jax.sharding.Mesh) -> Schedule | None:
    """How the stages of `mesh` share the work; None without stages. LayoutError if they cannot."""
    stages, pipeline = mesh.shape["pp"], run.compute.pipeline
    if stages == 1:
        return None
    if run.model.norm.eps == 0:
        raise LayoutError(
            f"model.norm.eps=0 with pp={stages} gives no gradients: a stage with nothing to do normalizes zeros; use a "
            f"positive eps, or pp=1"
        )
    if pipeline.rounds > 1 and run.compute.remat == "none":
        raise LayoutError(
            f"compute.pipeline.rounds={pipeline.rounds} with compute.remat=none would keep the parameters of every "
            f"tick; use another compute.remat, or rounds=1"
        )
    schedule, layers = schedule_of(pipeline, stages, run.model.layers), run.model.layers
    kinds = [run.model.kind(i) for i in range(layers)]
    size = layers // schedule.pieces
    if mesh.shape["cp"] > 1 and any(kinds[i] != kinds[i % size] for i in range(layers)):
        raise LayoutError(
            f"mesh.cp={mesh.shape['cp']} needs stages that do the same at a time: {layers} layers in {schedule.pieces} "
            f"pieces (pp x compute.pipeline.rounds) do not each begin the pattern of {len(run.model.pattern)} kinds of "
            f"layer anew; use pieces of a multiple of {len(run.model.pattern)} layers, or cp=1"
        )
    return schedule
