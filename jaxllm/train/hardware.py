"""What the devices could do at best: the yardstick of MFU."""

import time

import jax
import jax.numpy as jnp

# Dense bfloat16 peak of one device, FLOP/s, from the vendors' data sheets. A jax device is a TensorCore on v2-v4 only
# where it is not fused (megacore); these are per jax device.
_PEAK_BF16 = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1154e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
_SIDE, _TRIES = 2048, 6


def peak_flops(dtype: str) -> tuple[float, str]:
    """(FLOP/s of all devices together, where the figure is from). Accelerators: data sheet; CPU or unknown: measured.

    Simulated devices share one machine, so a measured peak is never multiplied by their number.
    """
    device = jax.devices()[0]
    if device.device_kind in _PEAK_BF16:
        return _PEAK_BF16[device.device_kind] * jax.device_count(), f"data sheet of {device.device_kind}, bfloat16"
    return _measured(dtype) * (1 if device.platform == "cpu" else jax.device_count()), f"measured {_SIDE}^3 {dtype}"


def _measured(dtype: str) -> float:
    a = jnp.ones((_SIDE, _SIDE), dtype)
    product = jax.jit(lambda x, y: x @ y).lower(a, a).compile()
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best
