"""Owns the processes of one run on one machine: starts them in their places, and again until the run is finished.

    bash launch/processes.sh -n 4 train configs/x.py field=value       4 processes, all of one run
    bash launch/processes.sh -n 2 -d 4 train configs/debug.py          2 processes with 4 simulated CPU devices each

When one process dies, the others are ended, one line says which, how, at which step and what comes next, and all start
again if that may help: after a signal and after exit code 75, not after 0, 1, 2 or 3 (README, exit codes). Native
output and the processes beside the first go to RUN/logs/process_N.log, the first one's words come here.

SIGTERM and SIGINT are passed on: the run saves and everything ends with 75. A second one ends it at once.
"""

import argparse
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from jaxllm.checkpoint.layout import list_steps
from jaxllm.core.environment import expected_platform
from jaxllm.core.errors import EXIT_CHECK_FAILED, EXIT_DONE, EXIT_SAVED_START_AGAIN, JaxllmError
from jaxllm.ledger.segments import newest_first, segment_paths
from jaxllm.workspace import open_config

TOGETHER_SECONDS = 0.3  # deaths that close together may be one event, of which a signal tells more than an abort
SAVED_SECONDS = 3.0  # after one has left with 75, which all do at about one time if they agreed on it
LEAVING_SECONDS = 120.0  # from the first process that is done to the last
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Death:
    """How a process ended: its number, and the return code as subprocess has it (-N: signal N)."""

    process: int
    code: int

    @property
    def signal(self) -> int | None:
        """The signal that ended it, also where a shell or the process itself made 128 + N of it."""
        number = -self.code if self.code < 0 else self.code - 128
        return number if self.code < 0 or self.code > 128 else None

    @property
    def again(self) -> bool:
        """Whether the same command may go further."""
        return self.signal is not None or self.code == EXIT_SAVED_START_AGAIN

    @property
    def words(self) -> str:
        if self.signal is not None:
            try:
                return f"was killed by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"was killed by signal {self.signal}"
        return f"left with {self.code}"

    @property
    def telling(self) -> int:
        """Of deaths at the same time, the lowest is the cause: what fails, aborts or leaves with 75 beside a killed one
        does so because of it. 2 and 3 are nobody else's fault."""
        if self.signal is not None:
            return 3 if self.signal == signal.SIGABRT else 1
        if self.again:
            return 4
        return 2 if self.code == EXIT_CHECK_FAILED else 0


