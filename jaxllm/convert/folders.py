"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxllm.core.errors import DataError
from jaxllm.core.files import fsync_dir, make_folder

PARTIAL = ".partial"


@contextmanager
def appearing_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write to, which becomes `out` when the block ends well and is gone if it does not.

    Folders above it that it takes go with it. DataError if `out` holds anything, or another process writes to it (or
    was killed at it).
    """
    out = out.absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; name another, or remove it")
    above = [folder for folder in out.parents if not folder.is_dir()]
    make_folder(out.parent)
    place = out.with_name(out.name + PARTIAL)
    try:
        place.mkdir()
    except FileExistsError:
        raise DataError(f"{place} exists: another process is writing it, or was killed; then remove it") from None
    try:
        yield place
        for parent, _, names in os.walk(place):
            for name in names:
                with open(Path(parent) / name, "rb") as f:
                    os.fsync(f.fileno())
            fsync_dir(parent)
        place.rename(out)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # others have put something there meanwhile
            for folder in above:
                folder.rmdir()
        raise
    fsync_dir(out.parent)
