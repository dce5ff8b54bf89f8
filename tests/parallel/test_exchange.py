"""Rows that travel to other devices' experts: the results of one device, whoever is chosen."""

from typing import Any

import pytest

from jaxllm.core.errors import LayoutError
from jaxllm.parallel.exchange import chosen
from tests.parallel import exchange_worker
from tests.simulated import run_simulated

MESHES = [{"dp": 1, "ep": 4, "tp": 2}, {"dp": 1, "ep": 8}, {"dp": 1, "fsdp": 2, "ep": 2, "cp": 2}]


@pytest.fixture(scope="module")
def said() -> Any:
    return run_simulated(exchange_worker.everything, timeout=580, meshes=MESHES)


@pytest.mark.slow
def test_every_layout_is_one_device_even_if_all_tokens_choose_the_same_experts(said: Any) -> None:
    for mesh, gaps in zip(MESHES, said["meshes"], strict=True):
        assert max(gaps) < 2e-6, (mesh, gaps)


@pytest.mark.slow
def test_other_ways_of_travelling_and_rubbish_beyond_the_rows_change_no_bit(said: Any) -> None:
    assert said["ways"] == {"ragged": 0.0, "poisoned": 0.0}


@pytest.mark.slow
def test_lost_and_misplaced_rows_would_be_seen(said: Any) -> None:
    assert set(said["mutations"]) == set(exchange_worker.MUTATIONS)
    assert min(said["mutations"].values()) > 0.1, said["mutations"]


def test_rows_travel_ragged_where_the_platform_can_unless_told_otherwise() -> None:
    devices = {"TPU v5p": "tpu", "TPU v5 lite": "tpu", "NVIDIA H100 80GB HBM3": "gpu", "cpu": "cpu"}
    assert [kind for kind, platform in devices.items() if chosen("auto", platform, kind)] == ["TPU v5p"]
    assert chosen("ragged", "gpu", "NVIDIA H200") and not chosen("padded", "tpu", "TPU v5p")
    with pytest.raises(LayoutError, match="use padded, or auto"):
        chosen("ragged", "cpu", "cpu")
