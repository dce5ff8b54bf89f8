"""How fast a step can be at best: arithmetic on a chip's figures. Nothing here is measured, and latency is left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxllm.core.chips import Chip
from jaxllm.plan.collectives import Collective


@dataclass(frozen=True)
class Places:
    """Where every device of a mesh stands, in the mesh's order. coords: int [devices, dimensions of the torus];
    slice_of: int [devices]. Devices of one chip share its coordinates."""

    coords: np.ndarray
    slice_of: np.ndarray

    @property
    def extents(self) -> tuple[int, ...]:
        """Chips of a slice along every dimension."""
        return tuple(int(n) for n in self.coords.max(axis=0) + 1)


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of one step that each resource is busy, were it alone. bubble: the share of a pipeline's ticks that are
    of no use; stages compute in those too, and the ticks are in `compute`."""

    compute: float
    memory: float
    links: float
    network: float
    bubble: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """By name, as people read it."""
        return {
            "compute": self.compute,
            "memory": self.memory,
            "links within a slice": self.links,
            "network between slices": self.network,
        }

    @property
    def binds(self) -> str:
        """The resource that is busy longest."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def seconds(self) -> float:
        """Of a step in which everything else hides behind what binds: no step is faster."""
        return max(self.parts.values())

    @property
    def serial_seconds(self) -> float:
        """Of a step in which nothing hides behind anything."""
        return sum(self.parts.values())


def roofline(
    chip: Chip, places: Places, found: Sequence[Collective], *, flops: float, traffic: float, bubble: float = 0.0
) -> Roofline:
    """flops, traffic: of one device and step; `found` its collectives."""
    return Roofline(
        compute=flops / chip.flops,
        memory=traffic / chip.hbm_bandwidth,
        links=sum(link_seconds(one, chip, places) for one in found),
        network=sum(one.split(places.slice_of)[1] for one in found) / chip.network,
        bubble=bubble,
    )


def link_seconds(one: Collective, chip: Chip, places: Places) -> float:
    """Seconds that a collective takes within a slice, in all its executions.

    On a torus every dimension that a group spans adds its links: two where it is a ring, one where it is a line,
    divided by the distance to the next device of the group, whose links others use too. An all-to-all passes on what
    is not its own: a quarter of the way round a ring on average. A permutation waits for its busiest link.
    """
    within, _ = one.split(places.slice_of)
    if within == 0:
        return 0.0
    if chip.torus == 0:
        return within / chip.link
    if one.kind in ("collective-permute", "broadcast"):
        return within * max(1, _load(one.groups, chip, places)) / chip.link
    group = one.groups[0]
    group = group[places.slice_of[group] == places.slice_of[group[0]]]
    rates: list[tuple[int, float]] = []  # devices along a dimension, bytes/s along it
    for dim, (extent, closed) in enumerate(zip(places.extents, chip.rings(places.extents), strict=True)):
        at = np.unique(places.coords[group, dim])
        if len(at) > 1:
            stride = int(np.diff(at).min())
            ring = closed and len(at) * stride == extent
            rates.append((len(at), (2 if ring else 1) * chip.link / stride))
    if not rates:  # devices of one chip: as fast as its memory
        return within / chip.hbm_bandwidth
    if one.kind in ("all-to-all", "ragged-all-to-all"):
        return max(within * max(1.0, n / 4) / rate for n, rate in rates)
    return within / sum(rate for _, rate in rates)


def _load(pairs: np.ndarray, chip: Chip, places: Places) -> int:
    """How many of a permutation's messages share the busiest link, those within a slice: each goes one dimension after
    the other, the shorter way round where it is a ring."""
    loads: dict[tuple[object, ...], int] = {}
    dimensions = list(zip(places.extents, chip.rings(places.extents), strict=True))
    for source, target in pairs:
        if places.slice_of[source] != places.slice_of[target]:
            continue
        at = places.coords[source].tolist()
        for dim, (extent, closed) in enumerate(dimensions):
            ahead = int(places.coords[target, dim]) - at[dim]
            if closed and abs(ahead) > extent - abs(ahead):
                ahead -= extent if ahead > 0 else -extent
            way = 1 if ahead > 0 else -1
            for _ in range(abs(ahead)):
                link = (int(places.slice_of[source]), *at, dim, way)
                loads[link] = loads.get(link, 0) + 1
                at[dim] = (at[dim] + way) % extent
    return max(loads.values(), default=0)
