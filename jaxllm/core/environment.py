"""Process environment that must be right before jax starts."""

import os
from collections.abc import Callable, Mapping, MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Platform = Literal["cpu", "gpu", "tpu"]

_THREADS = "32"

# jax's names of platforms -> ours. Another one (rocm, metal) has no flags of ours, like the CPU.
_NAMES: dict[str, Platform] = {"tpu": "tpu", "cuda": "gpu", "gpu": "gpu"}

# A package that brings the platform's plugin, and a device file that is there only with such a device.
_TPU = (("libtpu",), ("accel[0-9]*", "vfio/[0-9]*"))
_GPU = (("jax_cuda12_plugin", "jax_cuda13_plugin"), ("nvidia[0-9]*", "nvidiactl", "dxg"))


def settle_threads(environment: MutableMapping[str, str] | None = None) -> str | None:
    """Give simulated CPU devices enough threads; what was set, for people, or None.

    With more devices than threads, jax 0.10 waits for ever in a collective: every thread holds a device that waits for
    one that has none. A smaller NPROC of the user's is raised for the same reason.
    """
    env = os.environ if environment is None else environment
    simulated = "xla_force_host_platform_device_count" in env.get("XLA_FLAGS", "") or env.get("JAX_NUM_CPU_DEVICES")
    given = env.get("NPROC", "")
    if not simulated or (given.isdigit() and int(given) >= int(_THREADS)):
        return None
    env["NPROC"] = _THREADS
    return f"NPROC={_THREADS} for simulated devices"


def expected_platform(
    environment: Mapping[str, str] | None = None,
    devices: Path = Path("/dev"),
    installed: Callable[[str], object] = find_spec,
) -> Platform:
    """Where jax will compute, told without starting it: as JAX_PLATFORMS says, or else by what is plugged in.

    A TPU comes first, as in jax. A device counts only with the plugin that drives it: a GPU without one stays unused.
    """
    env = os.environ if environment is None else environment
    asked = (env.get("JAX_PLATFORMS") or env.get("JAX_PLATFORM_NAME") or "").split(",")[0].strip().lower()
    if asked:
        return _NAMES.get(asked, "cpu")

    def there(packages: tuple[str, ...], files: tuple[str, ...]) -> bool:
        return any(map(installed, packages)) and any(any(devices.glob(pattern)) for pattern in files)

    if there(*_TPU):
        return "tpu"
    return "gpu" if there(*_GPU) else "cpu"
