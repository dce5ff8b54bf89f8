"""The hardware that a plan is for, as values, and the devices of it that a compiler without hardware knows."""

import importlib.metadata
import importlib.util
import math
from dataclasses import dataclass, replace
from typing import Any

from jaxllm.core.chips import BY_NAME, CHIPS, Chip
from jaxllm.core.config import suggest
from jaxllm.core.errors import ConfigError, JaxllmError

# Of a GPU's memory, what a process can have: jax takes three quarters unless told otherwise. TPU's compiler knows.
USABLE, USABLE_FLAG = 0.92, "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92"


class PlanError(JaxllmError):
    """A plan cannot be made: no compiler for the chip, or a topology that does not exist."""


@dataclass(frozen=True)
class Target:
    """slices: of TPU, joined by the data centre's network; of GPUs, nodes. shape: chips of one slice along its torus,
    or GPUs of a node."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        """jax devices in all."""
        return math.prod(self.shape) * self.slices * self.chip.per_chip

    @property
    def usable_bytes(self) -> float:
        """Memory of one device that a step may take."""
        return self.chip.hbm_bytes * (USABLE if self.chip.platform == "gpu" else 1.0)

    @property
    def options(self) -> str:
        """As the command line spells it."""
        if self.chip.platform == "gpu":
            return f"--chip {self.chip.name} --gpus {self.devices}"
        slices = f" --slices {self.slices}" if self.slices > 1 else ""
        return f"--chip {self.chip.name} --topology {'x'.join(map(str, self.shape))}{slices}"

    @property
    def doubled(self) -> "Target":
        """Twice as many: the shortest dimension of the torus twice as long, twice the nodes of GPUs."""
        if self.chip.platform == "gpu":
            return replace(self, slices=self.slices * 2)
        shortest = self.shape.index(min(self.shape))
        return replace(self, shape=tuple(n * 2 if i == shortest else n for i, n in enumerate(self.shape)))

    @property
    def text(self) -> str:
        """For people: `v5p 4x8x8 (256 chips)`."""
        if self.chip.platform == "gpu":
            return f"{self.chip.name} x {self.devices} ({self.slices} nodes of {self.shape[0]})"
        shape, chips = "x".join(map(str, self.shape)), self.devices // self.chip.per_chip
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        devices = f", {self.devices} devices" if self.chip.per_chip > 1 else ""
        return f"{slices}{self.chip.name} {shape} ({chips} chips{devices})"


def target_of(chip: str, topology: str | None, slices: int, gpus: int | None) -> Target:
    """What `--chip`, `--topology`, `--slices` and `--gpus` name. ConfigError says what would do."""
    if not chip:
        raise ConfigError(f"plan needs --chip, one of {', '.join(BY_NAME)}")
    if chip not in BY_NAME:
        raise ConfigError(f"--chip {chip} is not in the table{suggest(chip, [c.name for c in CHIPS])}")
    found = BY_NAME[chip]
    if found.platform == "gpu":
        if gpus is None or topology is not None or slices != 1:
            raise ConfigError(
                f"--chip {chip} takes --gpus N, the number of all GPUs, and neither --topology nor --slices"
            )
        node = min(gpus, found.node)
        if gpus < 1 or gpus % node:
            raise ConfigError(f"--gpus {gpus} is not a multiple of the {node} GPUs of a node")
        return Target(found, (node,), gpus // node)
    example = "4x8x8" if found.torus == 3 else "16x16"
    if topology is None or gpus is not None:
        raise ConfigError(f"--chip {chip} takes --topology, the chips of a slice, as in --topology {example}")
    parts = topology.split("x")
    if len(parts) != found.torus or not all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts):
        raise ConfigError(f"--topology {topology}: {chip} has {found.torus} dimensions, as in --topology {example}")
    if slices < 1:
        raise ConfigError(f"--slices {slices} is at least 1")
    return Target(found, tuple(map(int, parts)), slices)


def require_compiler(chip: Chip) -> None:
    """PlanError, naming the extra, if the compiler for this chip is not installed or does not fit the jax that is."""
    jax = importlib.metadata.version("jax")
    if chip.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise PlanError(f"--chip {chip.name} needs libtpu, TPU's compiler: pip install 'jaxllm[plan]' (205 MB)")
        return
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise PlanError(
            f"--chip {chip.name} needs CUDA's compiler plugin: pip install 'jaxllm[plan-gpu]' jax-cuda12-plugin=={jax} "
            f"(190 MB; neither CUDA nor a driver)"
        )
    plugin = importlib.metadata.version("jax-cuda12-plugin")
    if plugin != jax:
        raise PlanError(f"jax-cuda12-plugin {plugin} does not fit jax {jax}: pip install jax-cuda12-plugin=={jax}")


def open_devices(target: Target) -> list[Any]:
    """Devices of the target, to compile for and not to run on. PlanError if there is no such topology."""
    import jax
    from jax.experimental import topologies

    chip, shape = target.chip, "x".join(map(str, target.shape))
    try:
        if chip.platform == "gpu":
            return list(
                topologies.get_topology_desc(
                    platform="cuda",
                    topology_name=chip.name,
                    topology=f"{target.slices}x1x{shape}",
                    target_config=description(chip),
                ).devices
            )
        options: dict[str, Any] = {} if chip.config is None else {"chip_config_name": chip.config}
        if target.slices > 1:
            options["num_slices"] = target.slices
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=f"{chip.name}:{shape}", **options).devices
        )
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as err:
        raise PlanError(f"{target.text}: the compiler refuses this topology: {str(err).splitlines()[0]}") from None


_CAPABILITY = {"a100": (8, 0), "h100": (9, 0), "h200": (9, 0), "b200": (10, 0)}
_CORES = {"a100": 108, "h100": 132, "h200": 132, "b200": 148}
_SHARED = {"a100": 166_912, "h100": 232_448, "h200": 232_448, "b200": 232_448}
_L2 = {"a100": 40 << 20, "h100": 50 << 20, "h200": 50 << 20, "b200": 126 << 20}


def description(chip: Chip) -> str:
    """What XLA must know of a GPU to compile for it (text form of its GpuTargetConfigProto). It decides layouts and
    fusions; clock rates and the like, which only weigh one kernel against another, are a H100's."""
    major, minor = _CAPABILITY[chip.name]
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": _SHARED[chip.name] + 1024,
        "threads_per_core_limit": 2048,
        "core_count": _CORES[chip.name],
        "fpus_per_core": 128 if major > 8 else 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(chip.hbm_bandwidth),
        "l2_cache_size": _L2[chip.name],
        "clock_rate_ghz": 1.98,
        "device_memory_size": int(chip.hbm_bytes),
        "shared_memory_per_block_optin": _SHARED[chip.name],
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    device = " ".join(f"{k}: {v}" for k, v in fields.items())
    return (
        f"gpu_device_info {{ {device} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 2 }} '
        f'runtime_version {{ major: 12 minor: 9 patch: 0 }} device_description_str: "{chip.kinds[0]}"'
    )
