"""Meshes resolve to all devices in a fixed order, or say what would."""

from typing import Any

import jax
import pytest
from jax.sharding import AxisType

from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import AXES, Across, Mesh
from jaxllm.parallel.mesh import make_mesh, resolve, sizes
from tests.simulated import run_simulated


@pytest.mark.parametrize(
    ("asked", "devices", "dp_fsdp_tp"),
    [
        (Mesh(), 1, (1, 1, 1)),
        (Mesh(), 8, (8, 1, 1)),
        (Mesh(dp=1, fsdp=-1), 8, (1, 8, 1)),
        (Mesh(dp=2, fsdp=-1, tp=2), 8, (2, 2, 2)),
        (Mesh(dp=2, fsdp=2, tp=2), 8, (2, 2, 2)),
        (Mesh(dp=-1, fsdp=64, tp=4), 1024, (4, 64, 4)),
    ],
)
def test_resolve(asked: Mesh, devices: int, dp_fsdp_tp: tuple[int, int, int]) -> None:
    got = resolve(asked, devices)
    assert (got.dp, got.fsdp, got.tp) == dp_fsdp_tp
    assert resolve(got, devices) == got


@pytest.mark.parametrize(
    ("asked", "devices", "message"),
    [
        (Mesh(fsdp=3), 8, "mesh dp=-1, fsdp=3: fsdp=3 does not divide 8 devices; use fsdp in 1, 2, 4, 8"),
        (Mesh(dp=2, fsdp=2), 8, "mesh dp=2, fsdp=2 needs 4 devices and there are 8; use dp=4 or -1"),
        (Mesh(dp=1, fsdp=4, tp=3), 8, "mesh fsdp=4, tp=3 needs 12 devices and there are 8; use tp=2 or -1"),
        (Mesh(dp=3, fsdp=3, tp=1), 8, "mesh dp=3, fsdp=3 needs 9 devices and there are 8; use a product of 8"),
        (Mesh(dp=2), 1, "mesh dp=2 needs 2 devices and there are 1; use dp=1 or -1"),
    ],
)
def test_misfits_say_what_would_do(asked: Mesh, devices: int, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        resolve(asked, devices)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "devices", "message"),
    [
        (Mesh(across=Across(dp=3)), 8, "mesh.across asks for 3 slices, which do not divide 8 devices"),
        (Mesh(dp=1, tp=8, across=Across(dp=2)), 8, "mesh tp=8 needs 8 devices and there are 4 in a slice; use tp=4"),
        (Mesh(dp=-1, cp=3, across=Across(fsdp=2)), 8, "cp=3 does not divide 4 devices in a slice; use cp in 1, 2, 4"),
    ],
)
def test_slices_that_do_not_fit_say_what_would(asked: Mesh, devices: int, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        resolve(asked, devices)
    assert message in str(caught.value)


def test_sequence_parallel_survives() -> None:
    assert resolve(Mesh(sequence_parallel=True), 8).sequence_parallel


def mesh_facts() -> dict[str, Any]:
    mesh = make_mesh(Mesh(dp=2, fsdp=2, tp=2))
    slices = make_mesh(Mesh(dp=1, fsdp=2, tp=2, across=Across(fsdp=2)))
    return {
        "across": [[d.id for d in row] for row in slices.devices[0, :, 0, 0, 0]],
        "order": [d.id for d in mesh.devices.flat],
        "shape": list(mesh.devices.shape),
        "sizes": sizes(mesh),
        "auto": all(t == AxisType.Auto for t in mesh.axis_types),
        "some": [d.id for d in make_mesh(Mesh(tp=2), jax.devices()[:4]).devices.flat],
    }


def test_eight_devices_in_their_own_order() -> None:
    facts = run_simulated(mesh_facts)
    assert facts["order"] == list(range(8)) and facts["shape"] == [2, 2, 1, 1, 1, 2] and facts["auto"]
    assert facts["sizes"] == {axis: 2 if axis in ("dp", "fsdp", "tp") else 1 for axis in AXES}
    assert facts["across"] == [[0, 1], [2, 3], [4, 5], [6, 7]]  # through a slice before the next
    assert facts["some"] == [0, 1, 2, 3]
