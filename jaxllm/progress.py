"""What long work shows to people: one bar per phase on a terminal, a line per phase elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[str, int, int], None]  # phase, done, total


_WIDTH = 160  # of output that goes to a file or a pipe, where nothing is wrapped for a screen


def people(stderr: bool = False, quiet: bool = False) -> Console:
    """The console that people read; `quiet` where another process speaks to them."""
    console = Console(stderr=stderr, highlight=False, quiet=quiet)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_WIDTH, quiet=quiet)


@contextmanager
def phase_progress(console: Console | None = None) -> Iterator[Report]:
    """A callback for (phase, done, total); calls with the same phase move the same bar. Everything goes to stderr, so
    that stdout stays for results."""
    console = console or people(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def line(phase: str, done: int, total: int) -> None:
            if phase not in seen:
                seen.add(phase)
                console.print(f"{phase} ...", highlight=False)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, int] = {}

        def bar(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = int(progress.add_task(phase, total=total))
            progress.update(tasks[phase], completed=done, total=total)  # type: ignore[arg-type]

        yield bar
