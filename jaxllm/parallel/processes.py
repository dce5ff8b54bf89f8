"""Several processes as one run: where each has its place, how they join, agree, and leave together.

What is agreed between steps travels through the key-value store of jax.distributed, which needs no devices, waits as
long as it has to (process 0 may prepare data for hours) and hears of a process that left with an error. With one
process everything here is immediate and nothing of jax.distributed is started.
"""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxllm.core.errors import EXIT_SAVED_START_AGAIN, ConfigError, JaxllmError

COORDINATOR, PROCESSES, PROCESS, DISTRIBUTED = (
    "JAXLLM_COORDINATOR",
    "JAXLLM_PROCESSES",
    "JAXLLM_PROCESS",
    "JAXLLM_DISTRIBUTED",
)

# A process that sends no heartbeat for that long is taken for dead by the others, who then end. Heartbeats come from a
# native thread, which compilation and Python do not hold up.
_HEARTBEAT_SECONDS = 30
_JOIN_SECONDS = 300
_SHUTDOWN_SECONDS = 60
_GLANCE_MS = 500  # how often one who waits looks whether somebody left
_LINGER_SECONDS = 3.0  # process 0 is the store: it lets the others read why it leaves

Json = Any
_meetings = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of `processes` this one is; coordinator: host:port where process 0 listens. None: jax asks the cluster."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


class PeerError(JaxllmError):
    """Another process left, so this one cannot go on."""

    def __init__(self, said: str, exit_code: int = EXIT_SAVED_START_AGAIN) -> None:
        super().__init__(said)
        self.exit_code = exit_code


def place_of(environment: Mapping[str, str] | None = None) -> Place | None:
    """The place that the environment gives this process; None if it is alone. ConfigError for half a place."""
    env = os.environ if environment is None else environment
    given = {name: env[name] for name in (COORDINATOR, PROCESSES, PROCESS) if env.get(name)}
    automatic = env.get(DISTRIBUTED)
    if automatic:
        if automatic != "auto" or given:
            raise ConfigError(
                f"{DISTRIBUTED}={automatic}: only 'auto' is known, and none of {COORDINATOR}, {PROCESSES}, {PROCESS} "
                f"beside it"
            )
        return Place()
    if not given:
        return None
    if missing := [name for name in (COORDINATOR, PROCESSES, PROCESS) if name not in given]:
        raise ConfigError(f"{', '.join(given)} without {', '.join(missing)}; set all three, or {DISTRIBUTED}=auto")
    host, _, port = given[COORDINATOR].rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{COORDINATOR}={given[COORDINATOR]}: write host:port, where process 0 listens")
    if not (given[PROCESSES].isdigit() and given[PROCESS].isdigit() and int(given[PROCESS]) < int(given[PROCESSES])):
        raise ConfigError(f"{PROCESS}={given[PROCESS]} of {PROCESSES}={given[PROCESSES]}: numbers, from 0 on")
    return Place(coordinator=given[COORDINATOR], processes=int(given[PROCESSES]), process=int(given[PROCESS]))


def join(place: Place) -> None:
    """Become one of the processes of a run; returns when all are there. Before anything else that starts jax.

    PeerError for an address that cannot be used. If the others do not come within minutes, one line and exit code 75.
    """
    import jax

    # Its own handler of SIGTERM would swallow the signal while a run starts; jaxllm agrees on stopping by itself.
    jax.config.update("jax_enable_preemption_service", False)
    where = "the cluster" if place.coordinator is None else f"process {place.process} at {place.coordinator}"
    patience = threading.Timer(_JOIN_SECONDS, _give_up, [where])
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            place.coordinator,
            num_processes=place.processes,
            process_id=place.process,
            # Slurm and others are asked only if that was wanted: they might know of another number of processes.
            cluster_detection_method=None if place.coordinator is None else "deactivate",
            initialization_timeout=2 * _JOIN_SECONDS,  # at which jax would abort, without a word for people
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as err:
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        raise PeerError(f"{where} cannot join the others: {reason}") from err
    finally:
        patience.cancel()


def _give_up(where: str) -> None:
    try:
        print(
            f"jaxllm: {where} has waited {_JOIN_SECONDS} s for the others; check that all processes are started, with "
            f"the same coordinator, and that its port can be reached",
            file=sys.stderr,
            flush=True,
        )
    finally:
        os._exit(EXIT_SAVED_START_AGAIN)


def count() -> int:
    """Processes of this run. Starts no devices."""
    return int(_state().num_processes or 1)


def index() -> int:
    """The number of this process, from 0. Starts no devices."""
    return int(_state().process_id or 0)


def gather(value: Json) -> list[Json] | None:
    """Every process's JSON value, by process, at process 0; None at the others, which do not wait."""
    if count() == 1:
        return [value]
    meeting = f"jaxllm/gather/{next(_meetings)}"
    if index():
        _client().key_value_set(f"{meeting}/{index()}", json.dumps(value))
        return None
    return [value, *(json.loads(_await(f"{meeting}/{i}")) for i in range(1, count()))]


def share(value: Json) -> Json:
    """Process 0's JSON value, at all. What the others give is ignored."""
    if count() == 1:
        return value
    meeting = f"jaxllm/share/{next(_meetings)}"
    if index():
        return json.loads(_await(meeting))
    _client().key_value_set(meeting, json.dumps(value))
    return value


def first(work: Callable[[], Json]) -> Json:
    """What `work` gives process 0, which alone does it, at all processes."""
    return share(work() if index() == 0 else None)


def anywhere(complaint: str | None) -> str | None:
    """The first process's complaint of those that have one, naming the process; None if none has. The same at all."""
    said = gather(complaint)
    if count() == 1:
        return complaint
    told = None if said is None else next((f"process {i}: {text}" for i, text in enumerate(said) if text), None)
    answer: str | None = share(told)
    return answer


def meet() -> None:
    """Return when all processes are here. PeerError if one has left."""
    anywhere(None)


def said_by_others() -> PeerError | None:
    """Why another process left, as far as one has said so."""
    try:
        told = _client().key_value_dir_get("jaxllm/left/")
    except Exception:  # process 0 is gone, and with it the store
        return None
    faults = {int(key.rpartition("/")[2]): json.loads(text) for key, text in told}
    for who, (line, code) in sorted(faults.items()):
        if who != index():
            return PeerError(line if line.startswith("process ") else f"process {who}: {line}", code)
    return None


def say_goodbye(line: str, exit_code: int) -> None:
    """Tell the others why this process leaves, and give them the time to hear it."""
    try:
        _client().key_value_set(f"jaxllm/left/{index()}", json.dumps([line, exit_code]))
        deadline = time.monotonic() + _LINGER_SECONDS
        while index() == 0 and time.monotonic() < deadline:
            if len(_client().key_value_dir_get("jaxllm/left/")) == count():
                return
            time.sleep(0.05)
    except Exception:  # nobody is there to be told
        return


def _await(key: str) -> str:
    """The value of a key, whenever it comes. PeerError if a process leaves meanwhile."""
    import jax

    while True:
        try:
            return str(_client().blocking_key_value_get(key, _GLANCE_MS))
        except jax.errors.JaxRuntimeError as err:
            if "DEADLINE_EXCEEDED" not in str(err):
                raise
        if (left := said_by_others()) is not None:
            raise left


def _state() -> Any:
    # jax has no public way to its key-value store, and asking jax.process_index() starts the devices.
    from jax._src import distributed

    return distributed.global_state


def _client() -> Any:
    return _state().client
