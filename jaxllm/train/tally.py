"""What processes tell each other with every step: their share of the batch's digest, whether to stop, and whether a
person asks for something.

It travels as a program of its own beside the step, dispatched with it and read with its metrics: it costs no round of
its own, and the step of one process stays what it is. All processes read the same answer at the same step, so all of
them leave, save, and do what was asked for, after the same one.
"""

import signal
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.core.mixing import Lanes, add_lanes
from jaxllm.parallel import processes
from jaxllm.train.signals import StopRequest


class Tally:
    """`told` of a step goes on its way; `heard` of it is what all processes told together."""

    def __init__(self, stop: StopRequest, mesh: Mesh, calls: Callable[[], bool] = lambda: False) -> None:
        """calls: whether something is asked for; process 0 alone is asked."""
        self._stop, self._calls = stop, calls
        self._agreed: str | None = None
        self._alone = jax.process_count() == 1
        self._called: bool = processes.first(calls)
        if not self._alone:
            own: dict[int, Any] = {}
            for device in mesh.devices.flat:
                own.setdefault(device.process_index, device)
            one_each = Mesh(np.array([own[i] for i in sorted(own)]), ("process",))
            self._mine = NamedSharding(one_each, PartitionSpec("process"))
            self._count = len(own)
            self._to_all = jax.jit(lambda x: x, out_shardings=NamedSharding(one_each, PartitionSpec()))

    def told(self, lanes: Lanes) -> Any:
        """Send this process's lanes, and what it was asked for, on their way. Returns before they arrive."""
        if self._alone:
            return lanes
        asked = 0 if self._stop.name is None else signal.Signals[self._stop.name].value
        called = jax.process_index() == 0 and self._calls()
        mine = np.array([[*lanes, asked, called]], np.uint32)
        return self._to_all(jax.make_array_from_process_local_data(self._mine, mine, (self._count, 4)))

    def heard(self, told: Any) -> Lanes:
        """The lanes of the whole batch; from here on, `asked` and `called` hold what was asked of anyone."""
        if self._alone:
            lanes: Lanes = told
            return lanes
        table = np.asarray(told)
        for process in np.flatnonzero(table[:, 2]).tolist():
            self._agreed = self._agreed or f"{signal.Signals(int(table[process, 2])).name} at process {process}"
        self._called = self._called or bool(table[:, 3].any())
        return add_lanes(*((int(a), int(b)) for a, b, *_ in table))

    @property
    def asked(self) -> str | None:
        """The signal that asks the run to stop, for people."""
        return self._stop.name if self._alone else self._agreed

    @property
    def called(self) -> bool:
        """Whether something is asked for, from when all processes know it until `attended`."""
        return self._calls() if self._alone else self._called

    def attended(self) -> None:
        """It was carried out, with nothing told in between."""
        self._called = False
