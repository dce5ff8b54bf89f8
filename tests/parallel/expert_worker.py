"""What test_expert_layouts runs on 8 simulated devices."""

import dataclasses

from configs.debug import debug
from jaxllm.assembly import assemble
from jaxllm.core.config import override
from jaxllm.core.errors import LayoutError
from jaxllm.models.config import Gelu, Moe
from jaxllm.run import RunConfig


def run_of(change: str) -> RunConfig:
    experts = Moe(experts=8, top_k=3, expert=Gelu(width=24, bias=False), gate="sigmoid")
    run = debug()
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, ffn=experts))
    return override(override(run, ["mesh.dp=1"]), change.split())


def ways() -> dict[str, str | None]:
    """How tokens reach experts on some meshes, and what is said of what cannot be."""
    found: dict[str, str | None] = {}
    for mesh in ("mesh.dp=8", "mesh.ep=8", "mesh.ep=8 model.ffn.dispatch.kind=Capacity model.ffn.dispatch.factor=1.0"):
        found[mesh] = assemble(run_of(mesh)).exchange
    for change in ("model.ffn.experts=6", "compute.expert_exchange=ragged"):
        try:
            found[change] = str(assemble(run_of(f"mesh.ep=4 mesh.dp=2 {change}")).initial_state())
        except LayoutError as err:
            found[change] = str(err)
    return found
