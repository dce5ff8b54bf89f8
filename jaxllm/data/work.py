"""Restartable work: tasks whose results appear under their final name at once, done by one or several processes.

A task is done when its result exists; a killed program therefore starts again where it was, and the same result may be
written twice without harm. Workers are started by spawn, have one tokenizer thread each, and leave when their parent
does, however it went.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from jaxllm.core.errors import DataError
from jaxllm.core.files import fsync_dir


class Progress(Protocol):
    """Told how far a phase is: `done` of `total`, in units that only the phase knows. Called from the main process."""

    def __call__(self, phase: str, done: int, total: int, /) -> None: ...


@dataclass(frozen=True)
class Task:
    """`run(*args)` leaves the file `done`. `weight` is what it counts for in the progress. Both travel by pickle."""

    done: Path
    run: Callable[..., None]
    args: tuple[Any, ...]
    weight: int


def silent(phase: str, done: int, total: int) -> None:
    """The progress nobody looks at."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A path to write to, durable under the name `path` when the block ends, gone if it fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


class Workers:
    """`count` processes that do tasks; one alone is this process itself. Use as a context manager.

    With `tokenizer_threads` above one, even a single worker is a process of its own: this one's threads are not ours.
    """

    def __init__(self, count: int, progress: Progress, *, tokenizer_threads: int = 1) -> None:
        self._count = count
        self._progress = progress
        self._threads = tokenizer_threads
        self._pool: ProcessPoolExecutor | None = None
        self._leash: Connection | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            if error is not None and self._leash is not None:
                self._leash.close()  # workers leave at once: what they were at is not needed, or done again later
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._leash is not None:
            self._leash.close()

    def run(self, phase: str, tasks: Sequence[Task]) -> None:
        """Do the tasks that are not done. The first error ends the phase; finished tasks stay done."""
        total = sum(t.weight for t in tasks)
        todo = [t for t in tasks if not t.done.exists()]
        done = total - sum(t.weight for t in todo)
        self._progress(phase, done, total)
        for task in self._alone(todo) if self._count == self._threads == 1 else self._together(todo):
            done += task.weight
            self._progress(phase, done, total)

    def _alone(self, tasks: Sequence[Task]) -> Iterator[Task]:
        for task in tasks:
            task.run(*task.args)
            yield task

    def _together(self, tasks: Sequence[Task]) -> Iterator[Task]:
        if not tasks:
            return
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            held, self._leash = spawn.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self._count, spawn, _start_worker, (self._threads, held))
        waiting = iter(tasks)
        running: dict[Future[None], Task] = {}
        try:
            while True:
                while len(running) < 2 * self._count and (task := next(waiting, None)) is not None:
                    running[self._pool.submit(task.run, *task.args)] = task
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    future.result()
                    yield task
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, perhaps for want of memory; try again with fewer workers"
            ) from None


def _start_worker(threads: int, leash: Connection) -> None:
    # Read by the tokenizers library when it first makes threads: it must not have been imported by now.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and stops us
    threading.Thread(target=_leave_with_parent, args=(leash,), daemon=True).start()


def _leave_with_parent(leash: Connection) -> None:
    """Without this, the workers of a killed parent would wait for its next task for ever."""
    wait_for([leash])  # nothing is ever sent: it is ready when the parent's end is closed, by it or by its death
    os._exit(1)
