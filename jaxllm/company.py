"""A training command that is one of several processes: how it joins the others, what they agree on, how it leaves.

Process 0 alone writes the run: lease, journal, records, metrics, console. The others write their shards of checkpoints
and a log of their own, RUN/logs/process_N.log, where the native output of every process goes.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from jaxllm import __version__
from jaxllm.checkpoint.fingerprint import library_versions, xla_flags
from jaxllm.checkpoint.revision import package_sha256, source_revision
from jaxllm.core.config import differences, encode
from jaxllm.core.errors import EXIT_SAVED_START_AGAIN, RunError, last_words
from jaxllm.core.streams import divert_native
from jaxllm.core.xla_flags import VARIABLE
from jaxllm.data.config import DataRecipe
from jaxllm.data.store import Store
from jaxllm.ledger.lease import Lease, note_of
from jaxllm.origin import pin_start
from jaxllm.parallel import processes
from jaxllm.run import RunConfig
from jaxllm.workspace import Progress, claim_config, open_store

LOGS = "logs"
_SHARED_SECONDS = 20.0  # a network file system shows a new file to other hosts within its attribute cache's time
_COMMAND_SECONDS = 10.0  # how long a command may hold a run that is to be trained
_MOST = 3  # differences that a line names
# What is in the text of an error that the death of another process causes, by whoever carried the bytes.
_LOST = (
    "gloo",
    "nccl",
    "coordination service",
    "coordinationservice",
    "connection reset",
    "connection closed",
    "socket closed",
    "barrier timed out",
    "heartbeat",
)


@contextmanager
def joined(folder: Path) -> Iterator[None]:
    """Inside, this process is one of those that the environment says there are; does nothing for one alone.

    An error inside ends the process at once, after one line for people: the ordinary way out would wait for processes
    that may be dead, in threads, in locks of libraries and in jax.distributed itself.
    """
    place = processes.place_of()
    if place is None:
        yield
        return
    try:
        if place.process is not None:
            divert_native(log_of(folder, place.process))
        processes.join(place)
        if place.process is None:
            divert_native(log_of(folder, processes.index()))
        yield
        import jax

        jax.distributed.shutdown()  # together: process 0 is who the others talk to
    except BaseException as err:
        _leave(err)


def log_of(folder: Path, process: int) -> Path:
    """The log of a process."""
    return folder / LOGS / f"process_{process}.log"


def agree_on_code(run: RunConfig, stop_at: int | None) -> None:
    """RunError, in all processes, unless they run the same config to the same step with the same code; it names who
    differs in what."""
    if processes.count() == 1:
        return
    revision = source_revision()
    _agree(
        {
            "config": encode(run),
            "--stop-at": stop_at,
            "jaxllm": __version__,
            "source": {"commit": revision.commit, "sha256": package_sha256()},
            "python": ".".join(map(str, sys.version_info[:2])),
            "libraries": library_versions(),
            **{name: list(xla_flags(os.environ.get(name, ""))) for name in sorted({*VARIABLE.values()})},
        },
        "start all of them with the same command, code and environment",
    )


def open_together(run: RunConfig, folder: Path, progress: Progress) -> tuple[RunConfig, Store]:
    """`workspace.open_store` of a run claimed and pinned, by process 0 first: it prepares data, the others find it.

    RunError, in all processes, unless what each has opened is the same: store, tokenizer, the run it starts from.
    """

    def opened(pinned: str | None) -> tuple[RunConfig, Store]:
        claimed = pin_start(claim_config(run, folder))
        if pinned is not None and claimed.data.manifest is None and isinstance(run.data.store, DataRecipe):
            # The others need no input files, only what was made of them.
            claimed = replace(claimed, data=replace(claimed.data, manifest=pinned))
        return open_store(claimed, folder, progress)

    made = opened(None) if processes.index() == 0 else None
    pinned = processes.share(None if made is None else made[1].manifest_sha256)
    if made is None:
        try:
            made = opened(pinned)
        except RunError as err:
            raise RunError(f"{err} (process 0 has it: io.data_cache is on no file system that all share?)") from None
    if processes.count() > 1:
        claimed, store = made
        found = {"data.manifest": store.manifest_sha256, "tokenizer": store.tokenizer_identity}
        remedy = "give all of them the same files, best on a file system that they share"
        _agree(found | {"start": encode(claimed.start)}, remedy)
    return made


def _agree(mine: Any, remedy: str) -> None:
    said = processes.gather(mine)
    if (answer := processes.share(None if said is None else _odd_one(said, remedy))) is not None:
        raise RunError(answer)


def _odd_one(said: Sequence[Any], remedy: str) -> str | None:
    """Who differs from process 0, and in what."""
    for i, other in enumerate(said):
        if found := differences(said[0], other):
            more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
            return f"process {i} differs from process 0 in {'; '.join(found[:_MOST])}{more}; {remedy}"
    return None


@contextmanager
def held(folder: Path) -> Iterator[Lease | None]:
    """The lease of the run, at process 0; the others see that they look at the same folder as it does.

    RunError if somebody else holds the run, or a process does not see what process 0 writes.
    """
    if processes.index() == 0:
        with Lease.acquire(folder, patience=_COMMAND_SECONDS) as lease:
            processes.share(lease.holder)
            processes.meet()
            yield lease
        return
    holder = processes.share(None)
    deadline = time.monotonic() + _SHARED_SECONDS
    while note_of(folder) != holder:
        if time.monotonic() > deadline:
            raise RunError(
                f"process {processes.index()} does not find in {folder} what process 0 wrote there; put io.root on a "
                f"file system that all processes share"
            )
        time.sleep(0.1)
    processes.meet()
    yield None


def _leave(err: BaseException) -> NoReturn:
    """End this process because of an error, at once."""
    known = isinstance(err, processes.PeerError)
    lost = None if known else next((str(e) for e in _chain(err) if _is_loss(e)), None)
    said = None if lost is None else processes.said_by_others()
    words = last_words(err)
    if lost is not None:
        line = str(said) if said else f"another process is gone ({lost.splitlines()[0][:200]})"
        words = f"process {processes.index()} leaves: {line}", said.exit_code if said else EXIT_SAVED_START_AGAIN
    elif isinstance(err, KeyboardInterrupt):
        words = "interrupted", 130
    if words is None or lost is not None:
        with suppress(OSError):  # where only the log is for people to read, in case that it was no loss after all
            traceback.print_exception(err, file=None if lost is None else sys.__stderr__)
    if words is None:
        words = f"{type(err).__name__}: {err}".splitlines()[0], 1
    line, code = words
    # Of a process that just died, who owns the processes tells; all others saying so would only hide it.
    place = sys.__stderr__ if lost is not None and said is None else sys.stderr
    try:
        print(f"jaxllm: {line}", file=place, flush=True)
        sys.stdout.flush()
        if lost is None:
            processes.say_goodbye(line, code)
    finally:  # even if nobody reads any more: the ordinary way out would wait in jax.distributed
        os._exit(code)


def _chain(err: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    seen: BaseException | None = err
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_loss(err: BaseException) -> bool:
    """Whether an error is what a collective, or jax.distributed, says when another process is gone."""
    text = str(err).lower()
    return isinstance(err, (RuntimeError, ValueError)) and any(word in text for word in _LOST)
