"""The device mesh of a run: axes dp, fsdp, pp, ep, cp, tp, outer to inner, each within slices and across them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType

from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import AXES, Mesh


def resolve(mesh: Mesh, devices: int) -> Mesh:
    """`mesh` with its -1 replaced by what the other axes and the slices leave of `devices`.

    LayoutError if the product of the axes is not the number of devices; it says what would do.
    """
    slices, within = slices_of(mesh), _within(mesh)
    if devices % slices:
        raise LayoutError(
            f"mesh.across asks for {slices} slices, which do not divide {devices} devices; use a product that does"
        )
    here = devices // slices
    fixed = math.prod(n for n in within.values() if n != -1)
    free = [axis for axis, n in within.items() if n == -1]
    if here % fixed or (not free and fixed != here):
        raise LayoutError(_misfit(within, fixed, free, here, slices))
    rest: dict[str, Any] = dict.fromkeys(free, here // fixed)
    return replace(mesh, **rest)


def slices_of(mesh: Mesh) -> int:
    """How many slices the mesh is made of."""
    return math.prod(_across(mesh))


def shape_of(mesh: Mesh) -> tuple[int, ...]:
    """Devices along each of AXES, slices included, of a resolved mesh."""
    return tuple(n * m for n, m in zip(_within(mesh).values(), _across(mesh), strict=True))


def make_mesh(mesh: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices` (default: all of the run), every axis of type Auto: layouts are constraints, not types.

    On TPU the axes follow the torus of a slice; elsewhere devices are taken in their own order, which is the same in
    every process and keeps those of one host together. An axis that spans slices goes through a slice before the next.
    """
    devices = list(jax.devices() if devices is None else devices)
    resolved = resolve(mesh, len(devices))
    shape, across = tuple(_within(resolved).values()), _across(resolved)
    slices = [_arrange(shape, part) for part in _slices(devices, math.prod(across))]
    # [slices..., within...] -> every axis of the slices before its own axis within them.
    grid = np.stack(slices).reshape(*across, *shape)
    grid = grid.transpose([i for axis in range(len(AXES)) for i in (axis, len(AXES) + axis)])
    return jax.sharding.Mesh(grid.reshape(shape_of(resolved)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sizes(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> dict[str, int]:
    """Devices along each axis."""
    return {str(axis): int(n) for axis, n in mesh.shape.items()}


def here(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh | jax.sharding.AbstractMesh:
    """`mesh` as it must be named where it is called: inside a `jax.shard_map` some of its axes are taken."""
    inside = jax.sharding.get_abstract_mesh()
    return mesh if inside.empty else inside


def mapped(
    function: Callable[..., Any], mesh: jax.sharding.Mesh, in_specs: Any, out_specs: Any, *, check_vma: bool = True
) -> Callable[..., Any]:
    """`jax.shard_map` over every axis of `mesh` that is not taken where the result is called."""

    def run(*arrays: Any) -> Any:
        inside = here(mesh)
        free = {a for a, kind in zip(inside.axis_names, inside.axis_types, strict=True) if kind != AxisType.Manual}
        return jax.shard_map(
            function, mesh=inside, in_specs=in_specs, out_specs=out_specs, axis_names=free, check_vma=check_vma
        )(*arrays)

    return run


def layout_text(sizes: dict[str, int]) -> str:
    """Sizes for people, without axes of one: 'fsdp=4 tp=2', or 'one device'."""
    return " ".join(f"{axis}={n}" for axis, n in sizes.items() if n > 1) or "one device"


def _within(mesh: Mesh) -> dict[str, int]:
    return {axis: getattr(mesh, axis) for axis in AXES}


def _across(mesh: Mesh) -> tuple[int, ...]:
    return tuple(getattr(mesh.across, axis) for axis in AXES)


def _slices(devices: list[Any], count: int) -> list[list[Any]]:
    """The devices of each of `count` slices: as TPUs tell, elsewhere neighbours, which is whole hosts."""
    known = sorted({getattr(d, "slice_index", 0) for d in devices}) if devices[0].platform == "tpu" else [0]
    if len(known) == 1:  # one slice can stand for several, to try a layout out
        size = len(devices) // count
        return [devices[i * size : (i + 1) * size] for i in range(count)]
    if len(known) != count:
        raise LayoutError(
            f"the devices lie in {len(known)} slices and mesh.across asks for {count}; "
            f"say which axis spans them, for example mesh.across.dp={len(known)}"
        )
    return [[d for d in devices if d.slice_index == i] for i in known]


def _arrange(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils  # a pod's torus; nobody else needs it

        # Splitting is needed wherever an axis does not factor the torus (facts: 256 x 4 on 8 x 8 x 16).
        return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return np.array(devices, dtype=object).reshape(shape)


def _misfit(within: dict[str, int], fixed: int, free: list[str], devices: int, slices: int) -> str:
    said = ", ".join(f"{axis}={n}" for axis, n in within.items() if n != 1)
    each = "" if slices == 1 else " in a slice"
    if free:
        held = "*".join(axis for axis, n in within.items() if axis not in free and n != 1)
        would_do = _divisors(devices)
        return f"mesh {said}: {held}={fixed} does not divide {devices} devices{each}; use {held} in {would_do}"
    needs = f"mesh {said} needs {fixed} devices and there are {devices}{each}"
    for axis in AXES:  # one axis that would make it fit, the outermost first
        others = fixed // within[axis]
        if devices % others == 0:
            return f"{needs}; use {axis}={devices // others} or -1"
    return f"{needs}; use a product of {devices}, or dp=-1"


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
