"""Kill a training run again and again; what survives must be, to the bit, the run that was never killed.

    python tools/kill_test.py [--kills N] [--seed S] [--keep DIR] [CONFIG field=value ...]

A reference run goes through once. Victims run the same config and are killed with SIGKILL at seeded moments of five
kinds: at any time, inside an asynchronous save, at an epoch boundary, at a stage boundary, and again right after a
restart. When a victim ends, its step records, per-sequence losses and final state digest are compared with the
reference. Exit code 1 on a single differing bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxllm.data.steps import StepTable
from jaxllm.data.stream import stream_of_run
from jaxllm.ledger.fold import present
from jaxllm.ledger.history import losses_along
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.lineage import Lineages
from jaxllm.ledger.records import compare, read_steps
from jaxllm.run import RunConfig
from jaxllm.workspace import open_config, open_store

KINDS = ("any time", "inside a save", "epoch boundary", "stage boundary", "twice in a row")
PATIENCE = 300.0  # seconds without an end before a process counts as hung


@dataclass
class Tally:
    """What was done and found."""

    kills: Counter[str] = field(default_factory=Counter)  # by the moment at which they really fell
    victims: int = 0
    resumed: int = 0  # starts of a process that went on from a checkpoint
    problems: list[str] = field(default_factory=list)


class Victim:
    """One process of a run, in a process group of its own."""

    def __init__(self, config: str, overrides: list[str], root: Path, log: Path) -> None:
        self.folder, self._log = root, log.open("ab")
        command = [sys.executable, "-m", "jaxllm", "train", config, *overrides, f"io.root={root}"]
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, start_new_session=True, env=fixed()
        )

    def wait(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self._log.close()

    def kill(self) -> None:
        """SIGKILL, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    @property
    def running(self) -> bool:
        return self.process.poll() is None


def fixed() -> dict[str, str]:
    """The environment with the thread count that decides CPU bits pinned."""
    return os.environ | {"NPROC": os.environ.get("NPROC", "2")}


def last_step(run_folder: Path) -> int:
    """The newest step that the run has recorded, from the tail of its newest segment."""
    segments = sorted((run_folder / "steps").glob("*.jsonl"))
    if not segments:
        return 0
    lines = segments[-1].read_bytes().splitlines()
    for line in reversed(lines):
        start = line.find(b'"step":')
        digits = line[start + 7 : start + 27].split(b",")[0].strip(b" }")
        if start >= 0 and digits.isdigit():
            return int(digits)
    return 0


def saving(run_folder: Path) -> bool:
    """Whether a checkpoint is being written right now."""
    return any("tmp" in p.name for p in (run_folder / "checkpoints").glob("*"))


def boundaries(run: RunConfig, folder: Path) -> tuple[list[int], list[int]]:
    """(steps that end a stage, steps within which a source enters a new epoch)."""
    ends = np.cumsum([s.steps for s in run.data.stages]).tolist()
    run, store = open_store(run, folder)
    stream, table = stream_of_run(run.data, run.seed, store)
    epochs: list[int] = []
    seen: dict[int, int] = {}
    for step in range(1, run.steps + 1):
        first, count, _ = table.span(step)
        rows = stream.rows(np.arange(first, first + count))
        for source in np.unique(rows.source):
            newest = int(rows.epoch[rows.source == source].max())
            if newest > seen.setdefault(int(source), 0):
                epochs.append(step)
                seen[int(source)] = newest
    return ends[:-1], epochs


def began(run_folder: Path) -> int:
    """How many processes have journaled that they started or resumed."""
    journal = run_folder / "journal.jsonl"
    text = journal.read_bytes() if journal.is_file() else b""
    return text.count(b'"event":"start"') + text.count(b'"event":"resume"')


def await_moment(victim: Victim, run_folder: Path, kind: str, steps: list[int], dice: random.Random) -> str | None:
    """Sleep until the moment of `kind` has come; the kind of moment that came, None if the victim ended before.

    A boundary that lies behind the recorded steps cannot be reached any more: that kill falls at any time. Half of the
    kills at any time, and those right after a restart, fall into the start-up of a process, before it has journaled
    anything; the others into its first seconds of training, which execute steps again.
    """
    start, processes = last_step(run_folder), began(run_folder)
    ahead = [s for s in steps if s > start]
    target = dice.choice(ahead) - dice.randint(0, 1) if ahead else None
    if target is None and kind in ("epoch boundary", "stage boundary"):
        kind = "any time"
    anywhere = kind == "any time"
    early = kind == "twice in a row" or (anywhere and dice.random() < 0.5)
    deadline = time.monotonic() + (dice.uniform(0.0, 6.0) if early else PATIENCE)
    trained = None
    while victim.running and time.monotonic() < deadline:
        if kind == "inside a save" and saving(run_folder):
            time.sleep(dice.uniform(0.0, 0.03))
            return kind if victim.running else None
        if target is not None and last_step(run_folder) >= target:
            time.sleep(dice.uniform(0.0, 0.02))
            return kind if victim.running else None
        if anywhere and not early and trained is None and began(run_folder) > processes:
            trained = time.monotonic() + dice.uniform(0.0, 4.0)
        if trained is not None and time.monotonic() >= trained:
            return kind if victim.running else None
        time.sleep(0.002)
    if victim.running and not early:
        victim.kill()
        raise SystemExit(f"{run_folder} made no progress for {PATIENCE:.0f} s")
    return kind if victim.running else None


