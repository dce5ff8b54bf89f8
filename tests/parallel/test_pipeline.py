"""Layers in stages are the same as one layer after the other."""

from typing import Any

import pytest

from tests.parallel.pipeline_worker import B, differences, refusals, temporaries
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


def test_what_cannot_be_is_refused_with_what_could() -> None:
    plain: dict[str, Any] = {"mesh": {"pp": 2}, "pipeline": {}, "windows": 0, "remat": "none", "eps": 1e-5}
    said: list[tuple[dict[str, Any], str]] = [
        ({}, ""),
        ({"pipeline": {"rounds": 2}, "remat": "full"}, ""),
        ({"pipeline": {"rounds": 2}}, "compute.pipeline.rounds=2 with compute.remat=none"),
        ({"mesh": {"pp": 8}, "pipeline": {"rounds": 2}, "remat": "full"}, "8 layers do not divide over pp=8 x"),
        ({"eps": 0.0}, "model.norm.eps=0 with pp=2"),
        ({"mesh": {"tp": 2}, "eps": 0.0}, ""),
        ({"pipeline": {"micro_batches": 4}}, "batch_size=8 does not divide over dp x fsdp x ep = 4 devices in 4 micro"),
        ({"mesh": {"pp": 2, "cp": 2}, "windows": 1}, ""),
        ({"mesh": {"pp": 2, "cp": 2}, "windows": 2}, "pattern of 3 kinds"),
        ({"mesh": {"pp": 2, "tp": 2}, "windows": 2}, ""),
    ]
    found = run_simulated(refusals, cases=[plain | case for case, _ in said])
    for (case, expected), text in zip(said, found, strict=True):
        assert text == "" if expected == "" else expected in text, (case, text)
