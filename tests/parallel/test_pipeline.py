"""Layers in stages are the same as one layer after the other."""

from typing import Any

import pytest

from tests.parallel.pipeline_worker import B, differences, temporaries
from tests.simulated import run_simulated

CASES: list[dict[str, Any]] = [
    {"mesh": {"dp": 4, "pp": 2}},
    {"mesh": {"dp": 1, "pp": 8}, "pipeline": {"micro_batches": 16}},
    {"mesh": {"dp": 1, "fsdp": 2, "pp": 2, "tp": 2}, "pipeline": {"rounds": 2}, "remat": "full"},
    # Pieces of two layers and a pattern of three: stages disagree about the branch.
    {"mesh": {"dp": 1, "ep": 2, "pp": 4}, "pipeline": {"rounds": 3, "micro_batches": 8}, "remat": "dots", "period": 3},
    {"mesh": {"dp": 1, "pp": 2, "cp": 2, "tp": 2}, "pipeline": {"micro_batches": 4}, "remat": "dots_no_batch"},
]
WRONG: list[dict[str, Any]] = [
    {"mesh": {"dp": 4, "pp": 2}, "schedule": "short"},
    {"mesh": {"dp": 4, "pp": 2}, "pipeline": {"rounds": 2}, "remat": "full", "schedule": "unmoved"},
]


@pytest.mark.slow
def test_stages_are_one_layer_after_the_other() -> None:
    found = run_simulated(differences, cases=[*CASES, *WRONG])
    for case, seen in zip(CASES, found, strict=False):
        assert seen["error"] < 2e-6, case
        assert seen["finite"] and seen["permutes"], case
    # Neither layers nor sequences are ever whole on a device: numbers per sequence are the most that is.
    assert found[0]["gathered"] <= B
    for case, seen in zip(WRONG, found[len(CASES) :], strict=True):
        assert seen["error"] > 1e-2, case


@pytest.mark.slow
def test_parameters_are_kept_once_and_not_for_every_tick() -> None:
    mine = 8 * 256 * 256 * 4 // 2
    for rounds, remat in ((1, "none"), (2, "full")):
        few, many = run_simulated(temporaries, devices=2, micro_batches=[4, 32], rounds=rounds, remat=remat)
        assert many - few < mine, (rounds, remat)