class Fleet:
    """The processes of one attempt."""

    def __init__(self, command: Sequence[str], count: int, devices: int | None, logs: Path) -> None:
        coordinator = f"localhost:{free_port()}"
        gpus = visible_gpus() if devices is None else []
        self.processes: list[subprocess.Popen[bytes]] = []
        for i in range(count):
            place = {"JAXLLM_COORDINATOR": coordinator, "JAXLLM_PROCESSES": str(count), "JAXLLM_PROCESS": str(i)}
            environment = os.environ | place | devices_of(i, count, devices, gpus)
            with (logs / f"process_{i}.log").open("ab") as log:
                log.write(f"---- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n".encode())
                output = None if i == 0 else log
                self.processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,  # a terminal's ^C comes to us, who pass it on once
                        preexec_fn=ask_to_stop_with_parent,
                    )
                )

    def dead(self) -> list[Death]:
        """Those that have ended."""
        return [Death(i, p.returncode) for i, p in enumerate(self.processes) if p.poll() is not None]

    def send(self, number: int) -> None:
        """A signal to all that run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, seconds: float, no_longer: Callable[[], bool] = lambda: False) -> bool:
        """Whether all have ended within `seconds`, or before nobody wants to wait any longer."""
        deadline = time.monotonic() + seconds
        while len(self.dead()) < len(self.processes):
            if time.monotonic() >= deadline or no_longer():
                return False
            time.sleep(POLL_SECONDS)
        return True

    def end(self, grace: float) -> None:
        """SIGTERM to those that still run, SIGKILL after `grace` seconds, to whatever they have started, too."""
        if not self.wait(0):
            self.send(signal.SIGTERM)
            self.wait(grace)
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.wait(grace)


class Supervisor:
    """Runs attempts until one ends the run."""

    def __init__(self, options: argparse.Namespace, run_folder: Path) -> None:
        self.options, self.folder = options, run_folder
        self.asked: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)

    def run(self) -> int:
        """The exit code of the whole."""
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "jaxllm", *self.options.command]
        fruitless = 0
        while not self.asked:
            saved = newest_checkpoint(self.folder)
            fleet = Fleet(command, self.options.processes, self.options.devices, logs)
            try:
                cause = self._watch(fleet)
            finally:
                fleet.end(self.options.grace)
            if cause is None:
                return EXIT_DONE
            if self.asked:
                return EXIT_SAVED_START_AGAIN if cause.again else cause.code
            fruitless = 0 if newest_checkpoint(self.folder) > saved else fruitless + 1
            where = f"process {cause.process} of {self.options.processes} {cause.words} {self._step()}"
            if not cause.again:
                say(f"{where}; the others were ended; starting again would not help, see above and {logs}")
                return cause.code
            if fruitless > self.options.restarts:
                say(f"{where}; {fruitless} attempts in a row without a new checkpoint, giving up; see {logs}")
                return EXIT_SAVED_START_AGAIN
            step = newest_checkpoint(self.folder)
            say(f"{where}; the others were ended; all start again from {f'checkpoint {step}' if step else 'the start'}")
            time.sleep(0 if fruitless < 2 else min(2.0**fruitless, 60.0))
        return EXIT_SAVED_START_AGAIN

    def _watch(self, fleet: Fleet) -> Death | None:
        """Return when an attempt is over: what ended it, None if the run is finished."""
        passed_on = 0
        while True:
            if len(self.asked) > passed_on:
                fleet.send(self.asked[passed_on])
                passed_on += 1
            if dead := fleet.dead():
                break
            time.sleep(POLL_SECONDS)
        if min(d.telling for d in dead):  # all of them may be consequences
            fleet.wait(SAVED_SECONDS if all(d.signal is None for d in dead) else TOGETHER_SECONDS)
            dead = fleet.dead()
        cause = min(dead, key=lambda d: d.telling)
        if cause.code == EXIT_DONE or self.asked:  # the others are about to leave, too
            fleet.wait(LEAVING_SECONDS, lambda: len(self.asked) > 1)
            dead = fleet.dead()
            late = [d for d in dead if d.code != EXIT_DONE]
            if len(dead) < len(fleet.processes):
                running = next(i for i, p in enumerate(fleet.processes) if p.poll() is None)
                return Death(running, EXIT_SAVED_START_AGAIN)
            return min(late, key=lambda d: d.telling) if late else None
        return cause

    def _step(self) -> str:
        step = last_step(self.folder)
        return f"after step {step}" if step else "before the first step was recorded"

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)


def devices_of(process: int, count: int, devices: int | None, gpus: Sequence[str]) -> dict[str, str]:
    """What of the machine a process sees: `devices` simulated CPU devices, or its part of the GPUs."""
    if devices is not None:
        kept = [f for f in os.environ.get("XLA_FLAGS", "").split() if "xla_force_host_platform_device_count" not in f]
        flags = [*kept, f"--xla_force_host_platform_device_count={devices}"]
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    if not gpus:
        return {}
    if len(gpus) % count:
        raise JaxllmError(f"-n {count}: {len(gpus)} GPUs do not divide over {count} processes; use a divisor")
    each = len(gpus) // count
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[process * each : (process + 1) * each])}


def visible_gpus() -> list[str]:
    """The numbers of the GPUs there are, none if jax will compute elsewhere."""
    if expected_platform() != "gpu":
        return []
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [number for number in given.split(",") if number]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def ask_to_stop_with_parent() -> None:
    """In the child: SIGTERM if the supervisor dies, so that nobody is left who holds the run. Linux alone has it."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])


def newest_checkpoint(run_folder: Path) -> int:
    return max(list_steps(run_folder / "checkpoints"), default=0)


def last_step(run_folder: Path) -> int:
    """The newest step that the run has recorded, 0 if none can be read."""
    try:
        newest = next(newest_first(segment_paths(run_folder / "steps")), None)
        return 0 if newest is None else max(newest.highest_after().values(), default=0)
    except (JaxllmError, OSError):
        return 0


def say(text: str) -> None:
    print(f"jaxllm: {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="processes.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--processes", type=int, required=True, help="how many")
    parser.add_argument("-d", "--devices", type=int, help="simulated CPU devices of each; default what there is")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("--restarts", type=int, default=3, help="attempts in a row without a new checkpoint")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="train CONFIG [field=value ...]")
    options = parser.parse_args(arguments)
    if options.processes < 1 or (options.devices is not None and options.devices < 1) or options.restarts < 0:
        parser.error("-n and -d are at least 1, --restarts is at least 0")
    options.targets = [  # CONFIG [field=value ...]
        word
        for before, word in itertools.pairwise(options.command)
        if not word.startswith("-") and before not in ("--stop-at", "--profile")
    ]
    if options.command[:1] != ["train"] or not options.targets:
        parser.error("the command is: train CONFIG [field=value ...]")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        _, folder = open_config(options.targets[0], options.targets[1:])
        return Supervisor(options, folder).run()
    except JaxllmError as err:
        say(str(err))
        return err.exit_code


if __name__ == "__main__":
    sys.exit(main())
