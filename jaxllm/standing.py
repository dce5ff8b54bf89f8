"""Where a run stands in its history, and how it goes back: state, data, records and judge that go on from there."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.assembly import Assembly
from jaxllm.checkpoint import layout
from jaxllm.checkpoint.reader import Restored
from jaxllm.checkpoint.retention import is_save_step
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.chronicle import Chronicle
from jaxllm.core.errors import CheckpointError, RunError
from jaxllm.data.edits import Edit, Edits, Kind, edits_of_steps, encode_edits
from jaxllm.data.feed import BatchSource, Feed
from jaxllm.data.steps import StepTable
from jaxllm.data.store import Store
from jaxllm.data.stream import stream_of_run
from jaxllm.ledger.bystander import SilentRecorder
from jaxllm.ledger.fold import present
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.lineage import Lineages, deciding
from jaxllm.ledger.recorder import Recorder
from jaxllm.origin import first_state
from jaxllm.parallel import processes
from jaxllm.parallel.owners import owned_rows
from jaxllm.run import RunConfig
from jaxllm.train.config import Forked
from jaxllm.train.engine import Engine
from jaxllm.train.faults import Faults
from jaxllm.train.guard import Back, Judge, Seen, lookback, went_back
from jaxllm.train.state import State


class Standing:
    """A place in a run's history that a process goes on from. Implements jaxllm.train.engine.Rewinding.

    silent: this process is not the one that writes the run. What hangs on the place (lineages, table, feed, recorder,
    judge, digest of the newest checkpoint) is there after `take_up`, and another one after going back.
    """

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        store: Store,
        parts: Assembly,
        journal: Journal,
        checkpoints: CheckpointStore,
        chronicle: Chronicle,
        *,
        silent: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.run, self.folder, self.store, self.parts = run, folder, store, parts
        self.journal, self.checkpoints, self.chronicle = journal, checkpoints, chronicle
        self._silent, self._warn = silent, warn
        self.digest: str | None = None
        self.stream, self.table = stream_of_run(run.data, run.seed, store)
        self.lineages = Lineages()
        self.feed: Feed | None = None
        self.recorder: Recorder = SilentRecorder()
        self.judge = Judge(run.guard)
        self.faults: Faults | None = None

    def take_up(self) -> tuple[State, int, Restored | None]:
        """(state, finished updates, the checkpoint that they are from): the newest point of the live lineage.

        Checkpoints of lineages that were left are taken out of the way first, as far as a killed process had not.
        """
        events = processes.first(lambda: deciding(self.journal.events))
        self.lineages = Lineages.of(events)
        self.close()
        processes.first(self._abandon)
        state, step, restored = self._state()
        self.feed = _feed(self._source(), step, restored, self.run.io.prefetch)
        self.recorder = self._records(step, restored)
        self.judge = Judge(self.run.guard, self._seen_before(step), went_back(events))
        return state, step, restored

    def close(self) -> None:
        """Stop reading ahead, make records durable. May be called again."""
        if self.feed is not None:
            self.feed.close()
        self.recorder.close()

    def cursor(self, step: int) -> dict[str, Any]:
        """Where the data goes on after `step`, as a checkpoint keeps it."""
        assert self.feed is not None, "nothing was taken up"
        return {"step": step, "position": self.feed.cursor, "feed": self.feed.state()}

    @property
    def journaled_stages(self) -> set[str]:
        """The stages whose beginning the live lineage has journaled already."""
        begun = (e for e in self.journal.events if e["event"] == "stage")
        return {e["stage"] for e in begun if e["lineage"] == self.lineages.owner(e["step"])}

    # ---- going back --------------------------------------------------------------------------------------------------

    def before(self, step: int) -> int | None:
        """The newest scheduled checkpoint before `step`; without one, where the run began.

        What a stop saved off schedule comes last: a run that was stopped goes back to where one that was not would.
        None if there is none any more, though there have been.
        """

        def found() -> int | None:
            known = {c.step for c in present(self.journal.events).checkpoints_of()}
            scheduled = {s for s in known if is_save_step(self.run.checkpoints, s) or s == self.lineages.origin}
            there = [s for s in self.checkpoints.steps() if s < step]
            if not any(s < step for s in scheduled) and not self.lineages.origin:
                return 0
            return max(there, key=lambda s: (s in scheduled, s), default=None)

        to: int | None = processes.first(found)
        return to

    def go_back(self, engine: Engine, back: Back, to: int) -> tuple[State, int]:
        """Open a new lineage after step `to`, and give the engine what goes on from there.

        One event says all of it. Whoever is killed after it was written finds it at the next start, and ends up in the
        same place by the same way.
        """
        edits, remark = edits_of(self.table, self.stream.edits, back, to)
        self.journal.append(
            "rollback",
            lineage=self.lineages.live + 1,
            parent=self.lineages.live,
            step=to,
            last=back.last,
            edits=encode_edits(edits),
            why=back.why + remark,
            by="guard",
        )
        return self.reopen(engine)

    def reopen(self, engine: Engine) -> tuple[State, int]:
        """Go on from where the journal says that the run has gone back to."""
        verified, diverged = self.recorder.verified, self.recorder.diverged
        state, step, _ = self.take_up()
        self.recorder.verified += verified
        self.recorder.diverged += diverged
        engine.saver.last = None  # of what was left
        self.equip(engine)
        return state, step

    def read_on(self, engine: Engine, step: int) -> None:
        """Go on after `step` with the data that the journal says, which was edited behind it: what was read ahead was
        read for nothing."""
        self.lineages = Lineages.of(processes.first(lambda: deciding(self.journal.events)))
        if self.feed is not None:
            self.feed.close()
        self.feed = Feed(self._source(), step, self.run.io.prefetch)
        self.equip(engine)

    def equip(self, engine: Engine) -> None:
        """Let `engine` go on from here."""
        assert self.feed is not None, "nothing was taken up"
        engine.feed, engine.lineages = self.feed, self.lineages
        engine.recorder = engine.saver.recorder = self.recorder
        engine.faults = self.faults
        engine.judging, engine.journaled_stages = self.judge, self.journaled_stages

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _source(self) -> BatchSource:
        """The data of the live lineage, with its faults."""
        self.stream, self.table = stream_of_run(self.run.data, self.run.seed, self.store, self.lineages.edits())
        counted = partial(owned_rows, self.parts.mesh)
        self.faults = weigh = None
        if self.run.faults:
            self.faults = Faults(self.run.faults, self.stream, self.table, glitches(self.run, self.lineages))
            weigh = self.faults.weights if self.faults.of_batches else None
        return BatchSource(self.store, self.stream, self.table, self.run.data, self.parts.rows, counted, weigh)

    def _abandon(self) -> None:
        for lineage, step in layout.abandon(
            self.checkpoints.folder, self.lineages.owner, self.run.guard.keep_abandoned
        ):
            where = f"checkpoints/lineage-{lineage}/" if self.run.guard.keep_abandoned else "nowhere"
            self.chronicle.say(f"checkpoint {step} of lineage {lineage} went {where}", False)

    def _state(self) -> tuple[State, int, Restored | None]:
        abstract = self.parts.abstract_state
        restored = self.checkpoints.restore_latest(
            abstract.items(),
            self.parts.digest,
            on_bad=self.chronicle.falls_back,
            anew=self.lineages.path()[0].lineage > 0,  # it went back to its beginning
        )
        found = None if restored is None else restored.manifest
        processes.first(lambda: self.chronicle.check_history(found, str(self.folder)))
        if restored is None:
            self.digest = None
            return first_state(self.run, self.parts), 0, None
        self.digest = restored.manifest.state_digest
        return abstract.with_items(restored.items), restored.step, restored

    def _records(self, step: int, restored: Restored | None) -> Recorder:
        if self._silent:
            return SilentRecorder()
        return Recorder(
            self.folder,
            self.journal,
            lineages=self.lineages,
            positions=self.table.positions,
            start=step,
            head=None if restored is None else restored.manifest.steps_head,
            warn=self._warn,
        )

    def _seen_before(self, step: int) -> list[Seen]:
        """What the judge goes by, the same in all processes. A fork has what its parent saw last from its journal."""

        def read() -> list[Any]:
            inherited = [Seen(*n) for e in self.journal.events if e["event"] == "fork" for n in e.get("seen", ())]
            records = self.recorder.recorded_after(step - lookback(self.run.guard))
            return [*inherited, *(Seen(r.step, r.loss, r.grad_norm, r.refused) for r in records if r.step <= step)]

        return [Seen(*numbers) for numbers in processes.first(read)]


def glitches(run: RunConfig, lineages: Lineages) -> Callable[[int], bool]:
    """Whether transient faults strike at a step: in lineage 0 of the run itself, or of the one that it is a fork of."""
    if isinstance(run.start, Forked) and run.start.lineage:
        return lambda step: False
    return lambda step: lineages.owner(step) == 0


def edits_of(table: StepTable, so_far: Edits, back: Back, to: int) -> tuple[tuple[Edit, ...], str]:
    """What going back to step `to` does to the stream, and a remark for the journal where it is not what was asked.

    so_far: the edits that the stream has already.
    """
    data, _, what = back.data.partition("_")
    if data == "replay":
        return (), ""
    kind: Kind = "defer" if data == "defer" else "skip"
    first, last = (back.first, back.first) if what == "batch" else (to + 1, back.last)
    # What was deferred before and is as bad again would only change places with what stands behind it.
    if kind == "defer" and so_far.deferred(np.arange(table.span(first).first, table.consumed(last))).any():
        return edits_of_steps(table, "skip", first, last), "; left out, having been deferred before"
    try:
        return edits_of_steps(table, kind, first, last), ""
    except RunError:
        if kind == "skip":
            raise
        # There is no later place in the stage; going on with the same data would only bring the spike back.
        return edits_of_steps(table, "skip", first, last), "; left out and not deferred, at the end of its stage"


def _feed(source: BatchSource, step: int, restored: Restored | None, prefetch: int) -> Feed:
    if restored is None:
        return Feed(source, prefetch=prefetch)
    saved = restored.cursor
    if saved["step"] != step:
        raise CheckpointError(f"checkpoint {step} has a cursor of step {saved['step']}; use the one before it")
    return Feed.restore(source, saved["feed"], cursor=saved["position"], prefetch=prefetch)
