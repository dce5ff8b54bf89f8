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


@pytest.mark.parametrize(("given", "kept"), [("2", "32"), ("64", "64")])
def test_too_few_threads_are_raised_and_more_stand(given: str, kept: str) -> None:
    env = {"JAX_NUM_CPU_DEVICES": "4", "NPROC": given}
    settle_threads(env)
    assert env["NPROC"] == kept
