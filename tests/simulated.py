"""Run a function of a test module on simulated CPU devices, in a process of its own.

    def losses_on(fsdp: int) -> list[float]: ...          # module level; JSON in, JSON out

    def test_layouts():
        assert run_simulated(losses_on, fsdp=4) == ...

The number of devices is fixed when jax starts, hence the process. Without NPROC=32 jax 0.10 deadlocks: more devices
than threads wait in a collective (jax-stack facts, trap 1).
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def simulated_env(devices: int) -> dict[str, str]:
    """The environment of a process that sees `devices` CPU devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "NPROC": "32",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


def run_simulated(function: Callable[..., Any], devices: int = 8, timeout: float = 300, **arguments: Any) -> Any:
    """`function(**arguments)` on `devices` simulated devices. Arguments and result travel as JSON.

    AssertionError with the end of the child's stderr if it fails; subprocess.TimeoutExpired after `timeout` seconds.
    """
    if "<" in function.__qualname__ or "." in function.__qualname__:
        raise ValueError(f"{function.__qualname__} is not a function at module level")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        target = f"{function.__module__}:{function.__name__}"
        command = [sys.executable, "-m", "tests.simulated", target, str(out), json.dumps(arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=simulated_env(devices), capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, (
            f"{target} on {devices} devices left with {done.returncode}:\n{done.stderr[-4000:]}"
        )
        return json.loads(out.read_text())


def _child(target: str, out: str, arguments: str) -> None:
    module, _, name = target.partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    _child(*sys.argv[1:])
