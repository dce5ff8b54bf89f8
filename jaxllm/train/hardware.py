"""What the devices could do at best: the yardstick of MFU."""

import time

import jax
import jax.numpy as jnp

from jaxllm.core.chips import peak_of

_SIDE, _TRIES = 2048, 6


def peak_flops(dtype: str) -> tuple[float, str]:
    """(FLOP/s of all devices together, where the figure is from). Accelerators: data sheet; CPU or unknown: measured.

    Simulated devices share one machine, so a measured peak is never multiplied by their number.
    """
    device = jax.devices()[0]
    if (peak := peak_of(device.device_kind)) is not None:
        return peak * jax.device_count(), f"data sheet of {device.device_kind}, bfloat16"
    return _measured(dtype) * (1 if device.platform == "cpu" else jax.device_count()), f"measured {_SIDE}^3 {dtype}"


def _measured(dtype: str) -> float:
    a = jnp.ones((_SIDE, _SIDE), dtype)
    # Summed in float32, as a step does: a CPU is slow at a product that should come out as bfloat16.
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32)).lower(a, a).compile()
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best
