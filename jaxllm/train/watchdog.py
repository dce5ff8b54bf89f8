"""Ends a process whose step hangs: a dead network, a device that does not answer, a read that never returns."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxllm.core.errors import EXIT_SAVED_START_AGAIN
from jaxllm.core.files import make_folder, read_json, write_json_atomic

_NOTE = "hang_process_{}.json"
_WRITING_SECONDS = 10.0  # what hangs may be the file system, or who reads stderr: then it ends without a trace of it


class Watchdog:
    """A thread that ends the process if `watch` is not called again, or `rest`, within `seconds`.

    Use as a context manager. None never barks. It leaves the stacks of all threads and a note in `folder`, one line on
    stderr, and exit code 75: what was saved stands, and the same command goes on from it.
    """

    def __init__(self, seconds: float | None, folder: Path, process: int) -> None:
        self._seconds, self._folder, self._process = seconds, folder, process
        self._due: float | None = None
        self._step = 0
        self._changed = threading.Condition()
        self._over = self._written = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def watch(self, step: int) -> None:
        """The loop has come to something that belongs to `step`."""
        if self._seconds is not None:
            self._set(time.monotonic() + self._seconds, step)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is watched inside: what takes long here (compiling, evaluating, saving) is no step."""
        self._set(None, self._step)
        try:
            yield
        finally:
            self.watch(self._step)

    def _set(self, due: float | None, step: int) -> None:
        # No notice to the thread: it wakes when the old limit is over and finds the new one.
        with self._changed:
            self._due, self._step = due, step

    def _run(self) -> None:
        assert self._seconds is not None
        with self._changed:
            while not self._over:
                now = time.monotonic()
                if self._due is not None and now >= self._due:
                    break
                self._changed.wait(self._seconds if self._due is None else self._due - now)
            if self._over:
                return
        for work in (self._write, self._tell):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            thread.join(_WRITING_SECONDS)
        os._exit(EXIT_SAVED_START_AGAIN)

    @property
    def _stacks(self) -> Path:
        return self._folder / f"hang_process_{self._process}_step_{self._step}.txt"

    def _write(self) -> None:
        make_folder(self._folder)
        with self._stacks.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        note = {"step": self._step, "process": self._process, "seconds": self._seconds, "stacks": self._stacks.name}
        write_json_atomic(self._folder / _NOTE.format(self._process), note)
        self._written = True

    def _tell(self) -> None:
        where = f"are in {self._stacks}" if self._written else f"could not be written to {self._stacks}"
        print(
            f"jaxllm: process {self._process}: step {self._step} has not ended for {self._seconds:g} s "
            f"(guard.watchdog_seconds); the stacks of all threads {where}; the same command goes on from the last "
            f"checkpoint",
            file=sys.stderr,
            flush=True,
        )


def hangs(folder: Path) -> Iterator[dict[str, Any]]:
    """The notes of processes that the watchdog ended and that nobody has read yet; each is gone once the next is asked
    for, so that a reader that dies in between finds it again."""
    for path in sorted(folder.glob(_NOTE.format("*"))):
        yield read_json(path)
        path.unlink()
