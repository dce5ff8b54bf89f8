"""Checkpoints of a run: records first, then the state with its digest, then the journal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxllm.checkpoint.manifest import Meta
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.recorder import Recorder
from jaxllm.train.state import State

Digests = dict[str, str]


@dataclass(kw_only=True)
class Saver:
    """Saves a state so that it can be trusted later.

    describe: (step, digests per array) -> what the checkpoint says about itself.
    """

    store: CheckpointStore
    recorder: Recorder
    journal: Journal
    digest: Callable[[dict[str, Any]], Digests]
    describe: Callable[[int, Digests], Meta]
    cursor: Callable[[int], dict[str, Any]]

    def __post_init__(self) -> None:
        self._pending: dict[int, Meta] = {}

    def save(self, step: int, state: State) -> None:
        """Start saving; returns when the state's buffers may be donated again. Records up to `step` are durable first."""
        self.recorder.durable()
        items = state.items()
        meta = self.describe(step, self.digest(items))
        self._pending[step] = meta
        self.store.save(step, items=items, cursor=self.cursor(step), meta=meta)
        self.announce()

    def announce(self) -> None:
        """Journal the checkpoints that have been committed since the last call."""
        for step in self.store.finished():
            meta = self._pending.pop(step)
            self.journal.append("checkpoint", lineage=meta.lineage, step=step, digest=meta.state_digest, tokens=meta.tokens)

    def wait(self) -> None:
        """Return when everything is committed and journaled."""
        self.store.wait()
        self.announce()
