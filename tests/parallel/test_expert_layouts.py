"""How tokens reach experts is said, and what cannot be is refused. Their numbers: test_layouts.py."""

from tests.parallel.expert_worker import ways
from tests.simulated import run_simulated


def test_the_way_to_experts_is_said_and_what_cannot_be_is_refused_by_name() -> None:
    assert run_simulated(ways) == {
        "mesh.dp=8": None,
        "mesh.ep=8": "padded all-to-all",
        "mesh.ep=8 model.ffn.dispatch.kind=Capacity model.ffn.dispatch.factor=1.0": "all-to-all",
        "model.ffn.experts=6": "blocks.mlp.down: axis 'experts' of size 6 is not divisible by ep=4; use ep in 1, 2",
        "compute.expert_exchange=ragged": "compute.expert_exchange=ragged does not run on CPU; use padded, or auto",
    }
