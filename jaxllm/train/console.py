"""Progress for people: one live line on a terminal, a log line now and then elsewhere."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxllm.ledger.records import StepRecord
from jaxllm.ledger.scores import Score
from jaxllm.train.guard import Note
from jaxllm.train.observe import Observation


class ConsoleObserver:
    """step, loss, tokens/s, MFU, time left."""

    def __init__(self, console: Console, *, total: int, start: int, every: int) -> None:
        self._console, self._every, self._total = console, every, total
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("loss {task.fields[loss]}  {task.fields[speed]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._progress.add_task("train", total=total, completed=start, loss="-", speed="compiling")
            self._progress.start()

    def stepped(self, seen: Observation) -> None:
        r = seen.record
        if self._progress is not None:
            self._progress.update(
                self._task, completed=r.step, description=r.stage, loss=_number(r.loss, ".3f"), speed=_speed(seen)
            )
        if r.step % self._every == 0 or r.step == self._total or r.refused:
            left = "" if seen.seconds_per_step is None else _left(seen.seconds_per_step * (self._total - r.step))
            self._console.print(
                f"step {r.step:>{len(str(self._total))}}/{self._total}  {r.stage}  loss {_number(r.loss, '.4f')}  "
                f"grad {_number(r.grad_norm, '.3f')}  lr {_number(r.lr, '.2e')}  {_speed(seen)}{left}"
                + (_refusal(r) if r.refused else ""),
                highlight=False,
            )

    def evaluated(self, step: int, scores: Sequence[Score]) -> None:
        text = "   ".join(f"{s.source} {s.bits_per_byte:.3f} bits/byte" for s in scores)
        self._console.print(f"step {step}  held out: {text}", highlight=False)

    def saved(self, step: int) -> None:
        pass

    def noticed(self, note: Note) -> None:
        what = ", ".join(f"{name} {value}" for name, value in note.fields.items() if value is not None)
        self._console.print(f"{note.event}: {what}", style="bold red" if note.event in ("spike", "selfcheck") else None)

    def went_back(self, step: int, why: str) -> None:
        self._console.print(f"back to step {step}: {why}", style="bold red", highlight=False, markup=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _refusal(record: StepRecord) -> str:
    finite = record.loss is not None and record.grad_norm is not None
    return "  update refused: " + ("gradient too large" if finite else "not finite")


def _speed(seen: Observation) -> str:
    if seen.tokens_per_second is None:
        return "compiling"
    mfu = "" if seen.mfu is None else f"  MFU {seen.mfu:.0%}"
    each = seen.tokens_per_second_per_device
    per_device = "" if each is None or each == seen.tokens_per_second else f" ({each:,.0f} per device)"
    return f"{seen.tokens_per_second:,.0f} tokens/s{per_device}{mfu}"


def _left(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"  {hours}:{m:02}:{s:02} left" if hours else f"  {m}:{s:02} left"
