"""Writing checkpoints, for the one process group that trains a run.

`save` returns when the state is safe from the next step, which may overwrite or donate it; files are written behind the
training. A checkpoint gets its name by one rename after all its bytes are on the disk, and only then do older ones go.

Memory while a save is being written: one more state, on the host. (On CPU devices nothing is copied at once; a buffer
that is still being written cannot be reused by the next step, which takes a new one.)

Orbax's own CheckpointManager is not used: it returns False instead of saving a step that exists, and deletes old steps
file by file under their names, so that a kill leaves half a step that looks like one. The files are the same.
"""

import errno
import gc
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import jax
import orbax.checkpoint as ocp

from jaxllm.checkpoint import disk, layout
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.checkpoint.layout import DamagedCheckpointError, step_folder
from jaxllm.checkpoint.manifest import Manifest, decode_manifest, seal
from jaxllm.checkpoint.names import array_records, named_leaves, nested
from jaxllm.checkpoint.quiet import one_line, said_once
from jaxllm.checkpoint.reader import CheckpointReader, Digest, Items, Restored, Tree
from jaxllm.checkpoint.retention import superseded
from jaxllm.core.config import Json
from jaxllm.core.errors import CheckpointError, ConfigError
from jaxllm.core.files import fsync_dir, make_folder
from jaxllm.parallel import processes

_TIMEOUT_SECONDS = 3600  # for one background save, all processes together
_LAYER_BYTES = 1 << 20  # of the layers that are stored apart; below, more files cost more than they save
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


