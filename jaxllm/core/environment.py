"""Process environment that must be right before jax starts."""

import os
from collections.abc import MutableMapping

_THREADS = "32"


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
