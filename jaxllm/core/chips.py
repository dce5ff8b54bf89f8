"""What an accelerator can do at best: the yardstick of MFU and of every plan. One table, a source for every figure.

Figures are per jax device, which is a chip but on TPU7x, where it is half of one. No jax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_GB, _GIB, _MIB = 1e9, float(2**30), float(2**20)


@dataclass(frozen=True, kw_only=True)
class Chip:
    """flops: dense bfloat16 FLOP/s. hbm_bytes, hbm_bandwidth: memory, bytes/s. link: bytes/s that leave by one link in
    one direction. torus: dimensions of the network in a slice, each with two links; 0 is a switch, all links of which
    are `link` together. network: bytes/s that leave for other slices, or other nodes of GPUs. kinds: what jax calls the
    device. topology: what `topologies.get_topology_desc` calls it. config: of the chip there, where the default is
    another one than machines boot with. node: GPUs that a switch joins. float8: multiplies in it, twice as fast, and
    XLA makes it do so.
    """

    name: str
    platform: Literal["tpu", "gpu"]
    kinds: tuple[str, ...]
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link: float
    torus: int
    network: float
    sources: tuple[str, ...]
    config: str | None = None
    per_chip: int = 1
    node: int = 1
    float8: bool = False

    def rings(self, extents: Sequence[int]) -> tuple[bool, ...]:
        """Which dimensions of a slice are rings, the others being lines. A torus of two dimensions closes each that is
        as long as a pod's 16; one of three is made of cubes of 4 and closes all of them or, of less than whole cubes,
        none."""
        if self.torus == 2:
            return tuple(extent % 16 == 0 for extent in extents)
        return (all(extent % 4 == 0 for extent in extents),) * len(extents)


_V4 = "https://docs.cloud.google.com/tpu/docs/v4: 275 TFLOPS, 32 GiB, 1200 GBps; ICI 2,400 Gbps over 6 links"
_V5E = "https://docs.cloud.google.com/tpu/docs/v6e: v5e 197 TFLOPS, 16 GB, 800 GBps; ICI 1,600 Gbps over 4 ports"
_V5E_DCN = "the same: data centre network of a pod of 256 chips 6.4 Tbps"
_V5P = "https://docs.cloud.google.com/tpu/docs/v5p: 459 TFLOPS, 95 GiB, 2765 GBps; ICI 1,200 GBps both ways, 6 links"
_V5P_DCN = "the same: data centre network 50 Gbps per chip"
_V6E = "https://docs.cloud.google.com/tpu/docs/v6e: 918 TFLOPS, 32 GB, 1638 GBps; ICI 800 GBps both ways, 4 ports"
_V6E_DCN = "the same: data centre network 100 Gbps per chip"
_V7X = "https://docs.cloud.google.com/tpu/docs/tpu7x: a chip of 2 devices 2307 TFLOPS, 192 GiB, 7380 GBps"
_V7X_NET = "the same: ICI 1,200 GBps both ways, data centre network 100 Gbps, both per chip; halved per device here"
_A100 = "NVIDIA A100 data sheet: 312 TFLOPS dense, SXM4 80 GB HBM2e 2,039 GB/s; NVLink 600 GB/s both ways"
_H100 = "NVIDIA H100 data sheet: SXM5 989 TFLOPS dense, 80 GB HBM3 3.35 TB/s; NVLink 900 GB/s both ways"
_H200 = "NVIDIA H200 data sheet: 989 TFLOPS dense, 141 GB HBM3e 4.8 TB/s; NVLink 900 GB/s both ways"
_B200 = "NVIDIA DGX B200 data sheet, an eighth: 2.25 PFLOPS dense, 180 GB HBM3e 8 TB/s; NVLink 1.8 TB/s both ways"
_SMI = "memory: what nvidia-smi shows of such a card, in MiB; data sheets round it and call it GB"
_NIC200 = "DGX A100 data sheet: 8 adapters of 200 Gb/s for 8 GPUs"
_NIC400 = "DGX H100 and B200 data sheets: 8 adapters of 400 Gb/s for 8 GPUs"

CHIPS: tuple[Chip, ...] = (
    Chip(
        name="v4",
        platform="tpu",
        kinds=("TPU v4",),
        flops=275e12,
        hbm_bytes=32 * _GIB,
        hbm_bandwidth=1200 * _GB,
        link=50 * _GB,
        torus=3,
        network=6.25 * _GB,
        sources=(_V4, "network: assumed equal to v5p's; no figure was found"),
        config="megacore",  # one device a chip, as machines boot
    ),
    Chip(
        name="v5e",
        platform="tpu",
        kinds=("TPU v5 lite", "TPU v5e"),
        flops=197e12,
        hbm_bytes=16 * _GIB,
        hbm_bandwidth=800 * _GB,
        link=50 * _GB,
        torus=2,
        network=3.125 * _GB,
        sources=(_V5E, _V5E_DCN),
    ),
    Chip(
        name="v5p",
        platform="tpu",
        kinds=("TPU v5", "TPU v5p"),
        flops=459e12,
        hbm_bytes=95 * _GIB,
        hbm_bandwidth=2765 * _GB,
        link=100 * _GB,
        torus=3,
        network=6.25 * _GB,
        sources=(_V5P, _V5P_DCN),
    ),
    Chip(
        name="v6e",
        platform="tpu",
        kinds=("TPU v6 lite", "TPU v6e"),
        flops=918e12,
        hbm_bytes=32 * _GIB,
        hbm_bandwidth=1638 * _GB,
        link=100 * _GB,
        torus=2,
        network=12.5 * _GB,
        sources=(_V6E, _V6E_DCN),
    ),
    Chip(
        name="tpu7x",
        platform="tpu",
        kinds=("TPU7x",),
        flops=1153.5e12,
        hbm_bytes=96 * _GIB,
        hbm_bandwidth=3690 * _GB,
        link=50 * _GB,
        torus=3,
        network=6.25 * _GB,
        sources=(_V7X, _V7X_NET),
        per_chip=2,
    ),
    Chip(
        name="a100",
        platform="gpu",
        kinds=("NVIDIA A100-SXM4-80GB",),
        flops=312e12,
        hbm_bytes=81_920 * _MIB,
        hbm_bandwidth=2039 * _GB,
        link=300 * _GB,
        torus=0,
        network=25 * _GB,
        sources=(_A100, _SMI, _NIC200),
        node=8,
    ),
    Chip(
        name="h100",
        platform="gpu",
        kinds=("NVIDIA H100 80GB HBM3",),
        flops=989e12,
        hbm_bytes=81_559 * _MIB,
        hbm_bandwidth=3350 * _GB,
        link=450 * _GB,
        torus=0,
        network=50 * _GB,
        sources=(_H100, _SMI, _NIC400),
        node=8,
        float8=True,
    ),
    Chip(
        name="h200",
        platform="gpu",
        kinds=("NVIDIA H200",),
        flops=989e12,
        hbm_bytes=143_771 * _MIB,
        hbm_bandwidth=4800 * _GB,
        link=450 * _GB,
        torus=0,
        network=50 * _GB,
        sources=(_H200, _SMI, _NIC400),
        node=8,
        float8=True,
    ),
    Chip(
        name="b200",
        platform="gpu",
        kinds=("NVIDIA B200",),
        flops=2250e12,
        hbm_bytes=183_359 * _MIB,
        hbm_bandwidth=8000 * _GB,
        link=900 * _GB,
        torus=0,
        network=50 * _GB,
        sources=(_B200, _SMI, _NIC400),
        node=8,
        float8=True,
    ),
)
BY_NAME = {chip.name: chip for chip in CHIPS}
BY_KIND = {kind: chip for chip in CHIPS for kind in chip.kinds}

# Peaks of devices that a run may meet and that no plan is made for.
OTHER_PEAKS = {"TPU v3": 61.5e12, "NVIDIA A100-SXM4-40GB": 312e12}


def peak_of(kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one jax device of this kind; None if it is in no data sheet here."""
    return BY_KIND[kind].flops if kind in BY_KIND else OTHER_PEAKS.get(kind)
