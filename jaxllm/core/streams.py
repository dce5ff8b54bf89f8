"""What native code prints goes to a log, what Python prints stays where people look."""

import faulthandler
import os
import sys
from pathlib import Path
from typing import TextIO

from jaxllm.core.files import make_folder


def divert_native(log: Path) -> None:
    """Append what libraries write to the process's own stdout and stderr (gloo's chatter, stacks of a C++ abort) to
    `log`, with the stacks of Python threads if it dies of a fatal signal. `sys.stdout` and `sys.stderr` go on where
    they went. For the rest of the process's life."""
    make_folder(log.parent)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = _elsewhere(sys.stdout, 1), _elsewhere(sys.stderr, 2)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    faulthandler.enable(file=2, all_threads=True)


def _elsewhere(stream: TextIO, descriptor: int) -> TextIO:
    """A text stream like `stream` to the place that `descriptor` leads to now."""
    return open(os.dup(descriptor), "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False)
