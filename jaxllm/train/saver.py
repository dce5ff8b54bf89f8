"""Checkpoints of a run: records first, then the state with its digest, then the journal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxllm.checkpoint.manifest import Manifest
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.core.config import Json
from jaxllm.ledger.commits import commit
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.recorder import Recorder
from jaxllm.train.state import State

Digests = dict[str, str]
Items = dict[str, Any]


@dataclass(kw_only=True)
class Saver:
    """Saves a state so that it can be trusted later.

    digest: state items -> digest per array. describe: (step, items, digests) -> what the checkpoint says about itself.
    cursor: step -> where the data goes on. still_ours: raises if another process has taken the run.
    """

    store: CheckpointStore
    recorder: Recorder
    journal: Journal
    digest: Callable[[Items], Digests]
    describe: Callable[[int, Items, Digests], Manifest]
    cursor: Callable[[int], dict[str, Json]]
    still_ours: Callable[[], None]
    last: Manifest | None = None
    _pending: dict[int, Manifest] = field(default_factory=dict)

    def save(self, step: int, state: State) -> None:
        """Start saving; returns when the state may be donated again. Records up to `step` are durable first."""
        self.wait()
        self.still_ours()
        self.recorder.durable()
        items = state.items()
        manifest = self.describe(step, items, self.digest(items))
        self.store.save(step, **items, cursor=self.cursor(step), meta=manifest)
        self._pending[step] = manifest

    def announce(self) -> None:
        """Journal the checkpoints that have been committed since the last call."""
        for step in self.store.finished():
            self.last = self._pending.pop(step)
            commit(self.journal, self.last)

    def wait(self) -> None:
        """Return when everything is committed and journaled."""
        self.store.wait()
        self.announce()
