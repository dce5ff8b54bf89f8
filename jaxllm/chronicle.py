"""What a training process writes about itself into the journal: how it began, what it passed over, how it ended."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from jaxllm import __version__
from jaxllm.checkpoint.fingerprint import Fingerprint, decode, differences, encode
from jaxllm.checkpoint.manifest import Manifest
from jaxllm.checkpoint.revision import Revision
from jaxllm.core.errors import CheckpointError, LedgerError
from jaxllm.ledger.commits import make_good
from jaxllm.ledger.fold import present
from jaxllm.ledger.journal import Journal, holds
from jaxllm.ledger.lineage import Lineages
from jaxllm.origin import origin
from jaxllm.run import RunConfig, identity_hash
from jaxllm.train.loop import Finished, Outcome, Paused, Stopped


@dataclass(kw_only=True)
class Chronicle:
    """The events of one process. `say` tells a person what has consequences: (text, whether it is alarming). hangs:
    what the watchdogs of earlier processes noted."""

    journal: Journal
    run: RunConfig
    fence: int
    environment: Fingerprint
    revision: Revision
    say: Callable[[str, bool], None]
    hangs: Iterable[Mapping[str, Any]] = ()

    @property
    def lineages(self) -> Lineages:
        """As the journal stands."""
        return Lineages.of(self.journal.events)

    def falls_back(self, step: int, why: str) -> None:
        """A checkpoint is passed over."""
        self.journal.append("fallback", lineage=self.lineages.owner(step), step=step, why=why)
        self.say(f"checkpoint {step} cannot be used ({why}); the one before it is taken", True)

    def check_history(self, restored: Manifest | None, place: str) -> None:
        """Hold the journal against the checkpoint that is to be continued, None if there is none.

        CheckpointError, LedgerError: one of them lacks what the other one knows of.
        """
        last = present(self.journal.events).last_checkpoint
        if restored is None:
            if last is not None:
                raise CheckpointError(
                    f"{place}: the journal names checkpoint {last.step}, but there is none; bring checkpoints/ "
                    f"back, or start under another name"
                )
            return
        if restored.journal_head is None or not holds(self.journal.events, restored.journal_head):
            raise LedgerError(
                f"{place}: journal.jsonl does not hold the event that checkpoint {restored.step} was saved after; "
                f"bring the journal of this run back"
            )
        if last is not None and last.step > restored.step:
            self.falls_back(last.step, "it is missing")

    def begins(self, restored: Manifest | None, config_changes: list[str]) -> None:
        """How this process began, after what the one before it could not write any more."""
        events = self.journal.events
        lineage = self.lineages.live
        if restored is not None:
            make_good(self.journal, restored)
        common: dict[str, Any] = {
            "lineage": lineage,
            "identity": identity_hash(self.run),
            "fingerprint": self.environment.sha256,
            "fence": self.fence,
            "environment": encode(self.environment),
            "source": {"commit": self.revision.commit, "dirty": self.revision.dirty, "jaxllm": __version__},
        }
        if not events:
            self.journal.append("start", **common, **origin(self.run))
            return
        step = 0 if restored is None else restored.step
        for note in self.hangs:
            why = f"no end for {note['seconds']:g} s, stacks in {note['stacks']}"
            self.journal.append("hang", lineage=lineage, step=note["step"], process=note["process"], why=why)
        # Before `resume`: after it, the next process would compare itself with this one and see no change.
        if moved := self._numerics_changes():
            self.journal.append(
                "numerics", lineage=lineage, step=step, fingerprint=self.environment.sha256, changes=moved
            )
            self.say(f"from step {step} on, equal to rounding and not bitwise: {'; '.join(moved)}", False)
        self.journal.append("resume", step=step, config_changes=config_changes, **common)

    def ends(self, outcome: Outcome, digest: str | None) -> None:
        """How this process ended; digest: of the state after the last step."""
        lineage = self.lineages.live
        match outcome:
            case Finished():
                self.journal.append("finish", lineage=lineage, step=self.run.steps, digest=digest)
            case Paused(step=step, why=why):
                self.journal.append("stop", lineage=lineage, step=step, why=why)
            case Stopped(step=step, why=why):
                self.journal.append("guard_stop", lineage=lineage, step=step, why=why)
            case _:
                assert_never(outcome)

    def _numerics_changes(self) -> list[str]:
        """How this process's numerics differ from those of the process before it."""
        last = next(e for e in reversed(self.journal.events) if e["event"] in ("start", "resume", "fork"))
        if last["fingerprint"] == self.environment.sha256:
            return []
        return differences(decode(last["environment"]), self.environment)
