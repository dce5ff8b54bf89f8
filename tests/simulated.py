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
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def simulated_env(devices: int) -> dict[str, str]:
    """The environment of a process that sees `devices` CPU devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Layouts are decided long before LLVM, whose optimisation is half of the time that such tests take.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "NPROC": "32",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


def run_simulated(function: Callable[..., Any], devices: int = 8, timeout: float = 300, **arguments: Any) -> Any:
    """`function(**arguments)` on `devices` simulated devices. Arguments and result travel as JSON.

    AssertionError with the end of the child's stderr if it fails; subprocess.TimeoutExpired after `timeout` seconds.
    """
    return _run(function, 1, devices, timeout, arguments)[0]


def run_processes(
    function: Callable[..., Any], processes: int = 2, devices: int = 4, timeout: float = 300, **arguments: Any
) -> list[Any]:
    """`function(**arguments)` in `processes` processes that form one jax.distributed run, with `devices` devices each.

    The results by process. AssertionError if one fails; the others are killed then, or after `timeout` seconds.
    """
    return _run(function, processes, devices, timeout, arguments)


def _run(
    function: Callable[..., Any], processes: int, devices: int, timeout: float, arguments: dict[str, Any]
) -> list[Any]:
    if "<" in function.__qualname__ or "." in function.__qualname__:
        raise ValueError(f"{function.__qualname__} is not a function at module level")
    target, coordinator = f"{function.__module__}:{function.__name__}", f"localhost:{_free_port()}"
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"result{i}.json" for i in range(processes)]
        children: list[subprocess.Popen[bytes]] = []
        try:
            for i, out in enumerate(outs):
                place = [coordinator, str(processes), str(i)] if processes > 1 else []
                command = [sys.executable, "-m", "tests.simulated", target, str(out), json.dumps(arguments), *place]
                with out.with_suffix(".err").open("wb") as err:
                    children.append(
                        subprocess.Popen(
                            command, cwd=ROOT, env=simulated_env(devices), stdout=subprocess.DEVNULL, stderr=err
                        )
                    )
            for i, child in enumerate(children):
                code = child.wait(max(0.1, deadline - time.monotonic()))
                said = outs[i].with_suffix(".err").read_text(errors="replace")[-4000:]
                assert code == 0, f"{target} on {devices} devices left with {code}:\n{said}"
        finally:
            for child in children:
                child.kill()
                child.wait()
        return [json.loads(out.read_text()) for out in outs]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])


def _child(target: str, out: str, arguments: str, *place: str) -> None:
    if place:
        import jax

        jax.distributed.initialize(place[0], num_processes=int(place[1]), process_id=int(place[2]))
    module, _, name = target.partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    _child(*sys.argv[1:])
