"""The supervisor's judgement, without processes. What it does with real ones is in tests/test_several_processes.py."""

import itertools
import signal
import subprocess
import time

import pytest

from jaxllm.core.errors import JaxllmError
from launch.processes import Death, Fleet, devices_of, parse, visible_gpus

GPUS = ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("code", "words", "again"),
    [
        (-signal.SIGKILL, "was killed by SIGKILL", True),
        (128 + signal.SIGTERM, "was killed by SIGTERM", True),
        (75, "left with 75", True),
        (0, "left with 0", False),
        (1, "left with 1", False),
        (2, "left with 2", False),
        (3, "left with 3", False),
    ],
)
def test_how_a_process_ended_decides_whether_it_starts_again(code: int, words: str, again: bool) -> None:
    death = Death(1, code)
    assert (death.words, death.again) == (words, again)


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ((-signal.SIGABRT, -signal.SIGKILL, 75), 1),  # an abort and 75 are what the others do when one is killed
        ((75, -signal.SIGABRT), 1),
        ((-signal.SIGABRT, 2), 1),  # process 1 was wrong, its peers lost it
        ((75, 75, 3), 2),
        ((1, -signal.SIGKILL), 1),  # an error of an unknown kind, about a peer that is gone
        ((-signal.SIGABRT, 1), 1),
    ],
)
def test_of_deaths_at_one_time_the_cause_is_named(codes: tuple[int, ...], cause: int) -> None:
    deaths = [Death(i, code) for i, code in enumerate(codes)]
    assert min(deaths, key=lambda d: d.telling).process == cause


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_dump_to=x")
    assert devices_of(1, 2, None, GPUS) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert devices_of(0, 2, None, []) == {}
    assert devices_of(0, 2, 3, [])["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=3"
    with pytest.raises(JaxllmError, match="4 GPUs do not divide over 3 processes"):
        devices_of(0, 3, None, GPUS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "x"],
        ["-n", "0", "train", "x"],
        ["-n", "2", "show", "x"],
        ["-n", "2"],
        ["-n", "2", "train", "--stop-at", "5"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(arguments)
    assert left.value.code == 2


def test_nobody_waits_for_those_that_leave_once_asked_twice() -> None:
    fleet = object.__new__(Fleet)
    fleet.processes = [subprocess.Popen(["sleep", "30"], start_new_session=True)]
    asked = itertools.count()
    began = time.monotonic()
    assert not fleet.wait(20.0, lambda: next(asked) > 0)  # the second time it is asked
    fleet.end(5.0)
    assert time.monotonic() - began < 10 and [d.signal for d in fleet.dead()] == [signal.SIGTERM]


def test_gpus_that_the_user_hides_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    for given, seen in (("", []), ("1,3", ["1", "3"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_gpus() == seen
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert visible_gpus() == []
