"""One failure, one line: keeps what Orbax's threads print about an error that is raised anyway off the terminal."""

import inspect
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


# How tensorstore spells what the system said, wherever in pages of context that is.
_SYSTEM = re.compile(r"OS error (\d+)|os_error_code\W+(\d+)")


def one_line(err: BaseException) -> str:
    """An error of a library as one line; of a long one the beginning and the end, and what the system said."""
    text = " ".join(f"{type(err).__name__}: {err}".split())
    if len(text) <= 300:
        return text
    short = f"{text[:140]} ... {text[-155:]}"
    codes = (int(m[1] or m[2]) for m in _SYSTEM.finditer(text))
    return short + "".join(sorted({f" ({os.strerror(code)})" for code in codes if os.strerror(code) not in short}))


@contextmanager
def said_once() -> Iterator[None]:
    """While open, traces of Orbax's threads and event loops go to the debug log.

    When one read or write fails, Orbax logs the trace in every thread that hears of it, drops the other operations and
    closes their event loop; Python prints pages about each dropped coroutine, and asyncio about each task that failed
    beside the first. The failure itself is raised as ever.
    """
    hook, loggers = sys.unraisablehook, [logging.getLogger(name) for name in ("absl", "asyncio")]

    def unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        if inspect.iscoroutine(dropped.object) or "Event loop is closed" in str(dropped.exc_value):
            _log.debug("dropped: %s", dropped.exc_value)
        else:
            hook(dropped)

    sys.unraisablehook = unraisable
    outermost = _elsewhere not in loggers[0].filters
    for logger in loggers:
        logger.addFilter(_elsewhere)
    try:
        yield
    finally:
        if outermost:
            for logger in loggers:
                logger.removeFilter(_elsewhere)
        if sys.unraisablehook is unraisable:  # nobody came after us
            sys.unraisablehook = hook


def _elsewhere(record: logging.LogRecord) -> bool:
    """False for errors that Orbax logs, and for what asyncio logs about tasks of Orbax."""
    of_orbax = "orbax" in record.pathname or (record.name == "asyncio" and "orbax" in record.getMessage())
    if not of_orbax or record.levelno < logging.ERROR:
        return True
    _log.debug("%s", record.getMessage())
    return False
