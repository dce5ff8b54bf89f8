"""The numerics fingerprint: everything outside a run's identity that its bits depend on.

Two runs with equal identity and equal fingerprint are expected to agree bitwise; with another fingerprint they agree to
rounding. Nothing here imports jax at the top: a stored fingerprint can be read and compared without it.
"""

import dataclasses
import importlib.metadata
import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.core import config as codec
from jaxllm.core.config import Json, config

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")

# Options of jax that change which program is compiled, or which random bits are drawn.
_OPTIONS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
    "jax_use_shardy_partitioner",
)

# XLA's own ladder (--xla_cpu_max_isa), lowest first, with the /proc/cpuinfo flags that a rung asks for.
_X86_LADDER = (
    ("sse4_2", {"sse4_2"}),
    ("avx", {"avx"}),
    ("avx2", {"avx2", "fma"}),
    ("avx512", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("avx512_vnni", {"avx512_vnni"}),
    ("avx512_bf16", {"avx512_bf16"}),
    ("amx", {"amx_tile", "amx_int8", "amx_bf16"}),
    ("amx_fp16", {"amx_fp16"}),
)
_ARM_LADDER = (("neon", {"asimd"}), ("sve", {"sve"}), ("sve2", {"sve2"}))

# Flags that only say where something is written; the number of simulated devices is `devices` already.
_HARMLESS = ("--xla_dump", "--xla_force_host_platform_device_count", "--xla_gpu_dump")


@config
class Fingerprint:
    """What the bits of a run depend on, beside its identity.

    runtime: version string of the backend (CUDA, libtpu). cpu_isa, cpu_model, threads: only where the devices are the
    CPU, whose kernels block for the caches of the model and split sums over threads; None elsewhere. mesh: axis -> size
    as resolved, without axes of size 1. compute: what the Compute section has beside its defaults. (So neither an axis
    nor an option that is added later looks like a change.) jax_options, xla_flags: as they stand when collected.
    """

    versions: dict[str, str]
    platform: str
    device_kind: str
    runtime: str
    devices: int
    processes: int
    cpu_isa: str | None
    cpu_model: str | None
    threads: int | None
    mesh: dict[str, int]
    compute: dict[str, Any]
    jax_options: dict[str, str]
    xla_flags: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the canonical form, in hex. Equal ones claim equal bits."""
        return codec.fingerprint(encode(self))


def encode(value: Fingerprint) -> dict[str, Json]:
    """Fingerprint -> JSON value."""
    return dataclasses.asdict(value) | {"xla_flags": list(value.xla_flags)}


def decode(raw: Json, where: str = "fingerprint") -> Fingerprint:
    """JSON value -> Fingerprint. ConfigError names the field at fault."""
    return codec.decode(Fingerprint, raw, where)


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """What changed, as `field: old -> new`; empty means that equal bits can be claimed."""
    return codec.differences(encode(old), encode(new))


def collect(mesh: Mapping[str, int], compute: Mapping[str, Json]) -> Fingerprint:
    """The fingerprint of this process. Starts jax's backend.

    mesh: axis -> size, resolved. compute: `config.essential` of the Compute section.
    """
    import jax

    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    flags = xla_flags(os.environ.get("XLA_FLAGS", ""))
    if device.platform == "tpu":
        flags += xla_flags(os.environ.get("LIBTPU_INIT_ARGS", ""))
    return Fingerprint(
        versions=library_versions(),
        platform=device.platform,
        device_kind=device.device_kind,
        runtime=" ".join(device.client.platform_version.split()),
        devices=jax.device_count(),
        processes=jax.process_count(),
        cpu_isa=cpu_isa(cap=_flag(flags, "--xla_cpu_max_isa")) if on_cpu else None,
        cpu_model=cpu_model() if on_cpu else None,
        threads=xla_threads() if on_cpu else None,
        mesh={axis: size for axis, size in mesh.items() if size > 1},
        compute=dict(compute),
        jax_options={name: str(getattr(jax.config, name, None)) for name in _OPTIONS},
        xla_flags=flags,
    )


def library_versions() -> dict[str, str]:
    """Of the libraries that can move a number."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def xla_threads(environment: Mapping[str, str] | None = None) -> int:
    """Threads of XLA's CPU pool: NPROC if it is a number, else the cores this process may run on."""
    nproc = (os.environ if environment is None else environment).get("NPROC", "")
    if nproc.strip().isdigit() and int(nproc) > 0:
        return int(nproc)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_isa(cpuinfo: str | None = None, cap: str | None = None) -> str:
    """The highest vector instruction set, 'avx512_vnni' say; `cap` is the value of --xla_cpu_max_isa.

    A rung counts only with all rungs below it, as in XLA. Without /proc/cpuinfo it is the machine's name.
    """
    text = _cpuinfo() if cpuinfo is None else cpuinfo
    flags = set(_field(text, "flags").split()) or set(_field(text, "Features").split())
    found = platform.machine().lower() or "unknown"
    for ladder in (_X86_LADDER, _ARM_LADDER):
        for name, needs in ladder:
            if not needs <= flags:
                break
            found = name
            if cap is not None and cap.lower() == name:
                break
    return found


def cpu_model(cpuinfo: str | None = None) -> str:
    """The processor's name, or implementer and part on ARM."""
    text = _cpuinfo() if cpuinfo is None else cpuinfo
    arm = f"{_field(text, 'CPU implementer')} {_field(text, 'CPU part')}".strip()
    return _field(text, "model name") or arm or platform.processor() or platform.machine() or "unknown"


def xla_flags(text: str) -> tuple[str, ...]:
    """The flags of XLA_FLAGS that can matter, sorted; of a repeated flag the last one holds, as in XLA."""
    flags = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not name.startswith(_HARMLESS):
            flags[name] = f"{name}={value if equals else 'true'}"
    return tuple(sorted(flags.values()))


def _flag(flags: tuple[str, ...], name: str) -> str | None:
    return next((f.partition("=")[2] for f in flags if f.partition("=")[0] == name), None)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _field(cpuinfo: str, name: str) -> str:
    """The first value of a field of /proc/cpuinfo, '' if it is not there."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
