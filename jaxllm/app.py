"""The wiring of the commands that compute: RunConfig -> store, devices, records, loop."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxllm import __version__
from jaxllm.assembly import Assembly, start_devices
from jaxllm.attending import Attendant
from jaxllm.checkpoint import disk
from jaxllm.checkpoint.fingerprint import collect
from jaxllm.checkpoint.manifest import Manifest, Rng, state_digest
from jaxllm.checkpoint.names import array_records
from jaxllm.checkpoint.retention import is_save_step
from jaxllm.checkpoint.revision import source_revision
from jaxllm.checkpoint.store import CheckpointStore
from jaxllm.chronicle import Chronicle
from jaxllm.company import LOGS, agree_on_code, held, joined, open_together
from jaxllm.core.config import differences as config_differences
from jaxllm.core.config import encode, essential
from jaxllm.core.errors import (
    EXIT_DONE,
    EXIT_GUARD_STOPPED,
    EXIT_SAVED_START_AGAIN,
    RunError,
)
from jaxllm.core.files import write_atomic, write_json_atomic
from jaxllm.data.feed import to_devices
from jaxllm.data.store import Store
from jaxllm.evals.perplexity import HeldOut
from jaxllm.finale import finale
from jaxllm.ledger.bystander import SilentJournal
from jaxllm.ledger.journal import Journal
from jaxllm.ledger.lease import Lease
from jaxllm.models.count import flops_per_token, parameters
from jaxllm.models.decoder import describe
from jaxllm.origin import inherit
from jaxllm.parallel import processes
from jaxllm.parallel.mesh import layout_text, sizes
from jaxllm.parallel.shard import batch_sharding
from jaxllm.progress import people, phase_progress
from jaxllm.run import RunConfig, identity_hash
from jaxllm.standing import Standing
from jaxllm.train.clock import Clock, Pace
from jaxllm.train.config import Refuse, Replay, Rewind
from jaxllm.train.console import ConsoleObserver
from jaxllm.train.engine import Engine, noted_key
from jaxllm.train.flip import check_flips
from jaxllm.train.hardware import peak_flops
from jaxllm.train.loop import Finished, Outcome, Paused, Plan, Ports, Stopped
from jaxllm.train.loop import train as run_loop
from jaxllm.train.observe import MetricsFile, Observer, TensorBoard
from jaxllm.train.saver import Saver
from jaxllm.train.selfcheck import Checker
from jaxllm.train.signals import StopRequest
from jaxllm.train.state import State
from jaxllm.train.tally import Tally
from jaxllm.train.watchdog import Watchdog, hangs
from jaxllm.workspace import SPECIAL_TOKENS, check_store, open_run, save_config

Drive = Callable[[Plan, Ports, State, int], tuple[State, Outcome]]


def train(
    run: RunConfig,
    folder: Path,
    *,
    stop_at: int | None,
    profile: tuple[int, int] | None,
    as_json: bool,
    drive: Drive = run_loop,
) -> int:
    """Start or resume `run` in `folder`, as one of the processes that the environment tells of; the exit code of the
    command, the same in all of them. drive: the loop, or what goes around it to see what it does."""
    with joined(folder):
        return _train(run, folder, stop_at, profile, as_json, drive)


def _train(
    run: RunConfig, folder: Path, stop_at: int | None, profile: tuple[int, int] | None, as_json: bool, drive: Drive
) -> int:
    console, clock = people(stderr=as_json, quiet=processes.index() > 0), Clock()
    agree_on_code(run, stop_at)
    check_flips(run.faults, describe(run.model).leaves)  # before data is prepared
    with held(folder) as lease:
        with clock.phase("data"), phase_progress(console) as progress:
            run, store = open_together(run, folder, progress)
            check_store(run, store)
        with StopRequest() as stop:  # before this, a signal may end the process: nothing is lost
            with clock.phase("start"):
                parts = start_devices(run)
                parts.check_batches()
                one_save = disk.save_bytes(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts.abstract_state))
                disk.require_for_run(folder / "checkpoints", run.checkpoints, run.steps, one_save, _rollbacks(run))
                session = _Session(run, folder, store, parts, console, clock, stop, lease)
            with session, enough_memory(run):
                outcome = session.go(stop_at, profile, drive)
            return session.end(outcome, as_json)


class _Session:
    """One process's stretch of a run: opened, driven through the loop, closed. Beside process 0, which holds the lease,
    journal and records are silent and there are no observers; all else happens in every process alike."""

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        store: Store,
        parts: Assembly,
        console: Console,
        clock: Clock,
        stop: StopRequest,
        lease: Lease | None,
    ) -> None:
        self.lease = lease
        self.digest: str | None = None  # of the newest checkpoint
        self.run, self.folder, self.store, self.parts = run, folder, store, parts
        self.console, self.clock, self.stop = console, clock, stop
        self.environment = collect(sizes(parts.mesh), essential(run.compute))
        self.revision = source_revision()
        self.journal = SilentJournal() if lease is None else Journal(folder / "journal.jsonl")
        self.checkpoints = CheckpointStore(folder / "checkpoints", run.checkpoints)
        self.chronicle = Chronicle(
            journal=self.journal,
            run=run,
            fence=0 if lease is None else lease.fence,
            environment=self.environment,
            revision=self.revision,
            say=lambda text, alarming: console.print(text, style="bold red" if alarming else None, markup=False),
            hangs=hangs(folder / LOGS),
        )
        self.standing = Standing(
            run,
            folder,
            store,
            parts,
            self.journal,
            self.checkpoints,
            self.chronicle,
            silent=lease is None,
            warn=lambda text: console.print(text, style="bold red", markup=False),
        )
        self.observers: list[Observer] = []
        self.parts_open = ExitStack()
        self.parts_open.callback(self.journal.close)
        self.parts_open.callback(self.checkpoints.close)
        self.parts_open.callback(self.standing.close)

    def __enter__(self) -> "_Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and processes.count() > 1:
            return  # as if killed: closing would wait for a save that dead processes have a part in
        self.parts_open.close()  # each part is closed, even if another one cannot be

    def go(self, stop_at: int | None, profile: tuple[int, int] | None, drive: Drive) -> Outcome:
        """Restore or initialise, journal it, and run the loop. Nothing is journaled before all parts are there."""
        run, clock = self.run, self.clock
        with clock.phase("start"):
            state, step, restored = self.standing.take_up()
            if stop_at is not None and stop_at < step:
                raise RunError(f"--stop-at {stop_at}: {self.folder} stands at step {step} already")
            if self.lease is not None:
                self._observe(step)
            peak, origin = peak_flops(run.precision.compute)
            self.engine = self._engine(peak, profile)
            self.parts_open.callback(self.engine.close)
            if self.lease is not None:
                changes = self._save_config()
                self.chronicle.begins(None if restored is None else restored.manifest, changes)
            processes.meet()
        self._say(step, peak, origin)
        plan = Plan(
            last_step=run.steps,
            stop_at=run.steps if stop_at is None else min(stop_at, run.steps),
            save_at=lambda step: is_save_step(run.checkpoints, step),
            evaluate_every=run.evaluation.every_steps,
            lag=run.guard.lag,
            check_at=lambda step: self.engine.checker is not None and self.engine.checker.due(step),
        )
        with self.engine.watchdog:
            self.state, outcome = drive(plan, self.engine, state, step)
        with clock.phase("saving"):
            self.engine.saver.wait()
        saved = self.engine.saver.last
        self.digest = self.standing.digest if saved is None else saved.state_digest
        self.chronicle.ends(outcome, self.digest)
        return outcome

    def end(self, outcome: Outcome, as_json: bool) -> int:
        """Show what was made; the exit code."""
        scores = None
        if isinstance(outcome, Finished):  # evaluated already, unless the process before this one died in between
            scores = self.engine.last_scores or self.engine.scores(self.state.params)
        report = finale(
            self.run,
            self.folder,
            self.store,
            self.parts,
            self.state.params,
            outcome,
            scores=scores,
            clock=self.clock,
            pace=self.engine.pace,
            verified=self.standing.recorder.verified,
            diverged=self.standing.recorder.diverged,
            digest=self.digest,
            console=self.console,
        )
        if self.engine.checker is not None:
            self.console.print(self.engine.checker.text(), highlight=False)
            report["selfcheck"] = self.engine.checker.counts()
        if as_json and self.lease is not None:
            print(json.dumps(report, indent=2, allow_nan=False))
        match outcome:
            case Finished():
                return EXIT_DONE
            case Paused(why=why):
                return EXIT_SAVED_START_AGAIN if why.startswith("signal") else EXIT_DONE
            case Stopped():
                return EXIT_GUARD_STOPPED

    def _save_config(self) -> list[str]:
        """Write run.json and what goes with it; the placement fields that changed, as `path: old -> new`."""
        old = encode(open_run(self.folder)) if (self.folder / "run.json").is_file() else encode(self.run)
        save_config(self.run, self.folder)
        if not (self.folder / "tokenizer.json").exists():
            write_atomic(self.folder / "tokenizer.json", self.store.tokenizer_path.read_bytes())
        write_json_atomic(
            self.folder / SPECIAL_TOKENS,
            {"end_of_text_id": self.store.end_of_text_id, "tokenizer": self.store.tokenizer_identity},
        )
        inherit(self.run, self.folder)
        return config_differences(old, encode(self.run))

    # ---- wiring ------------------------------------------------------------------------------------------------------

    def _observe(self, step: int) -> None:
        run = self.run
        every = run.logging.every_steps
        self.observers.append(MetricsFile(self.folder, every, step))
        if run.logging.tensorboard:
            self.observers.append(TensorBoard(self.folder, every, step))
        self.observers.append(ConsoleObserver(self.console, total=run.steps, start=step, every=every))
        for observer in self.observers:
            self.parts_open.callback(observer.close)

    def _engine(self, peak: float, profile: tuple[int, int] | None) -> Engine:
        run, parts, standing = self.run, self.parts, self.standing
        assert standing.feed is not None, "nothing was taken up"
        attendant = Attendant(
            run, self.folder, self.journal, standing, silent=self.lease is None, say=self.chronicle.say
        )
        sharding = batch_sharding(parts.mesh)
        saver = Saver(
            store=self.checkpoints,
            recorder=standing.recorder,
            journal=self.journal,
            digest=parts.digest,
            describe=self._manifest,
            cursor=standing.cursor,
            still_ours=(lambda: None) if self.lease is None else self.lease.check,
        )
        scores = HeldOut(
            parts.declared,
            parts.context,
            self.store,
            run.data,
            windows=run.evaluation.windows,
            batch_size=run.evaluation.batch_size,
            loss_chunks=run.compute.loss_chunks,
            rows=parts.rows(run.evaluation.batch_size),
            place=parts.place,
            replicated=parts.replicated,
        )
        return Engine(
            judging=standing.judge,
            feed=standing.feed,
            place=lambda batch: to_devices(batch, sharding),
            step=parts.step,
            schedule=run.optimizer.schedule,
            stages=[s.name for s in run.data.stages],
            journaled_stages=standing.journaled_stages,
            lineages=standing.lineages,
            recorder=standing.recorder,
            journal=self.journal,
            saver=saver,
            rewinding=standing,
            attending=attendant,
            observers=self.observers,
            scores=scores,
            tally=Tally(self.stop, parts.mesh, attendant.waiting),
            watchdog=Watchdog(run.guard.watchdog_seconds, self.folder / LOGS, processes.index()),
            clock=self.clock,
            pace=Pace(),
            flops_per_token=flops_per_token(run.model, run.data.seq_len),
            peak=peak,
            seq_len=run.data.seq_len,
            profile=None if self.lease is None else profile,
            trace_folder=str(self.folder / "tensorboard"),
            norms_every=run.logging.norms_every_steps,
            limited=run.guard.spikes is not None and isinstance(run.guard.spikes.action, Refuse),
            waits=parts.platform == "cpu",
            noted={
                noted_key(e) for e in self.journal.events if e["event"] in ("spike", "recovered", "fault", "selfcheck")
            },
            faults=standing.faults,
            checker=None
            if run.guard.selfcheck is None
            else Checker(run.guard.selfcheck, parts.gradient_digest, parts.declared, parts.mesh),
            checking_mesh=parts.mesh,
        )

    def _manifest(self, step: int, items: dict[str, Any], digests: dict[str, str]) -> Manifest:
        arrays = array_records(items, digests)
        return Manifest(
            step=step,
            lineage=self.standing.lineages.owner(step),
            tokens=self.standing.table.consumed(step) * self.run.data.seq_len,
            identity=identity_hash(self.run),
            data_manifest=self.store.manifest_sha256,
            tokenizer=self.store.tokenizer_identity,
            arrays=arrays,
            state_digest=state_digest(arrays),
            journal_head=self.journal.head,
            steps_head=self.standing.recorder.head,
            fingerprint=self.environment,
            source=self.revision,
            jaxllm=__version__,
            rng=Rng(seed=self.run.seed),
        )

    def _say(self, step: int, peak: float, origin: str) -> None:
        run, mesh, schedule = self.run, self.parts.mesh, self.parts.schedule
        device = mesh.devices.flat[0]
        layout = f" ({layout_text(sizes(mesh))})" if mesh.size > 1 else ""
        several = f" in {processes.count()} processes" if processes.count() > 1 else ""
        self.console.print(
            f"{run.name}: {parameters(run.model):,} parameters, {run.tokens:,} tokens in {run.steps:,} steps, on "
            f"{mesh.size} x {device.device_kind}{layout}{several}, peak "
            f"{peak / 1e9:,.0f} GFLOP/s ({origin}), attention: {self.parts.attention}"
            f"{'' if schedule is None else f', pipeline: {schedule.text()}'}\n"
            f"{'resumes after step ' + str(step) if step else 'starts'} in {self.folder}"
        )
        if run.faults:
            self.console.print(
                f"FAULTS ARE INJECTED: {len(run.faults)}, as the config's `faults` says", style="bold red"
            )
        if self.parts.exchange is not None:
            self.console.print(f"tokens travel to the devices of their experts by {self.parts.exchange}")


def _rollbacks(run: RunConfig) -> int:
    """How often the guard may leave checkpoints behind, as far as the disk has to hold them."""
    guard = run.guard
    actions = [guard.non_finite] + ([] if guard.spikes is None else [guard.spikes.action])
    goes_back = any(isinstance(a, Rewind) for a in actions) or (
        guard.selfcheck is not None and isinstance(guard.selfcheck.action, Replay)
    )
    return guard.max_rollbacks * (guard.keep_abandoned and goes_back)


@contextmanager
def enough_memory(run: RunConfig) -> Iterator[None]:
    """RunError in place of XLA's report if the devices' memory runs out inside."""
    try:
        yield
    except jax.errors.JaxRuntimeError as err:
        if "RESOURCE_EXHAUSTED" not in str(err):
            raise
        said = str(err).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
        raise RunError(
            f"{run.name} does not fit into the memory of the devices ({said}); use a smaller compute.micro_batch, "
            f"compute.remat=full, or a larger mesh.fsdp"
        ) from None
