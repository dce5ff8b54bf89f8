"""Simulated devices get their threads; nobody else's environment is touched."""

import pytest

from jaxllm.core.environment import settle_threads


@pytest.mark.parametrize(
    "simulated", [{"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, {"JAX_NUM_CPU_DEVICES": "4"}]
)
def test_simulated_devices_get_threads(simulated: dict[str, str]) -> None:
    env = dict(simulated)
    assert settle_threads(env) is not None and env["NPROC"] == "32"


@pytest.mark.parametrize("env", [{}, {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}])
def test_others_are_left_alone(env: dict[str, str]) -> None:
    before = dict(env)
    assert settle_threads(env) is None and env == before


def test_what_the_user_set_stands() -> None:
    env = {"JAX_NUM_CPU_DEVICES": "4", "NPROC": "2"}
    assert settle_threads(env) is None and env["NPROC"] == "2"
