"""The device mesh of a run: axes dp, fsdp, tp, outer to inner."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType

from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import Mesh

# Outer to inner: neighbours on the last axis are the closest devices, and tp talks in every layer.
AXES = ("dp", "fsdp", "tp")


def resolve(mesh: Mesh, devices: int) -> Mesh:
    """`mesh` with its -1 replaced by what the other axes leave of `devices`.

    LayoutError if the product of the axes is not the number of devices; it says what would do.
    """
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    fixed = math.prod(n for n in sizes.values() if n != -1)
    free = [axis for axis, n in sizes.items() if n == -1]
    if devices % fixed or (not free and fixed != devices):
        raise LayoutError(_misfit(sizes, fixed, free, devices))
    return replace(mesh, **dict.fromkeys(free, devices // fixed))


def make_mesh(mesh: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices` (default: all of the run), every axis of type Auto: layouts are constraints, not types.

    On TPU the axes follow the torus; elsewhere devices are taken in their own order, which is the same in every process
    and keeps those of one host together.
    """
    devices = list(jax.devices() if devices is None else devices)
    resolved = resolve(mesh, len(devices))
    shape = tuple(getattr(resolved, axis) for axis in AXES)
    return jax.sharding.Mesh(_arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sizes(mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Devices along each axis."""
    return {str(axis): int(n) for axis, n in mesh.shape.items()}


def _arrange(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils  # a pod's torus; nobody else needs it

        # Splitting is needed wherever an axis does not factor the torus (facts: 256 x 4 on 8 x 8 x 16).
        return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return np.array(devices, dtype=object).reshape(shape)


def _misfit(sizes: dict[str, int], fixed: int, free: list[str], devices: int) -> str:
    said = ", ".join(f"{axis}={n}" for axis, n in sizes.items())
    if free:
        held = "*".join(axis for axis in sizes if axis not in free)
        return f"mesh {said}: {held}={fixed} does not divide {devices} devices; use {held} in {_divisors(devices)}"
    for axis in AXES:  # one axis that would make it fit, the outermost first
        others = fixed // sizes[axis]
        if devices % others == 0:
            return f"mesh {said} needs {fixed} devices and there are {devices}; use {axis}={devices // others} or -1"
    return f"mesh {said} needs {fixed} devices and there are {devices}; use a product of {devices}, or dp=-1"


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
