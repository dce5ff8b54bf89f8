"""Layouts of 8 devices are one device, in loss and in gradients. The whole table: python tools/layouts.py."""

import copy
from typing import Any

import pytest

from tests.simulated import run_simulated
from tools.layouts import LAYOUTS, distance, measure_layouts

# The rows of the table that run here: every axis, and what is most unlike the others.
HERE = (
    "dense: dp=2 fsdp=2 tp=2 compute.remat=full compute.micro_batch=8",
    "dense: fsdp=2 tp=4 sequence_parallel=true",
    "dense: fsdp=2 cp=2 tp=2 sequence_parallel=true",
    "dense: fsdp=4 pp=2",
    "dense: across.fsdp=2 fsdp=2 tp=2",
    "dropless: ep=2 fsdp=2 tp=2",
    "dropless: ep=2 fsdp=2 cp=2",
    "capacity: ep=4 tp=2",
)


@pytest.mark.slow
def test_layouts_are_one_device() -> None:
    reports = run_simulated(measure_layouts, timeout=580, names=HERE)
    assert set(HERE) <= set(reports)
    for name in HERE:
        one = reports[name.partition(":")[0]]
        assert distance(one, reports[name]).misses == [], name
        assert bool(one["loads"]) == (not name.startswith("dense"))


def test_names_are_unique() -> None:
    names = [layout.name for layout in LAYOUTS]
    assert len(set(names)) == len(names)


ONE = {"digest": {}, "losses": [[1.0]], "norm": 1.0, "gradient": {"a": [1.0, 0.5]}, "loads": [[[1, 2]]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"losses": [[1.00001]]}, "loss 1.0e-05"),
        ({"losses": [[float("nan")]]}, "loss nan"),
        ({"norm": 1.0001}, "norm 1.0e-04"),
        ({"gradient": {"a": [1.0, 0.50001]}}, "gradient of a 1.0e-05"),
        ({"gradient": {"a": [1.0, float("nan")]}}, "gradient of a nan"),
        ({"digest": {"a": "0"}}, "initial values"),
        ({"loads": [[[2, 1]]]}, "tokens of experts"),
    ],
)
def test_another_number_is_seen(change: dict[str, Any], said: str) -> None:
    assert distance(ONE, copy.deepcopy(ONE)).misses == []
    assert distance(ONE, ONE | change).misses == [said]
