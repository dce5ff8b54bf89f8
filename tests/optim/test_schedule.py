"""Schedules against published figures and a plain numpy spelling; purity; frozen bits."""

import itertools
import math

import numpy as np
import pytest

from jaxllm.core.config import decode, encode
from jaxllm.core.errors import ConfigError
from jaxllm.optim.config import Piece, Schedule, warmup_cosine, warmup_linear, warmup_stable_decay
from jaxllm.optim.schedule import learning_rate

AMBER = warmup_cosine(peak=3e-4, end=3e-5, warmup_steps=2_000, total_steps=274_320)
CRYSTAL_1 = warmup_linear(peak=0.012, end=0.00012408, warmup_steps=86, decay_steps=294_337, stop_after=79_721)
CRYSTAL_2 = warmup_linear(peak=0.0087825, end=0.00013679, warmup_steps=86, decay_steps=214_301)
CRYSTAL_3 = warmup_linear(peak=0.002, end=0.0002, warmup_steps=276, decay_steps=27_452)
WSD = warmup_stable_decay(peak=1e-3, end=0.0, warmup_steps=10, decay_steps=20, total_steps=100)
INVERSE = (Piece(steps=400, start=0.0, end=1e-3), Piece(steps=9_600, start=1e-3, end=2e-4, shape="inverse_sqrt"))


def f32(x: float) -> float:
    return float(np.float32(x))


def plain(schedule: Schedule, step: int) -> float:
    """The same in numpy's float64, with numpy's cosine and sqrt."""
    start = 0
    for i, piece in enumerate(schedule):
        if step < start + piece.steps or i == len(schedule) - 1:
            p = min((step - start) / (piece.horizon or piece.steps), 1.0)
            if piece.shape == "cosine":
                return piece.end + (piece.start - piece.end) * (1 + np.cos(np.pi * p)) / 2
            if piece.shape == "inverse_sqrt":
                ratio = (piece.start / piece.end) ** 2 - 1  # lr^-2 grows linearly from start^-2 to end^-2
                return piece.start / np.sqrt(1 + ratio * p)
            return piece.start + (piece.end - piece.start) * p
        start += piece.steps
    raise AssertionError


def test_published_figures() -> None:
    assert round(learning_rate(CRYSTAL_1, 79_721), 7) == 0.0087869  # where phase 1 was stopped
    assert learning_rate(CRYSTAL_1, 86) == f32(0.012)
    assert learning_rate(CRYSTAL_2, 86) == f32(0.0087825)
    assert learning_rate(CRYSTAL_2, 86 + 214_301) == f32(0.00013679)
    assert learning_rate(CRYSTAL_3, 27_728) == f32(0.0002)
    # Phase 2 continues the line of phase 1: both fall by 4.03e-8 per update.
    slopes = [(learning_rate(s, 1_086) - learning_rate(s, 50_086)) / 49_000 for s in (CRYSTAL_1, CRYSTAL_2)]
    assert slopes == pytest.approx([4.035e-8, 4.034e-8], rel=2e-4)
    assert learning_rate(AMBER, 0) == 0.0
    assert learning_rate(AMBER, 1_000) == f32(1.5e-4)
    assert learning_rate(AMBER, 2_000) == f32(3e-4)
    assert learning_rate(AMBER, (2_000 + 274_320) // 2) == pytest.approx(1.65e-4, rel=1e-6)
    assert learning_rate(AMBER, 274_320) == f32(3e-5) == learning_rate(AMBER, 10**9)


def test_warmup_stable_decay() -> None:
    rates = [learning_rate(WSD, k) for k in range(102)]
    assert rates[0] == 0.0 and rates[5] == f32(5e-4)
    assert set(rates[10:81]) == {f32(1e-3)}
    assert all(a > b for a, b in itertools.pairwise(rates[80:101]))
    assert rates[100] == rates[101] == 0.0


def test_inverse_sqrt_is_continuous_and_the_familiar_one() -> None:
    before, at, after = (learning_rate(INVERSE, k) for k in (399, 400, 401))
    assert at == f32(1e-3) and before == pytest.approx(at, rel=3e-3) and after == pytest.approx(at, rel=3e-3)
    # 400 warm-up updates to 1e-3, then 1e-3 * sqrt(400 / step): reaches 2e-4 at step 10,000, as declared.
    for step in (400, 401, 1_000, 5_000, 9_999, 10_000):
        assert learning_rate(INVERSE, step) == pytest.approx(1e-3 * math.sqrt(400 / step), rel=1e-6)


@pytest.mark.parametrize("schedule", [AMBER, CRYSTAL_1, CRYSTAL_2, WSD, INVERSE])
def test_equals_plain_numpy_to_one_rounding(schedule: Schedule) -> None:
    total = sum(p.steps for p in schedule)
    for step in [*range(120), *range(0, total + 100, max(1, total // 997))]:
        rate, expected = learning_rate(schedule, step), f32(plain(schedule, step))
        assert rate == f32(rate)  # exactly a float32
        assert abs(rate - expected) <= np.spacing(np.float32(expected)), step


def test_frozen_bits() -> None:
    """Recorded rates rest on these bits: no platform and no refactor moves them."""
    steps = (0, 1, 1_999, 2_000, 2_001, 77_777, 138_160, 200_001, 274_319, 274_320)
    assert [np.float32(learning_rate(AMBER, k)).view(np.uint32).item() for k in steps] == [
        0x0,
        0x34210FB0,
        0x399D3530,
        0x399D4952,
        0x399D4952,
        0x3983EB9B,
        0x392D03DA,
        0x38A0C088,
        0x37FBA882,
        0x37FBA882,
    ]


def test_resume_bends_nothing() -> None:
    """A rate depends on its step only: not on what was asked before, nor on a save and restore of the schedule."""
    straight = [learning_rate(AMBER, k) for k in range(1_900, 2_100)]
    again = decode(tuple[Piece, ...], encode(AMBER))
    resumed = [learning_rate(AMBER, k) for k in range(1_900, 1_950)] + [
        learning_rate(again, k) for k in range(1_950, 2_100)
    ]
    assert resumed == straight
    assert [learning_rate(AMBER, k) for k in reversed(range(1_900, 2_100))] == straight[::-1]
    shifted = [learning_rate(AMBER, k + 1) for k in range(1_900, 2_100)]
    assert shifted != straight


def test_rewarm_is_pieces() -> None:
    rewarm = (*CRYSTAL_1, *CRYSTAL_2)
    assert learning_rate(rewarm, 79_720) == learning_rate(CRYSTAL_1, 79_720)
    for k in (0, 43, 86, 1_000, 214_387):
        assert learning_rate(rewarm, 79_721 + k) == learning_rate(CRYSTAL_2, k)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="count from 0"):
        learning_rate(AMBER, -1)
    with pytest.raises(ConfigError, match="inverse_sqrt"):
        decode(Piece, {"steps": 3, "start": 1e-3, "end": 0.0, "shape": "inverse_sqrt"})