class CheckpointStore(CheckpointReader):
    """The checkpoints of a run, for its writer. Opening it deletes what killed saves left behind.

    One save is under way at a time. If it fails, the next call of `save`, `finished`, `wait` or `close` raises, once;
    the failed step left nothing and may be saved again. Close it before the interpreter ends: a save needs its threads.
    """

    def __init__(self, folder: str | Path, config: Checkpoints) -> None:
        super().__init__(folder)
        self.config = config
        make_folder(self.folder)
        if jax.process_index() == 0:
            for name in layout.sweep(self.folder):
                _log.info("removed %s, left by a killed process", name)
        self._quiet = ExitStack()
        self._quiet.enter_context(said_once())
        self._writer = self._new_writer()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        self._committed: list[int] = []
        self._failed = False

    # ---- saving ------------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        *,
        params: Tree,
        opt: Tree,
        ema: Tree | None = None,
        cursor: Mapping[str, Json],
        meta: Manifest | Mapping[str, Json],
    ) -> None:
        """Start to save a step; waits first for the save before, if it is still being written.

        params, opt, ema: trees of jax.Array. cursor: JSON, where the data goes on. meta: the Manifest (or its encoding)
        with the digests of exactly these arrays. All records up to `step` must be durable by now.
        CheckpointError if an earlier save failed, the step or a later one exists, or meta is not about this state;
        DiskFullError if it does not fit. In all cases nothing was written.
        """
        self.wait()
        items = {"params": params, "opt": opt} | ({} if ema is None else {"ema": ema})
        named = named_leaves(items)
        manifest = self._checked(step, items, named, meta)
        # A copy now: Orbax writes JSON items later, and the caller may change its dict meanwhile.
        try:
            cursor_item = json.loads(json.dumps(dict(cursor), allow_nan=False))
        except (TypeError, ValueError) as err:
            raise CheckpointError(f"checkpoint {step}: the cursor is not JSON: {err}") from None
        self._require_space(step, disk.save_bytes(x.nbytes for x in named.values()))
        chunks = nested({name: _chunks(name, x) for name, x in named.items()})
        trees = {item: ocp.args.PyTreeSave(tree, save_args=chunks[item]) for item, tree in nested(named).items()}
        args = ocp.args.Composite(
            **trees,
            cursor=ocp.args.JsonSave(cursor_item),
            meta=ocp.args.JsonSave(seal(manifest, cursor_item)),
        )
        try:
            self._writer.save(step_folder(self.folder, step), args=args)
        except Exception as err:  # whatever a library raises, nothing half may stay
            raise self._failure(step, err) from err
        self._pending = step, self._background.submit(self._commit, step)

    def finished(self) -> list[int]:
        """The steps whose checkpoints became durable since the last call. Never waits.

        CheckpointError if the save under way failed.
        """
        if self._pending is not None and self._pending[1].done():
            self.wait()
        done, self._committed = self._committed, []
        return done

    def wait(self) -> None:
        """Wait until no save is under way. CheckpointError if it failed."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as err:
            raise self._failure(step, err) from err
        self._committed.append(step)

    def close(self) -> None:
        """Wait, then stop the threads. CheckpointError if the last save failed."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._writer.close()
            if self._failed:
                gc.collect()  # of what failed writes left, while nobody hears it
            self._quiet.close()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- restoring ---------------------------------------------------------------------------------------------------

    def restore_latest(
        self,
        abstract: Items,
        digest: Digest,
        on_bad: Callable[[int, str], None] = lambda step, reason: None,
        *,
        anew: bool = False,
    ) -> Restored | None:
        """The newest checkpoint that is what was saved; None if the run has none at all.

        Damaged newer ones are moved to quarantine, so that their steps can be saved again, and `on_bad(step, reason)`
        is called for each, newest first. That happens only once a good one was found: where none is, CheckpointError
        says why for each and everything stays where it is. It also raises where all that is left lies in quarantine: a
        run that has been somewhere never starts from scratch in silence, unless it is `anew` that it begins.
        """
        self.wait()
        bad: list[tuple[int, str]] = []
        for step in reversed(processes.first(self.steps)):  # process 0 may still have been deleting an old one
            try:
                restored = self.restore(step, abstract, digest)
            except DamagedCheckpointError as err:
                bad.append((step, err.reason))
                continue
            for damaged, reason in bad:
                on_bad(damaged, reason)  # first: told twice after a kill is better than never
                self.quarantine(damaged, reason)
            return restored
        if bad:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in bad)
            raise CheckpointError(f"{self.folder}: no checkpoint can be used, nothing was changed: {reasons}")
        if not anew and (aside := processes.first(lambda: layout.quarantined(self.folder))):
            raise CheckpointError(
                f"{self.folder}: the only checkpoints are in {layout.QUARANTINE}/ ({', '.join(aside)}); move one back, "
                f"or remove that folder to start from scratch"
            )
        return None

    def quarantine(self, step: int, why: str) -> Path:
        """Move a step to quarantine/<step>-<n> with its reason. It no longer counts, and may be saved again."""
        self.wait()
        target = layout.move_aside(self.folder, step, why) if jax.process_index() == 0 else self.folder
        processes.meet()
        return target

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _checked(self, step: int, items: Items, named: Mapping[str, object], meta: object) -> Manifest:
        """The manifest, if step, state and manifest can be saved together."""
        try:
            manifest = meta if isinstance(meta, Manifest) else decode_manifest(meta)
        except ConfigError as err:
            raise CheckpointError(f"checkpoint {step}: {err}") from None
        if manifest.step != step:
            raise CheckpointError(f"checkpoint {step}: its manifest says step {manifest.step}")
        for name, leaf in named.items():
            if not isinstance(leaf, jax.Array):
                raise CheckpointError(f"checkpoint {step}: {name} is a {type(leaf).__name__}, not a jax.Array")
        if array_records(items, manifest.digests) != tuple(sorted(manifest.arrays, key=lambda a: a.name)):
            raise CheckpointError(f"checkpoint {step}: shapes or types in its manifest are not those of the state")
        newest = max(self.steps(), default=-1)
        if step <= newest:
            raise CheckpointError(
                f"{self.folder}: checkpoint {newest} exists, so {step} cannot be saved; move aside what is not older"
            )
        return manifest

    def _require_space(self, step: int, needed: int) -> None:
        """DiskFullError in all processes if the save does not fit for one of them."""
        problem = None
        try:
            disk.require_for_save(self.folder, step, needed)
        except disk.DiskFullError as err:
            problem = err
        if (said := processes.anywhere(None if problem is None else str(problem))) is not None:
            raise problem or disk.DiskFullError(said)

    def _commit(self, step: int) -> None:
        """Background: wait for Orbax, make the name durable, let older steps go."""
        self._writer.wait_until_finished()
        if jax.process_index() != 0:
            return
        fsync_dir(self.folder)
        for old in superseded(self.config, self.steps(), lambda s: layout.is_whole(self.folder, s)):
            try:
                layout.retire(self.folder, old)
            except OSError as err:  # the new checkpoint stands; this one is tried again after the next
                _log.warning("checkpoint %d could not be removed: %s", old, err)

    def _before_rename(self) -> None:
        """Background, called by Orbax when all is written and nothing is named yet. Orbax does not sync every file."""
        if jax.process_index() == 0:
            for place in self.folder.glob(f"*{layout.UNFINISHED}*"):
                layout.sync_tree(place)

    def _failure(self, step: int, err: Exception) -> CheckpointError:
        """Clear up after a failed save, and say what happened."""
        self._failed = True
        self._writer.close()
        self._writer = self._new_writer()
        if jax.process_index() == 0:
            for place in layout.unfinished(self.folder, step):
                shutil.rmtree(place, ignore_errors=True)
        # tensorstore names the system's error in its text only
        if getattr(err, "errno", None) in _NO_SPACE or any(os.strerror(number) in str(err) for number in _NO_SPACE):
            return disk.DiskFullError(f"{self.folder}: the disk filled up in checkpoint {step}; nothing of it was kept")
        return CheckpointError(f"{self.folder}: checkpoint {step} could not be written: {one_line(err)}")

    def _new_writer(self) -> ocp.AsyncCheckpointer:
        options = ocp.options.AsyncOptions(
            timeout_secs=_TIMEOUT_SECONDS, post_finalization_callback=self._before_rename
        )
        return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)


def _chunks(name: str, x: jax.Array) -> ocp.SaveArgs:
    """How an array is cut on the disk. Parameters layer by layer, so that an export reads one at a time: of 64 layers
    of 4 MB, one takes 0.01 s instead of 1.0 s, and saving and restoring all take as long as in one piece."""
    stacked = name.startswith(("params.blocks.", "ema.blocks."))
    return ocp.SaveArgs(shard_axes=(0,) if stacked and x.nbytes >= _LAYER_BYTES * x.shape[0] else ())
