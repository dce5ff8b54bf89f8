"""Decoders whose experts lie on several devices are one device, for every kind of gate and of dispatch.

Experts are chosen by a margin far above rounding, so that every token goes where it goes on one device.
"""

import numpy as np
import pytest

from tests.parallel import expert_worker
from tests.simulated import run_simulated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moe", "meshes"),
    [
        ("softmax", ["mesh.ep=8", "mesh.ep=2 mesh.fsdp=2 mesh.tp=2"]),
        ("sigmoid", ["mesh.ep=4 mesh.dp=2"]),
        ("capacity", ["mesh.ep=4 mesh.tp=2 mesh.sequence_parallel=true"]),
    ],
)
def test_three_steps_and_gradients_are_those_of_one_device(moe: str, meshes: list[str]) -> None:
    one, *others = run_simulated(expert_worker.three_steps, moe=moe, meshes=meshes)
    assert min(one["margins"]) > 1e-2
    assert np.ptp(one["loads"][0]) > 0
    for other in others:
        where = other["mesh"]
        assert other["loads"] == one["loads"], where
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=2e-6, err_msg=where)
        for path, expected in one["gradient"].items():
            scale = np.abs(expected).max() or 1.0  # a balance has no gradient
            mine = np.asarray(other["gradient"][path])
            np.testing.assert_allclose(mine / scale, np.asarray(expected) / scale, atol=5e-6, err_msg=f"{where} {path}")


@pytest.mark.slow
def test_the_way_is_said_and_experts_that_do_not_divide_are_refused_by_name() -> None:
    meshes = {"softmax": "mesh.ep=4 mesh.dp=2", "capacity": "mesh.ep=8", "sigmoid": "mesh.dp=8"}
    assert run_simulated(expert_worker.said, meshes=meshes) == {
        "softmax": "padded all-to-all",
        "capacity": "all-to-all",
        "sigmoid": None,
        "six": "blocks.mlp.down: axis 'experts' of size 6 is not divisible by ep=4; use ep in 1, 2",
    }
