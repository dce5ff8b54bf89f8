"""A release as the run folder that it was made of, so that what can be done with a run can be done with it. No jax."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxllm.checkpoint.layout import step_folder
from jaxllm.release.layout import RECORD, STATE, Release


@contextmanager
def as_run(folder: Path, release: Release) -> Iterator[Path]:
    """A folder of links, gone afterwards: the record, and the training states that the release holds."""
    live = release.lineages[-1].lineage
    with tempfile.TemporaryDirectory(prefix="jaxllm-") as scratch:
        run = Path(scratch) / release.run.name
        run.mkdir()
        for path in (folder / RECORD).iterdir():
            (run / path.name).symlink_to(path.absolute())
        for entry in (c for c in release.checkpoints if "state" in c.items):
            # A branch of a lineage that was left says so; the others lie on the path of the live one.
            left = entry.branch.startswith("lineage") and entry.lineage != live
            place = run / "checkpoints" / (f"lineage-{entry.lineage}" if left else "")
            place.mkdir(parents=True, exist_ok=True)
            state = step_folder(folder.absolute() / entry.folder / STATE, entry.step)
            step_folder(place, entry.step).symlink_to(state)
        yield run