def harvest(folder: Path) -> dict[str, Any]:
    """What a finished run says about itself. Records are those of all lineages, by lineage and step; losses those along
    the live one."""
    events = read_journal(folder / "journal.jsonl")
    records = {(r.lineage, r.step): r for r in read_steps(folder / "steps")}
    run, _ = open_config(str(folder))
    table = StepTable(run.data.stages)
    sums, tokens = losses_along(folder, table, Lineages.of(events), 0, table.positions)
    return {
        "finish": [e for e in events if e["event"] == "finish"],
        "events": Counter(e["event"] for e in events),
        "saved": {e["step"] for e in events if e["event"] == "checkpoint"},
        "resumed": sum(e["event"] == "resume" and e["step"] > 0 for e in events),
        "records": records,
        "sums": sums,
        "tokens": tokens,
        "present": present(events),
    }


def differences(reference: dict, survivor: dict) -> list[str]:
    """Every way in which the survivor is not the reference; empty is bitwise equal."""
    found = []
    if survivor["events"]["divergence"]:
        found.append(f"{survivor['events']['divergence']} re-executed steps differ from what was recorded")
    if set(reference["records"]) != set(survivor["records"]):
        found.append("other steps are recorded")
    for lineage, step in sorted(set(reference["records"]) & set(survivor["records"])):
        fields = compare(reference["records"][lineage, step], survivor["records"][lineage, step])
        if fields:
            found.append(f"step {step} differs in {', '.join(fields)}")
            break
    for event in ("rollback", "spike", "recovered"):
        if reference["events"][event] != survivor["events"][event]:
            found.append(f"{survivor['events'][event]} {event} events, not {reference['events'][event]}")
    for event in ("start", "finish"):
        if survivor["events"][event] != 1:
            found.append(f"{survivor['events'][event]} {event} events in the journal")
    if missing := set(reference["saved"]) - set(survivor["saved"]):
        found.append(f"no checkpoint event for step {min(missing)}")
    for name in ("sums", "tokens"):
        if reference[name].tobytes() != survivor[name].tobytes():
            found.append(
                f"per-sequence {name} differ, first at position {first_difference(reference[name], survivor[name])}"
            )
    digests = [[e["digest"] for e in side["finish"]] for side in (reference, survivor)]
    if digests[0] != digests[1]:
        found.append(f"final state digest {digests[1]} is not {digests[0]}")
    return found


def first_difference(a: np.ndarray, b: np.ndarray) -> int:
    """Index of the first element whose bits differ."""
    return int(np.flatnonzero(a.view(np.uint32) != b.view(np.uint32))[0])


def kill_test(config: str, overrides: list[str], *, kills: int, seed: int, work: Path, console: Console) -> Tally:
    """Run the whole test in `work`; the tally lists the problems."""
    dice, tally = random.Random(seed), Tally()
    log = work / "output.log"
    run, _ = open_config(config, [*overrides, f"io.root={work / 'reference'}"])
    began = time.monotonic()
    code = Victim(config, overrides, work / "reference", log).wait()
    usual = time.monotonic() - began
    if code != 0:
        raise SystemExit(f"the reference run ended with {code}; see {log}")
    reference = harvest(work / "reference" / run.name)
    stage_ends, epoch_starts = boundaries(run, work / "reference" / run.name)
    console.print(
        f"reference: {run.steps} steps in {usual:.0f} s, stage ends {stage_ends}, new epochs at {epoch_starts}"
    )
    while sum(tally.kills.values()) < kills:
        tally.victims += 1
        root = work / f"victim-{tally.victims}"
        # Every kind in turn, from the end; boundaries come once in the life of a run, stages before the later epochs.
        plan = ["any time", "epoch boundary", "inside a save", "stage boundary"]
        while True:
            victim = Victim(config, overrides, root, log)
            if sum(tally.kills.values()) >= kills:
                break
            again = sum(tally.kills.values()) > 0 and dice.random() < 0.2
            kind = "twice in a row" if again else plan.pop() if plan else dice.choice(("any time", "inside a save"))
            steps = {"epoch boundary": epoch_starts, "stage boundary": stage_ends}.get(kind, [])
            came = await_moment(victim, root / run.name, kind, steps, dice)
            if came is None:
                break
            victim.kill()
            tally.kills[came] += 1
            console.print(f"kill {sum(tally.kills.values())}/{kills}: {came}, after step {last_step(root / run.name)}")
        code = victim.wait()
        if code != 0:
            tally.problems.append(f"victim {tally.victims} ended with {code}; see {log}")
            continue
        survivor = harvest(root / run.name)
        tally.resumed += survivor["resumed"]
        found = differences(reference, survivor)
        tally.problems += [f"victim {tally.victims}: {text}" for text in found]
        console.print(f"victim {tally.victims}: " + ("bitwise the reference" if not found else "; ".join(found)))
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it there")
    parser.add_argument("config", nargs="?", default="configs/debug.py")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="jaxllm-kill-") as scratch:
        work = args.keep or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        tally = kill_test(
            args.config, args.overrides, kills=args.kills, seed=args.seed, work=work.resolve(), console=console
        )
    table = Table("kind of kill", "kills")
    for kind in KINDS:
        table.add_row(kind, str(tally.kills[kind]))
    table.add_row("all", str(sum(tally.kills.values())), style="bold")
    console.print(table)
    for problem in tally.problems:
        console.print(f"DIFFERENT: {problem}")
    console.print(f"a checkpoint was resumed {tally.resumed} times")
    console.print(
        f"{tally.victims} survivors, {len(tally.problems)} problems: " + ("FAILED" if tally.problems else "bitwise")
    )
    sys.exit(1 if tally.problems else 0)


if __name__ == "__main__":
    main()
