"""`jaxllm publish`: a release becomes a repository on a hub, a branch for every checkpoint. Killed, it goes on."""

from dataclasses import dataclass
from pathlib import Path

from jaxllm.core.errors import CheckFailed, RunError
from jaxllm.release.hub import Hub
from jaxllm.release.layout import LICENCE, Release, read_release
from jaxllm.release.publish_plan import MAIN, Plan, commits, plan_of
from jaxllm.release.sealed import HUBS_OWN, RELEASE, Report, check_files, read_sealed


@dataclass(frozen=True, kw_only=True)
class Published:
    """What came of it. sent, bytes: files that were committed now; there: those that were there already; commits: how
    many it took. address: of the repository."""

    address: str
    branches: int
    sent: int
    bytes: int
    there: int
    commits: int


def planned(folder: Path, repository: str, *, private: bool) -> Plan:
    """What publishing `folder` would come to. RunError: it is no release; CheckFailed: its seal does not hold, or it
    lacks a licence."""
    release = read_release(folder)
    plan = plan_of(folder, release, repository, private=private)
    for file in release.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise CheckFailed(f"{file.path}: it is not there, or not of the listed size; see `jaxllm verify {folder}`")
    if not release.licence.strip() or not (folder / LICENCE).read_text(encoding="utf-8").strip():
        raise CheckFailed(f"{LICENCE}: no licence of the weights is stated; make the release with --licence")
    return plan


def publish(plan: Plan, folder: Path, *, replace: bool = False, report: Report = lambda *_: None) -> Published:
    """Carry a plan out, after every file of the release was held against its hash.

    replace: also where the repository holds a release of another run, or a later one. RunError: it does;
    HubRefusedError, HubUnavailableError: as the hub answers. What was committed stands, and is not sent again.
    """
    check_files(folder, read_sealed(folder), report)
    hub = Hub(plan.repository)
    address = hub.create(private=plan.private)
    if not replace:
        _check_held(hub, plan.release)
    known = hub.branches()
    sent = there = size = made = 0
    for branch in plan.branches:
        if branch.name not in known:
            hub.create_branch(branch.name)
        held = hub.files(branch.name)
        wanted = tuple(f for f in branch.files if not (f.path in held and held[f.path].is_copy_of(f)))
        stale = sorted(set(held) - {f.path for f in branch.files} - set(HUBS_OWN))
        there += len(branch.files) - len(wanted)
        other = RELEASE in held and any(f.path == RELEASE for f in wanted)
        portions = list(commits(wanted)) or ([()] if stale else [])
        for i, portion in enumerate(portions):
            part = f" ({i + 1} of {len(portions)})" if len(portions) > 1 else ""
            # With the last one the branch is what the release says; until then no other release may seem whole.
            gone = stale if i == len(portions) - 1 else [RELEASE] if i == 0 and other else []
            hub.commit(branch, portion, gone, part)
            sent, made, size = sent + len(portion), made + 1, size + sum(f.bytes for f in portion)
            report(f"branch {branch.name}", i + 1, len(portions))
    return Published(address=address, branches=len(plan.branches), sent=sent, bytes=size, there=there, commits=made)


def lines(plan: Plan, done: Published) -> list[str]:
    """For people."""
    if done.commits == 0:
        return [f"{done.address}: everything is there already ({done.there} files on {done.branches} branches)"]
    said = f"{done.address}: {done.branches} branches; {done.sent} files, {done.bytes:,} bytes sent"
    said += (
        f" in {done.commits} commits, {done.there} files were there" if done.there else f" in {done.commits} commits"
    )
    last = next((b.name for b in reversed(plan.branches) if b.name != MAIN), MAIN)
    return [said, f"  hf download {plan.repository} --local-dir DIR && jaxllm verify DIR", f"  revision={last!r}"]


def _check_held(hub: Hub, release: Release) -> None:
    held = hub.released()
    if held is None:
        return
    run = held.get("run")
    identity, name, steps = (
        (run.get(k) for k in ("identity", "name", "steps")) if isinstance(run, dict) else (None,) * 3
    )
    if identity != release.run.identity:
        raise RunError(
            f"{hub.repository} holds a release of another run, {name!r}: name another repository, or --replace it"
        )
    if isinstance(steps, int) and steps > release.run.steps:
        raise RunError(
            f"{hub.repository} holds the release of {steps} steps of this run, this one is of {release.run.steps}: "
            f"--replace takes the later one away"
        )
