"""Checkpoints in the journal: written once, by whoever finds one that its own process could not journal any more."""

from typing import Protocol

from jaxllm.ledger.journal import Journal


class Saved(Protocol):
    """What a checkpoint's manifest says."""

    @property
    def lineage(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def state_digest(self) -> str: ...
    @property
    def tokens(self) -> int: ...


def commit(journal: Journal, saved: Saved) -> None:
    """Journal a checkpoint that is whole."""
    journal.append("checkpoint", lineage=saved.lineage, step=saved.step, digest=saved.state_digest, tokens=saved.tokens)


def make_good(journal: Journal, saved: Saved) -> None:
    """Journal a checkpoint unless it is there: its process may have been killed in between."""
    key = (saved.lineage, saved.step)
    if not any(e["event"] == "checkpoint" and (e["lineage"], e["step"]) == key for e in journal.events):
        commit(journal, saved)
