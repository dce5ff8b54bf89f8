"""One failure, one line: keeps what Orbax's threads print about an error that is raised anyway off the terminal."""

import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


def one_line(err: BaseException) -> str:
    """An error of a library as one line; of a long one the beginning and the end, where the cause is."""
    text = " ".join(f"{type(err).__name__}: {err}".split())
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-155:]}"


@contextmanager
def said_once() -> Iterator[None]:
    """While open, traces of Orbax's threads and event loops go to the debug log.

    When one read or write fails, Orbax logs the trace in every thread that hears of it, drops the other operations and
    closes their event loop; Python prints pages about each dropped coroutine. The failure itself is raised as ever.
    """
    hook, absl = sys.unraisablehook, logging.getLogger("absl")

    def unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        if inspect.iscoroutine(dropped.object) or "Event loop is closed" in str(dropped.exc_value):
            _log.debug("dropped: %s", dropped.exc_value)
        else:
            hook(dropped)

    sys.unraisablehook = unraisable
    outermost = _elsewhere not in absl.filters
    absl.addFilter(_elsewhere)
    try:
        yield
    finally:
        if outermost:
            absl.removeFilter(_elsewhere)
        if sys.unraisablehook is unraisable:  # nobody came after us
            sys.unraisablehook = hook


def _elsewhere(record: logging.LogRecord) -> bool:
    """False for errors that Orbax logs."""
    if "orbax" not in record.pathname or record.levelno < logging.ERROR:
        return True
    _log.debug("%s", record.getMessage())
    return False
