"""A decoder whose experts lie on several devices is one device, and says how tokens reach them.

Experts are chosen by a margin far above rounding, so that every token goes where it goes on one device.
"""

from typing import Any

import numpy as np
import pytest

from tests.parallel import expert_worker
from tests.simulated import run_simulated


@pytest.fixture(scope="module")
def said() -> Any:
    return run_simulated(expert_worker.everything, timeout=580)


@pytest.mark.slow
def test_three_steps_and_gradients_are_those_of_one_device(said: Any) -> None:
    one, other = said["steps"]
    assert min(one["margins"]) > 1e-2
    assert other["loads"] == one["loads"] and np.ptp(one["loads"]) > 0
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=2e-6)
    for path, expected in one["gradient"].items():
        scale = np.abs(expected).max()
        assert scale > 0, path
        mine = np.asarray(other["gradient"][path])
        np.testing.assert_allclose(mine / scale, np.asarray(expected) / scale, atol=5e-6, err_msg=path)


@pytest.mark.slow
def test_the_way_to_experts_is_said_and_what_cannot_be_is_refused_by_name(said: Any) -> None:
    assert said["ways"] == {
        "mesh.dp=8": None,
        "mesh.ep=8": "padded all-to-all",
        "mesh.ep=8 model.ffn.dispatch.kind=Capacity model.ffn.dispatch.factor=1.0": "all-to-all",
        "model.ffn.experts=6": "blocks.mlp.down: axis 'experts' of size 6 is not divisible by ep=4; use ep in 1, 2",
        "compute.expert_exchange=ragged": "compute.expert_exchange=ragged does not run on CPU; use padded, or auto",
    }
