"""One table: every layout of 8 devices is one device, in loss and in gradients."""

from typing import Any

import numpy as np
import pytest

from tests.parallel.layout_worker import three_steps
from tests.simulated import run_simulated

LAYOUTS: list[dict[str, Any]] = [
    {"dp": 8},
    {"dp": 1, "fsdp": 8},
    {"dp": 2, "tp": 4},
    {"dp": 2, "fsdp": 2, "tp": 2},
    {"dp": 1, "fsdp": 2, "tp": 4, "sequence_parallel": True},
    {"dp": 1, "fsdp": 2, "pp": 2, "tp": 2},
]


def hold(reference: dict[str, Any], other: dict[str, Any]) -> None:
    where = str(other["mesh"])
    assert other["digest"] == reference["digest"], where  # the same initial values, to the bit
    np.testing.assert_allclose(other["losses"], reference["losses"], rtol=2e-6, err_msg=where)
    np.testing.assert_allclose(other["norm"], reference["norm"], rtol=1e-5, err_msg=where)
    for path, expected in reference["gradient"].items():
        scale = np.abs(expected).max() or 1.0  # a balance has no gradient
        np.testing.assert_allclose(
            np.asarray(other["gradient"][path]) / scale,
            np.asarray(expected) / scale,
            atol=5e-6,
            err_msg=f"{where} {path}",
        )


@pytest.mark.slow
def test_every_layout_is_one_device() -> None:
    reference, *others = run_simulated(three_steps, meshes=[{"dp": 1}, *LAYOUTS])
    for other in others:
        hold(reference, other)


@pytest.mark.slow
def test_layouts_agree_with_accumulation_and_remat() -> None:
    meshes: list[dict[str, Any]] = [{"dp": 1}, {"dp": 2, "fsdp": 2, "tp": 2}]
    reference, other = run_simulated(three_steps, meshes=meshes, remat="full", micro_batch=8)
    hold(reference, other)


@pytest.mark.slow
@pytest.mark.parametrize(("ffn", "layout"), [("dropless", LAYOUTS[3]), ("capacity", LAYOUTS[4])])
def test_layouts_agree_with_experts(ffn: str, layout: dict[str, Any]) -> None:
    reference, other = run_simulated(three_steps, meshes=[{"dp": 1}, layout], ffn=ffn)
    hold(reference, other)
    assert other["loads"] == reference["loads"]


def test_another_gradient_would_be_seen() -> None:
    one = {"mesh": {}, "digest": {}, "losses": [[1.0]], "norm": 1.0, "gradient": {"a": [1.0, 0.5]}}
    hold(one, one)
    for change in (
        {"losses": [[1.00001]]},
        {"gradient": {"a": [1.0, 0.50001]}},
        {"norm": 1.0001},
        {"digest": {"a": "0"}},
    ):
        with pytest.raises(AssertionError):
            hold(one, one | change)
