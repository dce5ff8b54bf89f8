"""SIGTERM and SIGINT become a request that the loop reads between steps; a second one ends the process at once."""

import os
import signal
from types import FrameType, TracebackType

_ASKED = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Context manager. `name` is None until a signal came."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for asked in _ASKED:
            self._before[asked] = signal.signal(asked, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for asked, handler in self._before.items():
            signal.signal(asked, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None:
            os._exit(128 + number)
        self.name = signal.Signals(number).name
