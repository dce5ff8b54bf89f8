"""What a run was computed with: the environments of its record, the packages and the source. No jax."""

import dataclasses
import gzip
import importlib.metadata
import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxllm
from jaxllm.checkpoint.revision import package_sha256
from jaxllm.core.config import Json
from jaxllm.ledger.journal import Event
from jaxllm.release.facts import EnvironmentFacts

_NAME = re.compile(r"[A-Za-z0-9._-]+")
# What moves numbers and no package asks for by name: the plugins that drive accelerators.
_PLUGINS = re.compile(r"libtpu|jax-(cuda|rocm)\d*-.*|nvidia-.*")
_ROOT = "jaxllm"


@dataclass(frozen=True)
class Stay:
    """Steps first..last of a lineage that one process computed, as far as no later one computed them again. event:
    how that process began."""

    event: Event
    lineage: int
    first: int
    last: int


def stays(events: Iterable[Event], newest: Mapping[int, int]) -> list[Stay]:
    """The processes behind the records. newest: lineage -> its last recorded step."""
    found: list[Stay] = []
    now: tuple[Event, int, int] | None = None  # how it began, lineage, first step

    def ends(last: int | None) -> None:
        if now is not None:
            event, lineage, first = now
            stop = newest.get(lineage, 0) if last is None else last
            if first <= stop:
                found.append(Stay(event, lineage, first, stop))

    for event in events:
        match event:
            case {"event": "start" | "resume" | "fork", "lineage": lineage}:
                step = event.get("step", 0)
                ends(step if now is not None and now[1] == lineage else None)
                now = (event, lineage, step + 1)
            case {"event": "rollback", "lineage": lineage, "step": step, "last": last}:
                ends(last)
                now = None if now is None else (now[0], lineage, step + 1)
            case _:
                pass
    ends(None)
    return found


def environments(found: Iterable[Stay]) -> tuple[EnvironmentFacts, ...]:
    """For the cards: neighbours that computed alike as one."""
    joined: list[EnvironmentFacts] = []
    for stay in found:
        environment, source = stay.event["environment"], stay.event.get("source") or {}
        fact = EnvironmentFacts(
            fingerprint=stay.event["fingerprint"],
            lineage=stay.lineage,
            first=stay.first,
            last=stay.last,
            platform=environment["platform"],
            device_kind=environment["device_kind"],
            devices=environment["devices"],
            processes=environment["processes"],
            mesh=environment["mesh"],
            versions=environment["versions"],
            commit=source.get("commit"),
            dirty=bool(source.get("dirty")),
            jaxllm=source.get("jaxllm", ""),
        )
        if joined and joined[-1] == dataclasses.replace(fact, first=joined[-1].first, last=fact.first - 1):
            joined[-1] = dataclasses.replace(joined[-1], last=fact.last)
        else:
            joined.append(fact)
    return tuple(joined)


def fingerprints(found: Iterable[Stay]) -> Json:
    """Every recorded environment, whole, with the steps that it covers."""
    known: dict[str, dict[str, Any]] = {}
    for stay in found:
        entry = known.setdefault(
            stay.event["fingerprint"],
            {"sha256": stay.event["fingerprint"], "environment": stay.event["environment"], "covers": []},
        )
        entry["covers"].append({"lineage": stay.lineage, "first": stay.first, "last": stay.last})
    return list(known.values())


def source(found: Iterable[Stay]) -> Json:
    """Which source ran which steps, and which one made the release (that is what source.tar.gz holds)."""
    ran = [{"lineage": s.lineage, "first": s.first, "last": s.last, **(s.event.get("source") or {})} for s in found]
    return {"ran": ran, "made_with": {"jaxllm": jaxllm.__version__, "package_sha256": package_sha256()}}


def lock(found: Iterable[Stay]) -> str:
    """Requirement lines of all that jaxllm depends on, as it is installed here; of what the run recorded, as its last
    process had it."""
    recorded: dict[str, str] = {}
    for stay in found:
        recorded = stay.event["environment"]["versions"]
    lines = [
        "# What jaxllm depends on, as installed where this release was made;",
        f"# {', '.join(sorted(recorded))}: as the run recorded them last.",
    ]
    versions = dict(_closure()) | {_normal(name): version for name, version in recorded.items()}
    return "\n".join([*lines, *(f"{name}=={versions[name]}" for name in sorted(versions))]) + "\n"


def source_tar() -> bytes:
    """The jaxllm package as a .tar.gz: a function of its files, without clock, owner or file modes."""
    package = Path(jaxllm.__file__).parent
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(package.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                data = path.read_bytes()
                info = tarfile.TarInfo(f"{_ROOT}/{path.relative_to(package).as_posix()}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as zipped:
        zipped.write(plain.getvalue())
    return packed.getvalue()


def _closure() -> Iterator[tuple[str, str]]:
    """(name, version) of jaxllm and of all that it depends on here, extras apart; and of plugins of accelerators."""
    wanted, seen = [_ROOT], set[str]()
    wanted += [name for d in importlib.metadata.distributions() if _PLUGINS.fullmatch(name := _normal(d.name))]
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform or Python
            continue
        yield name, distribution.version
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement and (found := _NAME.match(requirement)):
                wanted.append(_normal(found[0]))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
