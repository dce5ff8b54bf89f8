"""The trainer's side of what is asked of a running run: taken up between two steps, journaled, answered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllm.control import settle
from jaxllm.core.errors import RunError
from jaxllm.ledger import requests
from jaxllm.ledger.fold import sentence
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.requests import Mailbox
from jaxllm.parallel import processes
from jaxllm.run import RunConfig
from jaxllm.standing import Standing
from jaxllm.train.engine import Engine


class Attendant:
    """Carries out requests for all processes of a run. Implements jaxllm.train.engine.Attending.

    say: tells a person what has consequences (text, whether it is alarming). silent: this process is not the one that
    writes the run; it hears from that one what was decided.
    """

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        journal: Journal,
        standing: Standing,
        *,
        silent: bool,
        say: Callable[[str, bool], None],
    ) -> None:
        self.run, self.folder, self.journal, self.standing, self.say = run, folder, journal, standing, say
        self._mail = None if silent else Mailbox(folder, lambda text: say(text, True))

    def waiting(self) -> bool:
        """Whether something is asked of the run, as far as this process looks."""
        return self._mail is not None and self._mail.waiting()

    def attend(self, engine: Engine, step: int) -> str | None:
        """Carry out what waits, after `step`, whose records and checkpoints are on the disk. The data that goes on from
        here is then what the events say; why, if the run goes back: who asked has the state read anew."""
        turns: list[list[str]] = processes.first(lambda: self._settled(step))
        if not turns:
            return None
        backs = [why for event, why in turns if event == "rollback"]
        if not backs:
            self.standing.read_on(engine, step)
        return backs[-1] if backs else None

    def _settled(self, step: int) -> list[list[str]]:
        """[event, why] of what was journaled, in order."""
        assert self._mail is not None, "only who writes the run is asked"
        done: list[list[str]] = []
        for name in requests.waiting(self.folder):
            if name in self._mail.left:
                continue
            event = self._carried_out(name, step)
            if event is not None:
                done.append([event["event"], event["why"]])
        self._mail.emptied()
        return done

    def _carried_out(self, name: str, step: int) -> dict[str, Any] | None:
        """The event of one request; None if it was refused, withdrawn, or done by a process before this one."""
        try:
            request = requests.take(self.folder, name)
        except RunError as err:
            self.say(str(err), True)
            return None
        except OSError as err:  # of a file that anybody may have put there
            self._leave(name, err)
            return None
        if request is None:
            return None
        if (known := requests.carried_out(self.journal.events, request.id)) is not None:
            self._answer(request.id, event=known["seq"])
            return None
        try:
            event = settle(
                request.asked,
                self.run,
                self.folder,
                self.journal,
                done=lambda lineages: self._done(lineages, step),
                request=request,
            )
        except RunError as err:
            self._answer(request.id, refused=str(err))
            self.say(f"{request.by} asked for what cannot be done: {err}", False)
            return None
        self._answer(request.id, event=event["seq"])
        self.say(f"{event['event']}: {sentence(event)}; asked for by {request.by}", False)
        return event

    def _answer(self, id: str, **said: Any) -> None:
        try:
            requests.answer(self.folder, id, **said)
        except OSError as err:  # it is in the journal nevertheless, and holds
            self._leave(id, err)

    def _leave(self, name: str, err: OSError) -> None:
        assert self._mail is not None
        self._mail.left.add(name)
        self.say(f"request {name[:80]!a} is left alone: {err}", True)

    def _done(self, lineages: Lineages, step: int) -> int:
        """The last recorded step. A process that was killed may have come further than this one is."""
        if lineages.live > self.standing.lineages.live:
            return lineages.branches[-1].step  # gone back a moment ago, by the request before
        return max(step, self.standing.recorder.furthest)
