"""A folder that is built part by part: what was finished is kept when the builder is killed, and checked. No jax.

OUT.building/plan.json        what is being built; work begun under one plan is never continued under another
OUT.building/done/PART.json   the files of a finished part, with size and sha256
OUT.building/release/         the files; renamed to OUT when all parts are done
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxllm.checkpoint.disk import require_at
from jaxllm.checkpoint.layout import sync_tree
from jaxllm.convert.folders import PARTIAL
from jaxllm.core.config import Json, decode, differences, encode
from jaxllm.core.errors import RunError
from jaxllm.core.files import fsync_dir, make_folder, read_json, sha256_file, write_json_atomic
from jaxllm.data.building import discard
from jaxllm.release.layout import FileEntry, role_of

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Part:
    """Files and folders of the release, by path in it, that one function writes. size: about how many bytes."""

    name: str
    paths: tuple[str, ...]
    make: Callable[[], None]
    size: int = 0


class Workshop:
    """The folder in which `out` is built; its lock (data/building.py) must be held."""

    def __init__(self, out: Path, building: Path) -> None:
        self.out, self.building = out, building
        self.release, self._done = building / "release", building / "done"

    @property
    def has_begun(self) -> bool:
        """Whether there is work to go on with."""
        return (self.building / "plan.json").is_file()

    def begin(self, arguments: Json, survey: Callable[[], Json]) -> Json:
        """What `survey` found when the work began, perhaps by a process that was killed since.

        RunError if that was other work.
        """
        if self.has_begun:
            plan = read_json(self.building / "plan.json")
            if different := differences(plan["arguments"], arguments):
                raise RunError(
                    f"{self.building}: an interrupted release of something else ({different[0]}); delete the folder "
                    f"to begin anew, or name another --out"
                )
            return plan["found"]
        found = survey()
        for folder in (self.release, self._done):
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
        write_json_atomic(self.building / "plan.json", {"arguments": arguments, "found": found})
        return found

    def make_all(self, parts: Sequence[Part], report: Report) -> list[FileEntry]:
        """The files of all parts; those of a finished one are as they were. CheckpointError: the disk is too small."""
        finished: list[list[FileEntry] | None] = []
        for i, part in enumerate(parts):
            report("what is finished already", i, len(parts))
            finished.append(self.finished(part))
        require_at(self.out, sum(p.size for p, kept in zip(parts, finished, strict=True) if kept is None))
        files: list[FileEntry] = []
        for i, (part, kept) in enumerate(zip(parts, finished, strict=True)):
            report("parts of the release", i, len(parts))
            files += self.make(part) if kept is None else kept
        report("parts of the release", len(parts), len(parts))
        return files

    def finished(self, part: Part) -> list[FileEntry] | None:
        """The files of a part that was finished, if they are what they were then; None if it is to be made."""
        note = self._note(part)
        if not note.is_file():
            return None
        entries = [decode(FileEntry, raw, note.name) for raw in read_json(note)]
        for entry in entries:
            path = self.release / entry.path
            if not path.is_file() or path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
                return None
        return entries

    def make(self, part: Part) -> list[FileEntry]:
        """Write a part from the beginning, whatever a killed process left of it."""
        self._note(part).unlink(missing_ok=True)
        for path in part.paths:
            for left in (self.release / path, self.release / (path + PARTIAL)):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            (self.release / path).parent.mkdir(parents=True, exist_ok=True)
        part.make()
        entries = [entry for path in part.paths for entry in self._entries(path)]
        write_json_atomic(self._note(part), [encode(e) for e in entries])
        return entries

    def publish(self, files: Sequence[FileEntry], seal: bytes, name: str) -> None:
        """Seal the finished release, durably, and give it its name."""
        listed = {self.release / f.path for f in files}
        for base, _, names in os.walk(self.release, topdown=False):
            for path in (Path(base, n) for n in names):
                if path not in listed:  # the beginning of a file that a killed process was writing
                    path.unlink()
            if not os.listdir(base):
                os.rmdir(base)
        (self.release / name).write_bytes(seal)
        sync_tree(self.release)
        os.replace(self.release, self.out)
        fsync_dir(self.out.parent)
        discard(self.building, self.out)

    def _note(self, part: Part) -> Path:
        return self._done / f"{part.name}.json"

    def _entries(self, path: str) -> list[FileEntry]:
        top = self.release / path
        found = sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top] if top.is_file() else []
        return [_entry(p, p.relative_to(self.release).as_posix()) for p in found]


def refuse_taken(out: Path) -> None:
    """RunError if the release cannot get its name."""
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        raise RunError(f"{out} exists; name another --out, or remove it")


def _entry(path: Path, name: str) -> FileEntry:
    return FileEntry(path=name, sha256=sha256_file(path), bytes=path.stat().st_size, role=role_of(name))
